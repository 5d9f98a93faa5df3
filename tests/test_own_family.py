"""q* in the guide's own family: conjugate models, whose exact posterior it has to find, and guides without a name."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Generator, Tensor
from torch.distributions import kl_divergence

from amortized_bayes import LocalSettings, optimize_local
from amortized_bayes.inference.optimize import LocalOptimum
from amortized_bayes.joint import global_seed, joint_density, read_family
from amortized_bayes.models import LinearGaussian

pytestmark = pytest.mark.usefixtures("float64")

SHORT = LocalSettings(num_score=200)
Program = Callable[[Tensor], None]


def agrees(found: LocalOptimum, exact: Tensor, lost: float = 0.01) -> None:
    difference = found.elbo_star - exact
    assert (difference.abs() < 5 * found.standard_error + lost).all()
    assert abs(difference.mean()) < 4 * found.standard_error.mean() / math.sqrt(len(exact)) + lost / 2
    assert (found.residual < 0.01 + 2 * found.residual_error).all()


class Linear:
    """A linear-Gaussian model of D = 5 with correlated posteriors, and a guide off the exact posterior at will."""

    def __init__(self, num_points: int = 20) -> None:
        generator = Generator().manual_seed(4)
        weight = torch.randn(10, 5, generator=generator) @ torch.diag(torch.tensor([0.3, 1.0, 1.0, 2.0, 5.0]))
        self.model = LinearGaussian(weight, torch.zeros(10), 0.8)
        z, e = torch.randn(num_points, 5, generator=generator), torch.randn(num_points, 10, generator=generator)
        self.x = z @ weight.T + 0.8 * e
        self.exact = self.model.log_evidence(self.x)

    def guide(self, off: float = 0.0, stretch: float = 1.0) -> Program:
        def program(x: Tensor) -> None:
            posterior = self.model.posterior(x)
            tril = stretch * posterior.scale_tril
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.MultivariateNormal(posterior.mean + off * tril.sum(-1), scale_tril=tril))

        return program


@pytest.mark.parametrize(("off", "stretch"), [(0.0, 1.0), (0.5, 2.5), (-3.0, 0.2)])
def test_a_full_covariance_gaussian_is_the_exact_posterior(off: float, stretch: float) -> None:
    problem = Linear()
    found = optimize_local(problem.model, problem.guide(off, stretch), problem.x, family="own", settings=SHORT)
    agrees(found, problem.exact)
    assert found.family == "full-covariance gaussian"
    assert not found.contains
    assert found.factors is not None
    posterior, q = problem.model.posterior(problem.x), found.factors["z"]
    assert isinstance(q, torch.distributions.MultivariateNormal)
    torch.testing.assert_close(q.loc[:, 0], posterior.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(
        q.covariance_matrix[:, 0], posterior.covariance_matrix.expand(20, 5, 5), rtol=0.1, atol=1e-3
    )
    torch.testing.assert_close(found.q.scale, posterior.stddev.expand(20, 5), rtol=0.05, atol=0)


def test_the_residual_of_a_member_is_its_distance_to_the_optimum() -> None:
    """Near the optimum what is missing is the KL divergence, of a shift by δ: half of its squared length."""
    problem = Linear()
    still = LocalSettings(max_steps=1, max_rounds=1, num_windows=1, learning_rate=1e-9, num_residual=400)
    shifted = optimize_local(problem.model, problem.guide(0.2), problem.x, family="own", settings=still)
    torch.testing.assert_close(shifted.residual.mean().item(), 5 * 0.5 * 0.2**2, rtol=0.05, atol=0)
    wide = optimize_local(problem.model, problem.guide(stretch=1.1), problem.x, family="own", settings=still)
    missing = 5 * (0.5 * (1.1**2 - 1) - math.log(1.1))
    assert wide.residual.mean().item() == pytest.approx(missing, rel=0.3)  # up to the bend of L
    counts = torch.tensor([3.0, 0.0, 11.0])
    gamma = optimize_local(gamma_poisson, gamma_guide(1.1, 1.1), counts, family="own", settings=still)
    exact = kl_divergence(dist.Gamma(1.1 * (2 + counts), 1.1 * 4.0), dist.Gamma(2 + counts, 4.0))
    assert gamma.residual.mean().item() == pytest.approx(exact.mean().item(), rel=0.5)  # Fisher by 200 draws


def gamma_poisson(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 1.0))
        pyro.sample("x", dist.Poisson(3 * rate), obs=x)


def gamma_guide(concentration: float = 1.0, rate: float = 1.0) -> Program:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(concentration * (2 + x), rate * 4.0))

    return guide


@pytest.mark.parametrize(("concentration", "rate"), [(0.3, 0.3), (10.0, 8.0)])
def test_gamma_poisson(concentration: float, rate: float) -> None:
    x = torch.tensor([0.0, 1.0, 2.0, 5.0, 9.0, 30.0])
    found = optimize_local(gamma_poisson, gamma_guide(concentration, rate), x, family="own", settings=SHORT)
    agrees(found, dist.GammaPoisson(2.0, torch.tensor(1 / 3)).log_prob(x))
    assert found.family == "gamma"
    assert found.factors is not None
    q = found.factors["rate"]
    torch.testing.assert_close(q.mean[:, 0], (2 + x) / 4, rtol=0.03, atol=0)
    torch.testing.assert_close(q.variance[:, 0], (2 + x) / 16, rtol=0.15, atol=0)


def test_beta_bernoulli_of_several_in_a_point() -> None:
    """Ten throws of each of three coins a point; a Beta posterior for each coin."""

    def model(heads: Tensor) -> None:
        with pyro.plate("points", len(heads)):
            bias = pyro.sample("bias", dist.Beta(2.0 * torch.ones(3), 1.0).to_event(1))
            pyro.sample("heads", dist.Binomial(10, bias).to_event(1), obs=heads)

    def guide(heads: Tensor) -> None:
        with pyro.plate("points", len(heads)):
            pyro.sample("bias", dist.Beta(1.0 + 0.5 * heads, 3.0 + torch.zeros_like(heads)).to_event(1))

    heads = torch.tensor([[0.0, 5.0, 10.0], [2.0, 2.0, 9.0]])
    found = optimize_local(model, guide, heads, family="own", plate="points", settings=SHORT)
    agrees(found, dist.BetaBinomial(2.0, 1.0, 10).log_prob(heads).sum(-1))
    assert found.family == "beta"
    assert found.factors is not None
    torch.testing.assert_close(found.factors["bias"].mean, (2 + heads) / 13, rtol=0.05, atol=0)


def test_dirichlet_multinomial() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            share = pyro.sample("share", dist.Dirichlet(torch.tensor([0.5, 1.0, 2.0, 1.0])))
            pyro.sample("x", dist.Multinomial(20, share, validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("share", dist.Dirichlet(1.5 + 0.5 * x))

    x = torch.tensor([[0.0, 4.0, 6.0, 10.0], [20.0, 0.0, 0.0, 0.0], [5.0, 5.0, 5.0, 5.0]])
    found = optimize_local(model, guide, x, family="own", settings=SHORT)
    agrees(found, dist.DirichletMultinomial(torch.tensor([0.5, 1.0, 2.0, 1.0]), 20).log_prob(x))
    assert found.family == "dirichlet"


def test_sites_of_different_kinds() -> None:
    """A Gaussian pair, full, a Gamma and a Gaussian, each with its own data: the evidence is a product."""
    weight, noise = torch.tensor([[1.0, 0.9], [0.2, 1.0]]), 0.3

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            u = pyro.sample("u", dist.LogNormal(0.0, 1.0))
            pyro.sample("a", dist.Normal(z @ weight.T, noise).to_event(1), obs=x[:, :2])
            pyro.sample("b", dist.Poisson(3 * rate), obs=x[:, 2])
            pyro.sample("c", dist.Normal(u.log(), 0.5), obs=x[:, 3])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("u", dist.LogNormal(0.5 * x[:, 3], 0.6))
            pyro.sample("rate", dist.Gamma(1 + x[:, 2], 3.0))
            pyro.sample("z", dist.MultivariateNormal(0.5 * x[:, :2], scale_tril=0.5 * torch.eye(2)))

    x = torch.tensor([[0.5, -1.0, 3.0, 0.2], [1.5, 0.3, 0.0, -1.0], [0.0, 0.0, 8.0, 1.0]])
    covariance = weight @ weight.T + noise**2 * torch.eye(2)
    exact = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(x[:, :2])
    exact = exact + dist.GammaPoisson(2.0, torch.tensor(1 / 3)).log_prob(x[:, 2])
    exact = exact + dist.Normal(0.0, math.sqrt(1.25)).log_prob(x[:, 3])
    found = optimize_local(model, guide, x, family="own", settings=SHORT)
    agrees(found, exact)
    assert found.family == "full-covariance gaussian × gamma × gaussian"
    assert found.factors is not None
    assert list(found.factors) == ["z", "rate", "u"]


@pytest.mark.slow
def test_a_misfit_is_the_best_of_the_family() -> None:
    """For Gamma(a, b) as target, KL(Exponential(r) || Gamma(a, b)) is least at r = b / a."""
    x = torch.tensor([0.0, 2.0, 6.0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Exponential(torch.ones_like(x)))

    found = optimize_local(gamma_poisson, guide, x, family="own", settings=LocalSettings(num_score=4000))
    posterior, best = dist.Gamma(2 + x, torch.tensor(4.0)), dist.Exponential(4 / (2 + x))
    lost = kl_divergence(best, posterior)
    agrees(found, dist.GammaPoisson(2.0, torch.tensor(1 / 3)).log_prob(x) - lost, lost=0.03)
    assert found.factors is not None
    torch.testing.assert_close(1 / found.factors["rate"].mean[:, 0], 4 / (2 + x), rtol=0.2, atol=0)


KINDS: dict[Any, tuple[float, ...]] = {
    dist.Laplace: (0.3, 1.5),
    dist.StudentT: (6.0, 0.3, 1.5),
    dist.Gumbel: (0.3, 1.5),
    dist.Weibull: (1.3, 1.5),
    dist.InverseGamma: (3.0, 2.0),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_kind_finds_itself(kind: Any) -> None:
    """With the prior for its own posterior and a guide of other parameters, q* is the prior."""
    numbers = KINDS[kind]

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", kind(*map(torch.tensor, numbers)))
            pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", kind(*(torch.tensor(1.4 * number) for number in numbers)))

    x = torch.zeros(6)
    found = optimize_local(model, guide, x, family="own", settings=SHORT)
    agrees(found, dist.Normal(0.0, 1.0).log_prob(x), lost=0.03)


def test_restarts_move_the_members() -> None:
    x = torch.tensor([0.0, 4.0])
    found = optimize_local(
        gamma_poisson, gamma_guide(2.0), x, family="own", settings=LocalSettings(num_restarts=2, num_score=200)
    )
    assert found.spread is not None
    assert found.elbo_best is not None
    assert found.best_error is not None
    exact = dist.GammaPoisson(2.0, torch.tensor(1 / 3)).log_prob(x)
    assert ((found.elbo_best - exact).abs() < 5 * found.best_error + 0.01).all()


def plain(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def site(make: Callable[[Tensor], Any]) -> Program:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", make(x))

    return guide


def low_rank(rank: int) -> Program:
    return site(
        lambda x: dist.LowRankMultivariateNormal(torch.zeros(len(x), 3), torch.ones(len(x), 3, rank), torch.ones(3))
    )


def with_auxiliary(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("v", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def depends(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        v = pyro.sample("v", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(v[:, None].expand(-1, 3), 1.0).to_event(1))


def mixture(x: Tensor) -> Any:
    shape = (len(x), 2, 3)
    return dist.MixtureOfDiagNormals(torch.randn(3).expand(shape), torch.ones(shape), torch.zeros(len(x), 2))


def flow(x: Tensor) -> Any:
    base = dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1)
    return dist.TransformedDistribution(base, [dist.transforms.TanhTransform()])


def moved(x: Tensor) -> Any:
    base = dist.MultivariateNormal(torch.zeros(len(x), 3), torch.eye(3))
    return dist.TransformedDistribution(base, [dist.transforms.AffineTransform(0.0, 1.0, event_dim=1)])


def kinds_of(guide: Program) -> list[str] | None:
    with global_seed(0):
        factors = read_family(joint_density(plain, torch.zeros(4)), guide)
    return None if factors is None else [f"{f.kind.__name__}{' contained' * f.contains}" for f in factors]


def test_guides_that_have_a_name_and_those_that_have_none() -> None:
    x = torch.zeros(4)
    automatic = AutoNormal(plain)
    automatic(x)
    assert kinds_of(automatic) == ["Normal"]
    assert kinds_of(site(lambda x: dist.Laplace(torch.zeros(3), 1.0).to_event(1))) == ["Laplace"]
    assert kinds_of(low_rank(1)) == ["MultivariateNormal contained"]
    assert kinds_of(low_rank(2)) == ["MultivariateNormal"]  # which any covariance of three latents has
    assert kinds_of(site(moved)) == ["MultivariateNormal"]
    for guide in (site(mixture), site(flow)):
        assert kinds_of(guide) is None
    for guide in (with_auxiliary, depends):
        with pytest.raises(ValueError, match="got 'v' of 1 numbers and 0 made of them"):
            kinds_of(guide)
    with pytest.raises(ValueError, match="expected a guide whose family has a name"):
        optimize_local(plain, site(mixture), x, family="own")
    with pytest.raises(ValueError, match="whose family is to be searched, got none"):
        optimize_local(plain, None, x, family="own")
