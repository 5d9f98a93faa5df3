"""q* against closed forms: linear-Gaussian, constrained and two-site models, other plates, batches and restarts."""

import math
from typing import Literal

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Generator, Tensor

from amortized_bayes.guides import Constant
from amortized_bayes.inference.optimize import LocalOptimum, LocalSettings, optimize_local
from amortized_bayes.joint import Gaussian, draw_shared, joint_density
from amortized_bayes.models import LinearGaussian
from amortized_bayes.sites import latent_sites

pytestmark = pytest.mark.usefixtures("float64")


class Problem:
    """A linear-Gaussian model of D = 6 and a guide that is wrong in mean and scale, by a known number of nats."""

    def __init__(self, num_points: int = 30, off: float = 0.5, stretch: float = 1.5, dim: int = 6) -> None:
        generator = Generator().manual_seed(4)
        weight = torch.randn(2 * dim, dim, generator=generator) / 2
        self.model = LinearGaussian(weight, torch.zeros(2 * dim), 0.8)
        z, e = (torch.randn(num_points, size, generator=generator) for size in (dim, 2 * dim))
        self.x = z @ weight.T + 0.8 * e
        precision = self.model.posterior_precision()
        self.best_scale = precision.diagonal().rsqrt()
        self.shift, self.stretch = off * self.best_scale, stretch
        self.best = self.model.best_factorized_elbo(self.x)
        # log p - L grows by ½ δᵀΛδ for the mean, and by Σ (½ c² - ½ - log c) for scales c times the best.
        bend = 0.5 * (stretch**2 - 1) - math.log(stretch)
        self.amortization_gap = (0.5 * self.shift @ precision @ self.shift + dim * bend).item()

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            mean = self.model.posterior(x).mean + self.shift
            pyro.sample("z", dist.Normal(mean, self.stretch * self.best_scale).to_event(1))


def agrees(found: LocalOptimum, exact: Tensor, lost: float = 0.02) -> None:
    difference = found.elbo_star - exact
    error = found.standard_error.square().sum().sqrt() / len(exact)
    assert abs(difference.mean()) < 3 * error + lost
    assert (difference.abs() < 5 * found.standard_error + lost).all()


def test_linear_gaussian_in_closed_form() -> None:
    problem = Problem()
    found = optimize_local(problem.model, problem.guide, problem.x)
    agrees(found, problem.best)
    assert found.evaluations.max() <= 5000
    torch.testing.assert_close(found.q.scale, problem.best_scale.expand(30, 6), rtol=0.1, atol=0)
    torch.testing.assert_close(found.q.loc, problem.model.posterior(problem.x).mean, rtol=0, atol=0.05)
    assert abs(found.residual.mean()) < 3 * found.residual_error.mean() + 0.01


def test_the_residual_sees_what_is_left() -> None:
    """With no time to move, the residual is the amortization gap, up to the bend of L in the scales."""
    problem = Problem(off=0.3, stretch=1.0)
    still = LocalSettings(max_steps=1, max_rounds=1, num_windows=1, learning_rate=1e-9, num_residual=400)
    found = optimize_local(problem.model, problem.guide, problem.x, settings=still)
    gradient = problem.model.posterior_precision() @ problem.shift * problem.best_scale
    expected = 0.5 * gradient.square().sum()
    assert abs(found.residual.mean() - expected) < 4 * found.residual_error.mean() / 30**0.5
    torch.testing.assert_close(found.elbo_star.mean(), problem.best.mean() - problem.amortization_gap, atol=0.1, rtol=0)


@pytest.mark.slow
def test_scales_many_times_too_wide_do_no_harm() -> None:
    """Gradients are noisy there, and hide in the error of the residual how much is left."""
    problem = Problem(60, 0.0, stretch=4.0, dim=20)
    found = optimize_local(problem.model, problem.guide, problem.x)
    ratio = found.q.scale / problem.best_scale
    off = found.q.loc - problem.model.posterior(problem.x).mean
    of_mean = 0.5 * ((off @ problem.model.posterior_precision()) * off).sum(-1)
    short = of_mean + (0.5 * (ratio.square() - 1) - ratio.log()).sum(-1)  # exactly
    assert short.mean() < 0.015
    assert short.max() < 0.05


@pytest.mark.parametrize("family", ["gaussian", "own"])
@pytest.mark.parametrize("off", [5.0, 20.0])
def test_a_start_many_scales_away_does_no_harm(off: float, family: Literal["gaussian", "own"]) -> None:
    problem = Problem(10, off, stretch=1.0)
    found = optimize_local(problem.model, problem.guide, problem.x, family=family)
    posterior = problem.model.posterior(problem.x)
    q = dist.MultivariateNormal(found.q.loc, scale_tril=found.q.scale.diag_embed())
    lost = problem.best - problem.model.log_evidence(problem.x) + torch.distributions.kl_divergence(q, posterior)
    assert (lost > -1e-9).all()
    assert lost.mean() < 0.01
    assert lost.max() < 0.04
    assert (found.residual < 0.01 + 2 * found.residual_error).all()
    assert found.evaluations.max() < 20_000


def test_only_points_that_are_not_there_yet_go_on() -> None:
    problem = Problem(10, off=0.0, stretch=1.0)
    far = torch.arange(10) == 3
    loc = problem.model.posterior(problem.x).mean + 40 * problem.best_scale * far[:, None]
    start = Gaussian(loc, problem.best_scale.expand(10, 6))
    found = optimize_local(problem.model, start, problem.x)
    assert ((found.evaluations > 4_100) == far).all()
    capped = optimize_local(problem.model, start, problem.x, settings=LocalSettings(max_rounds=1))
    assert ((capped.residual > 1.0) == far).all()


def test_the_prior_and_a_gaussian_are_starts_too() -> None:
    problem = Problem(12)
    long = LocalSettings(max_steps=600, learning_rate=0.03)
    agrees(optimize_local(problem.model, None, problem.x, settings=long), problem.best)
    given = Gaussian(torch.zeros(12, 6), torch.ones(12, 6))
    agrees(optimize_local(problem.model, given, problem.x, settings=long), problem.best)


@pytest.mark.slow
def test_slots_change_hands_and_every_point_is_served() -> None:
    problem = Problem(37)
    together = optimize_local(problem.model, problem.guide, problem.x)
    calls: list[tuple[int, int]] = []
    apart = optimize_local(
        problem.model,
        problem.guide,
        problem.x,
        settings=LocalSettings(memory_budget=1e5),
        progress=lambda *c: calls.append(c),
    )
    assert calls[-1] == (37, 37)
    agrees(apart, problem.best)
    agrees(together, problem.best)
    assert not torch.equal(apart.elbo_star, together.elbo_star)


@pytest.mark.slow
def test_the_seed_decides_and_the_global_generator_stays() -> None:
    problem, short = Problem(5), LocalSettings(max_steps=20)
    state = torch.get_rng_state()
    once = optimize_local(problem.model, problem.guide, problem.x, settings=short, seed=1)
    torch.testing.assert_close(torch.get_rng_state(), state)
    again = optimize_local(problem.model, problem.guide, problem.x, settings=short, seed=1)
    other = optimize_local(problem.model, problem.guide, problem.x, settings=short, seed=2)
    assert torch.equal(once.elbo_star, again.elbo_star)
    assert not torch.equal(once.elbo_star, other.elbo_star)


def test_restarts_give_a_spread_and_a_best() -> None:
    problem = Problem(8)
    found = optimize_local(problem.model, problem.guide, problem.x, settings=LocalSettings(num_restarts=3))
    assert found.spread is not None
    assert found.elbo_best is not None
    assert found.best_error is not None
    assert (found.spread < 0.3).all()
    assert ((found.elbo_best - problem.best).abs() < 5 * found.best_error + 0.02).all()
    assert (found.evaluations > 2 * 500).all()


def test_nothing_of_the_model_moves() -> None:
    problem = Problem(4)
    problem.model.register_parameter("extra", torch.nn.Parameter(torch.ones(2)))
    before = {name: t.clone() for name, t in problem.model.state_dict().items()}
    optimize_local(problem.model, problem.guide, problem.x, settings=LocalSettings(max_steps=20))
    assert all(torch.equal(t, before[name]) for name, t in problem.model.state_dict().items())
    assert all(p.grad is None for p in problem.model.parameters())


def test_a_constrained_site_in_another_plate() -> None:
    """The exact posterior of u is a log normal, so q* on the unconstrained space is exact."""
    x = torch.tensor([0.5, 1.0, 3.0, 8.0])

    def model(x: Tensor) -> None:
        with pyro.plate("observations", len(x)):
            u = pyro.sample("u", dist.LogNormal(0.3, 0.8))
            pyro.sample("x", dist.LogNormal(u.log(), 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("observations", len(x)):
            pyro.sample("u", dist.Gamma(2.0 * x + 1, torch.tensor(2.0)))

    exact = dist.LogNormal(0.3, math.hypot(0.8, 0.5)).log_prob(x)
    found = optimize_local(model, guide, x, plate="observations")
    agrees(found, exact, lost=0.01)
    assert (found.standard_error < 0.02).all()


def test_two_sites_of_which_one_depends_on_the_other() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a[:, None].expand(-1, 2), 0.5).to_event(1))
            pyro.sample("x", dist.Normal(b, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.5 * x.mean(-1), 0.6))
            pyro.sample("b", dist.Normal(0.5 * (x + a[:, None]), 0.45).to_event(1))

    x = torch.randn(10, 2) * 1.5
    evidence = torch.distributions.MultivariateNormal(torch.zeros(2), torch.ones(2, 2) + 1.25 * torch.eye(2))
    precision = torch.tensor([[9.0, -4.0, -4.0], [-4.0, 5.0, 0.0], [-4.0, 0.0, 5.0]])
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    agrees(optimize_local(model, guide, x), evidence.log_prob(x) - gap)


def test_shared_latents_are_held_fixed() -> None:
    def model(x: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None] * weight, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("weight", dist.Normal(torch.ones(3), 0.1).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.4))

    x = torch.randn(5, 3)
    (fixed,) = draw_shared(guide, x)
    covariance = fixed["weight"][:, None] * fixed["weight"] + 0.25 * torch.eye(3)
    exact = torch.distributions.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)
    agrees(optimize_local(model, guide, x, fixed=fixed), exact)  # one dimension: no factorized gap
    with pytest.raises(ValueError, match="'weight' is outside plate 'data'; expected its value in `fixed`"):
        optimize_local(model, guide, x)


def test_units_of_the_latent_do_not_matter() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(5000.0, 1000.0))
            pyro.sample("x", dist.Normal(z, 1000.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * (x + 5000.0) + 400.0, 500.0))

    x = 5000 + 1400 * torch.randn(20)
    agrees(optimize_local(model, guide, x), dist.Normal(5000.0, 2e6**0.5).log_prob(x))


def test_bad_input() -> None:
    problem = Problem(3)
    with pytest.raises(ValueError, match="num_samples with an even number, since draws come in pairs, got 5"):
        LocalSettings(num_samples=5)
    with pytest.raises(ValueError, match="max_steps of 10 or more, got 3"):
        LocalSettings(max_steps=3)
    with pytest.raises(ValueError, match="max_rounds of 1 or more, got 0"):
        LocalSettings(max_rounds=0)
    with pytest.raises(ValueError, match="num_restarts of 1 or more"):
        LocalSettings(num_restarts=0)
    with pytest.raises(ValueError, match="restart_spread of 0 or more"):
        LocalSettings(restart_spread=-1.0)
    with pytest.raises(ValueError, match=r"shape \(3, 6\), got \(3, 5\)"):
        optimize_local(problem.model, Gaussian(torch.zeros(3, 5), torch.ones(3, 5)), problem.x)
    with pytest.raises(ValueError, match="misses the model's latent site 'z'"):
        optimize_local(problem.model, lambda x: None, problem.x)
    bad = problem.x.clone()
    bad[1, 0] = math.nan
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="got 1 values that are nan"):
        optimize_local(problem.model, problem.guide, bad)
    assert joint_density(problem.model, problem.x).num_points == 3


@pytest.mark.parametrize("seed", range(4))
def test_luck_of_the_kept_draws_brings_no_start_back(seed: int) -> None:
    """All points share the draws that compare start and end; on them a start too wide by a fifth often wins."""
    model = LinearGaussian(torch.ones(1, 1), torch.zeros(1), 1.0)
    x = torch.linspace(-2, 2, 20)[:, None]

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.2 * 0.5**0.5).to_event(1))

    found = optimize_local(model, guide, x, settings=LocalSettings(max_steps=100), seed=seed)
    assert (found.q.scale.log() - 0.5 * math.log(0.5)).abs().max() < 0.08


def test_data_of_another_precision_than_the_guide_are_taken():
    x = torch.randn(6, 3)
    model = LinearGaussian(torch.ones(3, 2).float(), torch.zeros(3).float(), 0.5)
    guide = Constant(latent_sites(model, x.float()).local, num_data=6).float()
    settings = LocalSettings(max_steps=10, max_rounds=1)
    one, other = (optimize_local(model, guide, data, settings=settings).elbo_star for data in (x.float(), x.double()))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3, check_dtype=False)
