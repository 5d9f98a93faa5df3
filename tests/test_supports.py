"""Supports of transformed priors, which torch takes for all that the last transform can give."""

import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from torch.distributions import biject_to, constraints

import amortized_bayes as ab
from amortized_bayes.supports import support_of

ROWS = 6
QUICK = ab.ComparisonSettings(epochs=60, rungs=1, num_draws=200)
EXP, SIGMOID, TANH = T.ExpTransform(), T.SigmoidTransform(), T.TanhTransform()
UP = T.AffineTransform(-1.0, 3.0)
TWICE = T.AffineTransform(1.0, 2.0)
SIGNS = torch.tensor([-1.0, 2.0])
INF = math.inf


def normal(*shape):
    return dist.Normal(torch.zeros(ROWS, *shape), 1.0)


def moved(base, *transforms):
    return dist.TransformedDistribution(base, list(transforms))


def bounds(support):
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return getattr(support, "lower_bound", -INF), getattr(support, "upper_bound", INF)


BOUNDED = {
    "sigmoid, affine": (moved(normal(), SIGMOID, UP), -1, 2),
    "sigmoid, falling": (moved(normal(), SIGMOID, T.AffineTransform(-1.0, -3.0)), -4, -1),
    "exp, affine": (moved(normal(), EXP, TWICE), 1, INF),
    "exp, falling": (moved(normal(), EXP, T.AffineTransform(1.0, -2.0)), -INF, 1),
    "exp, sigmoid": (moved(normal(), EXP, SIGMOID), 0.5, 1),
    "tanh": (moved(normal(), TANH), -1, 1),
    "tanh, affine by a tensor": (moved(normal(), TANH, T.AffineTransform(1.0, torch.tensor(2.0))), -1, 3),
    "nested": (moved(normal(), T.ComposeTransform([SIGMOID, T.ComposeTransform([TWICE, EXP.inv])])), 0, math.log(3)),
    "inverse": (moved(normal(), SIGMOID, T.AffineTransform(-1.0, 2.0).inv), 0.5, 1),
    "softplus": (moved(normal(), SIGMOID, T.SoftplusTransform()), math.log(2), math.log(1 + math.e)),
    "ELU": (moved(normal(), T.ELUTransform()), -1, INF),
    "affine": (moved(normal(), T.AffineTransform(1.0, -2.0)), -INF, INF),
    "log-normal": (dist.LogNormal(torch.zeros(ROWS), 1.0), 0, INF),
    "log-normal, affine": (moved(dist.LogNormal(torch.zeros(ROWS), 1.0), TWICE), 1, INF),
    "log of uniform": (moved(dist.Uniform(torch.zeros(ROWS), 2.0), EXP.inv), -INF, math.log(2)),
    "logit of beta": (moved(dist.Beta(torch.ones(ROWS), 2.0), SIGMOID.inv), -INF, INF),
    "square of uniform": (moved(dist.Uniform(1.0, 2.0), T.PowerTransform(torch.tensor(2.0))), 1, 4),
    "square of beta": (moved(dist.Beta(torch.ones(ROWS), 2.0), T.PowerTransform(torch.tensor(2.0))), 0, 1),
    "root of uniform": (moved(dist.Uniform(1.0, 4.0), T.PowerTransform(torch.tensor(2.0)).inv), 1, 2),
    "one over beta": (moved(dist.Beta(torch.ones(ROWS), 2.0), T.PowerTransform(torch.tensor(-1.0))), 1, INF),
    "masked": (moved(normal(), SIGMOID, UP).mask(True), -1, 2),
    "event": (
        moved(normal(2).to_event(1), SIGMOID, T.AffineTransform(0.0, SIGNS)),
        torch.tensor([-1.0, 0.0]),
        torch.tensor([0.0, 2.0]),
    ),
    "event of transforms": (
        moved(normal(2).to_event(1), T.IndependentTransform(SIGMOID, 1), T.IndependentTransform(TWICE, 1).inv),
        -0.5,
        0,
    ),
    "mixture": (
        dist.MixtureSameFamily(dist.Categorical(torch.ones(ROWS, 2)), moved(normal(2), SIGMOID, UP)),
        -1,
        2,
    ),
    "flow": (moved(normal(2).to_event(1), T.affine_autoregressive(2)), -INF, INF),
}


@pytest.mark.parametrize(("fn", "low", "high"), BOUNDED.values(), ids=BOUNDED)
def test_bounds_of_transformed_priors(fn, low, high):
    support = support_of({"name": "z", "fn": fn})
    for found, exact in zip(bounds(support), (low, high), strict=True):
        exact = torch.as_tensor(exact, dtype=torch.float32)
        torch.testing.assert_close(torch.as_tensor(found, dtype=torch.float32).expand(exact.shape), exact)
    assert support.event_dim == len(fn.event_shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = fn.sample((500,))
    assert support.check(draws).all()
    torch.testing.assert_close(biject_to(support)(biject_to(support).inv(draws)), draws, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("base", [dist.LogNormal, dist.Weibull, dist.Pareto, dist.InverseGamma, dist.Kumaraswamy])
def test_distributions_that_say_their_support_are_believed(base):
    fn = base(torch.ones(ROWS), torch.ones(ROWS))
    found, said = support_of({"name": "z", "fn": fn}), fn.support
    assert (type(found), str(found)) == (type(said), str(said))


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (
            moved(dist.Uniform(torch.zeros(ROWS, 2), 1.0).to_event(1), T.affine_autoregressive(2)),
            "AffineAutoregressive",
        ),
        (moved(normal(2).to_event(1), EXP, T.AffineTransform(0.0, SIGNS)), "AffineTransform"),
    ],
    ids=["flow of bounded draws", "half-lines both ways"],
)
def test_an_image_that_is_not_known_is_refused(fn, kind):
    with pytest.raises(ValueError, match=f"'z' of TransformedDistribution, whose {kind} has no image") as refused:
        support_of({"name": "z", "fn": fn})
    assert "\n" not in str(refused.value)


def test_numbers_of_a_prior_on_an_interval_meet_an_integral():
    """z on (-1, 2), whose density torch keeps finite outside: q of F-VI lost itself there."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", moved(dist.Normal(torch.zeros(len(x)), 1.0), SIGMOID, UP))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = -1 + 3 * torch.randn(40).sigmoid() + 0.5 * torch.randn(40)
    grid = torch.linspace(-10, 10, 4001)
    prior, step = dist.Normal(0.0, 1.0).log_prob(grid)[:, None], grid[1] - grid[0]
    exact = (dist.Normal(-1 + 3 * grid[:, None].sigmoid(), 0.5).log_prob(x) + prior).logsumexp(0) + step.log()
    u = torch.linspace(-12, 12, 4001)
    log_p = ab.log_joint(model, x)(u[:, None, None].expand(-1, len(x), 1)).logsumexp(0) + (u[1] - u[0]).log()
    torch.testing.assert_close(log_p, exact, rtol=0, atol=1e-3)
    report = ab.compare(model, x, guides=("factorized",), settings=QUICK, progress=False)
    found = report.best.elbo
    assert found is not None
    error = found.standard_error.square().sum().sqrt() / len(x)
    assert exact.mean() - 0.1 < found.value.mean() < exact.mean() + 3 * error


@pytest.mark.parametrize("call", [ab.elbo, ab.iwae, ab.ais, ab.diagnose, ab.compare])
def test_guides_that_draw_outside_are_refused(call):
    """Where torch takes the support for all reals it clips what is outside, and has a density for it."""
    loc = torch.nn.Linear(1, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", moved(dist.Normal(torch.zeros(len(x)), 1.0), SIGMOID, UP))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        pyro.module("loc", loc)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc(x[:, None])[:, 0], 3.0))

    x = torch.linspace(-1, 2, 30)
    given = {"guides": {"mine": guide}, "settings": QUICK} if call is ab.compare else {}
    with pytest.raises(ValueError, match=r"draws 'z' outside .*, on which the model has it") as refused:
        call(model, *(() if call is ab.compare else (guide,)), x, **given)
    assert "\n" not in str(refused.value)


def test_a_power_of_a_bounded_draw_is_bounded():
    """A squared uniform draw on (1, 2), by quadrature."""
    x = torch.linspace(0, 5, ROWS)

    def model(x):
        with pyro.plate("data", len(x)):
            uniform = dist.Uniform(torch.ones(len(x)), 2.0)
            z = pyro.sample("z", moved(uniform, T.PowerTransform(torch.tensor(2.0))))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    u = torch.linspace(1, 2, 2001, dtype=torch.float64)[:, None]
    exact = dist.Normal(u**2, 0.5).log_prob(x).exp().mean(0).log()
    found = ab.ais(model, None, x, settings=ab.AISSettings(start="prior", mass="unit"))
    assert ((found.log_p - exact).abs() < 5 * found.standard_error + 0.01).all()


def test_bounds_that_are_fitted_are_refused():
    def model(x):
        high = pyro.param("high", torch.tensor(2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.zeros(len(x)), high))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x = torch.linspace(0, 2, ROWS)
    for call in (ab.latent_sites, lambda *given: ab.compare(*given, progress=False)):
        with pytest.raises(ValueError, match="'z' to stay as it is, got bounds that move with parameters"):
            call(model, x)
    u = torch.linspace(0, 2, 2001, dtype=torch.float64)[:, None]
    exact = dist.Normal(u, 0.5).log_prob(x).exp().mean(0).log()
    found = ab.ais(model, None, x, settings=ab.AISSettings(start="prior", mass="unit"))
    assert ((found.log_p - exact).abs() < 5 * found.standard_error + 0.01).all()


def test_bounds_in_rows_are_those_of_the_points_at_hand():
    """Half of the points, as a certificate takes: Pareto, whose bound is a tensor with a row per point."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Pareto(torch.ones(len(x)), 3.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Pareto(torch.ones(len(x)), 2 + x.square()))

    certificate, settings = ab.CertificateSettings(4, None, 20), ab.AISSettings(num_chains=4, num_temperatures=20)
    assert ab.bdmc(model, guide, torch.linspace(1, 3, 9), settings=settings, certificate=certificate).gap.shape == (4,)
