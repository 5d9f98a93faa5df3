"""Pyro's joint autoguides: the density of a point is that of their Gaussian, and what has none is refused."""

import logging
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
)
from torch.distributions import biject_to, constraints

import amortized_bayes as ab

N = 5
X = torch.linspace(-1, 1, 2 * N).reshape(N, 2)
JOINT = (AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal)
QUICK = ab.DiagnosisSettings(
    num_particles=200, ais=ab.AISSettings(num_temperatures=40), certificate=ab.CertificateSettings(20, 0.1, 40)
)


def several(x):
    """Sites of all kinds, two of them shared by the points, the second of those after the local ones."""
    shift = pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    points = pyro.plate("points", len(x))
    with points:
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        rate = pyro.sample("rate", dist.LogNormal(torch.zeros(len(x)), 1.0))
        mix = pyro.sample("mix", dist.Dirichlet(torch.ones(len(x), 3)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with points:
        mean = shift + z * rate[:, None] + mix[:, :1]
        pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)


def simple(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def fitted(kind, model, x=X):
    """An autoguide at parameters drawn at random."""
    guide = kind(model, init_scale=0.6)
    guide(x)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
            assert torch.isfinite(parameter).all(), name
    return guide


def full(guide):
    """Mean and covariance of the flat vector of an autoguide."""
    q = guide.get_posterior()
    return q.mean, torch.diag(q.variance) if isinstance(guide, AutoDiagonalNormal) else q.covariance_matrix


@torch.no_grad()
def exact_elbo(guide):
    """Of ``simple``, per point."""
    loc, sigma = full(guide)
    loc, blocks = loc.reshape(N, 2), torch.stack([sigma[2 * n : 2 * n + 2, 2 * n : 2 * n + 2] for n in range(N)])
    variances = blocks.diagonal(dim1=1, dim2=2).sum(-1)
    likelihood = -math.log(2 * math.pi * 0.25) - ((X - loc).square().sum(-1) + variances) / 0.5
    return likelihood - 0.5 * (variances + loc.square().sum(-1) - 2 - blocks.logdet())


EVIDENCE = dist.Normal(0.0, math.sqrt(1.25)).log_prob(X).sum(-1)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", JOINT)
def test_the_density_is_that_of_the_gaussian_without_what_ties_points(float64, kind):
    """Σ'_nm = Σ_nθ Σ_θθ⁻¹ Σ_θm between points, all else as it was, Jacobians included."""
    torch.manual_seed(0)
    x = X.double()
    guide = fitted(kind, several, x)
    loc, sigma = full(guide)
    names = list(guide._unconstrained_shapes)
    sizes = [math.prod(shape) for shape in guide._unconstrained_shapes.values()]
    places = dict(zip(names, torch.arange(sum(sizes)).split(sizes), strict=True))
    theta = torch.cat([places["shift"], places["scale"]])
    points = torch.cat([places[name].reshape(N, -1) for name in ("z", "rate", "mix")], 1)
    gain = sigma[:, theta] @ torch.linalg.inv(sigma[theta][:, theta])
    product = gain @ sigma[theta]
    for rows in (theta, *points):
        product[rows[:, None], rows] = sigma[rows[:, None], rows]
    product[:, theta], product[theta] = sigma[:, theta], sigma[theta]

    trace = pyro.poutine.trace(ab.per_point_guide(guide, plate="points")).get_trace(x)
    supports = {"z": constraints.real, "rate": constraints.positive, "mix": constraints.simplex}
    supports |= {"shift": constraints.real, "scale": constraints.positive}
    flat, jacobian = torch.zeros(len(loc)), 0.0
    for name in names:
        transform, value = biject_to(supports[name]), trace.nodes[name]["value"]
        free = transform.inv(value)
        flat[places[name]] = free.reshape(-1)
        jacobian += transform.log_abs_det_jacobian(free, value).sum()
    exact = dist.MultivariateNormal(loc, product).log_prob(flat) - jacobian
    assert trace.log_prob_sum().item() == pytest.approx(exact.item(), rel=1e-9)

    weights = ab.log_weights(several, guide, x, num_particles=3, plate="points")
    assert weights.log_q.shape == (1, 3, N)
    assert weights.local.isfinite().all()


@pytest.mark.parametrize("kind", JOINT)
@pytest.mark.slow_cases("AutoLowRankMultivariateNormal", "AutoMultivariateNormal")
def test_elbo_and_iwae_are_those_of_the_marginals(kind):
    torch.manual_seed(0)
    guide = fitted(kind, simple)
    exact = exact_elbo(guide)
    for found in (ab.elbo(simple, guide, X, num_draws=300), ab.elbo(simple, guide, X, num_draws=300, chunk_size=2)):
        assert ((found.value - exact) / found.standard_error).abs().max() < 4
        assert found.shared_error == 0
    bound = ab.iwae(simple, guide, X, num_particles=2_000)  # in blocks
    assert ((bound.value - EVIDENCE) / bound.standard_error).abs().max() < 4
    assert bound.shared_error == 0


def test_the_exact_posterior_has_equal_weights(float64):
    guide = AutoMultivariateNormal(simple)
    x = X.double()
    guide(x)
    with torch.no_grad():
        guide.loc.copy_(0.8 * x.reshape(-1))
        guide.scale = torch.full_like(guide.loc, math.sqrt(0.2))
    weights = ab.log_weights(simple, guide, x, num_particles=7).local[0]
    exact = dist.Normal(torch.zeros(()), math.sqrt(1.25)).log_prob(x).sum(-1)
    assert weights.sub(exact).abs().max().item() == pytest.approx(0, abs=1e-9)


def test_diagnose_takes_an_autoguide_as_it_is():
    torch.manual_seed(0)
    guide = fitted(AutoDiagonalNormal, simple)
    report = ab.diagnose(simple, guide, X, settings=QUICK)
    gap = report.gaps().inference
    assert ((gap.value - (EVIDENCE - exact_elbo(guide))) / gap.standard_error).abs().max() < 4
    assert report.gaps().approximation.mean == pytest.approx(0, abs=0.05)


def test_ties_between_points_are_said_once(caplog):
    torch.manual_seed(0)
    tied, loose = fitted(AutoMultivariateNormal, simple), fitted(AutoDiagonalNormal, simple)
    with caplog.at_level(logging.WARNING):
        for guide in (tied, tied, loose):
            ab.elbo(simple, guide, X)
    assert [record.message.split()[0] for record in caplog.records] == ["AutoMultivariateNormal"]
    assert "ties points" in caplog.text


def test_a_tensor_that_holds_no_points_may_come_first():
    def model(weights, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * weights[:2], 0.5).to_event(1), obs=x)

    guide = AutoDiagonalNormal(model)
    guide(torch.ones(3), X)
    assert ab.log_weights(model, guide, torch.ones(3), X, num_particles=4).local.shape == (1, 4, N)


def test_other_points_than_those_of_the_fit_are_refused():
    guide = fitted(AutoDiagonalNormal, simple)
    for call in (ab.elbo, ab.iwae, ab.log_weights):
        with pytest.raises(ValueError, match="expected all 5 points that AutoDiagonalNormal was fitted to, got 2"):
            call(simple, guide, X[:2])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (AutoDelta, "AutoDelta puts all mass on one point and has no density"),
        (AutoLaplaceApproximation, r"`.laplace_approximation\(x\)`"),
    ],
)
def test_a_point_estimate_is_refused(kind, words):
    guide = kind(simple)
    guide(X)
    for call in (ab.elbo, ab.iwae, ab.log_weights, ab.diagnose):
        with pytest.raises(ValueError, match=words):
            call(simple, guide, X)


def test_a_completed_laplace_approximation_works():
    guide = AutoLaplaceApproximation(simple)
    guide(X)
    with torch.no_grad():
        guide.loc.copy_(0.8 * X.reshape(-1))
    found = ab.elbo(simple, guide.laplace_approximation(X), X, num_draws=20)
    assert found.value.numpy() == pytest.approx(EVIDENCE.numpy(), abs=1e-4)


def test_lists_and_what_was_never_run_are_refused():
    with pytest.raises(ValueError, match="AutoDiagonalNormal was never run"):
        ab.elbo(simple, AutoDiagonalNormal(simple), X)
    parts = AutoGuideList(simple)
    parts.append(AutoDiagonalNormal(simple))
    parts(X)
    with pytest.raises(ValueError, match="expected one autoguide of all latents, got a list of AutoDiagonalNormal"):
        ab.elbo(simple, parts, X)


def test_an_easyguide_works_where_it_is_per_point():
    class Easy(EasyGuide):
        def guide(self, x):
            group = self.group(match="z")
            with self.plate("data", len(x)):
                group.sample("latents", dist.Normal(0.8 * x, math.sqrt(0.2)).to_event(1))

    guide = Easy(simple)
    assert ab.iwae(simple, guide, X, num_particles=3).value.numpy() == pytest.approx(EVIDENCE.numpy(), abs=1e-4)
