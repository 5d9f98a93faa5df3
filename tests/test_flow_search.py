"""q*flow of each point against closed forms, quadrature and its own start; neighbours, bad gradients, bad input."""

import math
from collections.abc import Collection
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Generator, Tensor

from amortized_bayes.flows import FAMILIES, FLOWS, FlowSettings
from amortized_bayes.inference import flow_search
from amortized_bayes.inference.flow_points import PointFlows
from amortized_bayes.inference.flow_search import FlowOptimum, FlowSearchSettings, optimize_flow
from amortized_bayes.inference.optimize import LocalSettings, optimize_local
from amortized_bayes.joint import Gaussian, joint_density
from amortized_bayes.models import LinearGaussian

pytestmark = pytest.mark.usefixtures("float64")


def searching(**options: float) -> FlowSearchSettings:
    """With ten draws, which are enough for small models and take half the time."""
    return FlowSearchSettings(**{"num_samples": 10, **options})  # pyright: ignore[reportArgumentType]


QUICK = searching(num_steps=10, num_kept=10, num_score=10)


SEARCHES_QUICKLY = ("gaussian", "planar", "realnvp", "sylvester")


def searched(name: str, *more: float, quick: Collection[str] = SEARCHES_QUICKLY) -> Any:
    """A parameter set; searches that take many seconds are slow."""
    return pytest.param(name, *more, marks=() if name in quick else pytest.mark.slow)


every_family = pytest.mark.parametrize("name", [searched(n) for n in FAMILIES if not n.endswith("contextual")])


def sized(name: str, *hidden: int) -> FlowSettings:
    return FlowSettings(name, num_flows=2, hidden=hidden or (16,))


# Against closed forms and quadrature ----------------------------------------------------------------------------------


class Problem:
    """A linear-Gaussian model of D = 4 with a correlated posterior, and its best factorized Gaussian."""

    def __init__(self, num_points: int = 12) -> None:
        generator = Generator().manual_seed(4)
        weight = torch.randn(6, 4, generator=generator)
        weight[:, 1] += weight[:, 0]
        self.model = LinearGaussian(weight, torch.zeros(6), 1.0)
        z, e = torch.randn(num_points, 4, generator=generator), torch.randn(num_points, 6, generator=generator)
        self.x = z @ weight.T + e
        self.evidence = self.model.log_evidence(self.x)
        self.best = self.model.best_factorized_elbo(self.x)
        self.gap = (self.evidence - self.best)[0].item()
        scale = self.model.posterior_precision().diagonal().rsqrt()
        self.start = Gaussian(self.model.posterior(self.x).mean, scale.expand(num_points, 4))


def stays_below(found: FlowOptimum, evidence: Tensor) -> None:
    """No bound is above log p, and none below its start, beyond the Monte Carlo error."""
    assert (found.elbo_star - evidence < 4 * found.standard_error).all()
    assert (found.gain >= -2 * found.gain_error).all()
    torch.testing.assert_close(found.elbo_star - found.elbo_start, found.gain, rtol=0, atol=1e-9)
    assert (found.gain[~found.improved] == 0).all()
    assert (found.num_skipped == 0).all()


@pytest.mark.parametrize(
    ("name", "least"),
    [
        searched(n, a, quick=["realnvp"])
        for n, a in (("realnvp", 0.93), ("auxiliary", 0.9), ("planar", 0.5), ("sylvester", 0.7), ("spline", 0.7))
    ],
)
@pytest.mark.slow
def test_flows_close_the_gap_of_the_factorized_gaussian(name: str, least: float) -> None:
    """The gap is ½(Σ log Λ_ii − log|Λ|); ``least`` is the share of it that is asked for."""
    problem = Problem(6)
    search = searching(num_steps=400)
    found = optimize_flow(problem.model, problem.start, problem.x, settings=sized(name), search=search)
    stays_below(found, problem.evidence)
    error = found.gain_error.square().sum().sqrt() / len(problem.x)
    assert abs((found.elbo_start - problem.best).mean()) < 3 * error  # the end varies less than the start
    assert found.improved.all()
    assert least * problem.gap - 3 * error < found.gain.mean() < problem.gap + 3 * error


def banana(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[:, 1] + z[:, 0] ** 2, 0.3), obs=x)


def two_modes(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal((z[:, 0] + 0.5 * z[:, 1]) ** 2, 0.5), obs=x)


def quadrature(model, x: Tensor, reach: float = 7.0, num: int = 350) -> Tensor:
    """Log p(x) by the sum over a grid of cells in two dimensions."""
    axis = torch.linspace(-reach, reach, num)
    grid = torch.cartesian_prod(axis, axis)
    joint = joint_density(model, x)
    return joint(grid[:, None].expand(-1, len(x), -1)).logsumexp(0) + 2 * math.log(2 * reach / (num - 1))


@pytest.mark.parametrize(
    ("name", "share"),
    [
        searched(n, a, quick=["realnvp"])
        for n, a in (("realnvp", 0.85), ("auxiliary", 0.85), ("planar", 0), ("sylvester", 0), ("spline", 0.7))
    ],
)
def test_a_banana_against_quadrature(name: str, share: float) -> None:
    x = torch.tensor([-0.5, 0.3, 1.0, 2.0])
    evidence = quadrature(banana, x)
    start = optimize_local(banana, None, x, settings=LocalSettings(max_steps=500, learning_rate=0.03))
    found = optimize_flow(banana, start, x, settings=sized(name, 40, 40), search=searching(num_steps=600))
    stays_below(found, evidence)
    assert ((evidence - found.elbo_start) > 0.3).all()
    assert found.gain.mean() >= share * (evidence - found.elbo_start).mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["realnvp", "auxiliary"])
def test_of_two_modes_far_apart_a_flow_keeps_one(name: str) -> None:
    """Between two equal modes lies no path for a gradient to take: log 2 stays lost, and no more than that."""
    x = torch.tensor([-0.5, 0.3, 2.0])
    evidence = quadrature(two_modes, x)
    start = optimize_local(two_modes, None, x, settings=LocalSettings(max_steps=500, learning_rate=0.03))
    found = optimize_flow(two_modes, start, x, settings=sized(name, 40, 40), search=searching(num_steps=600))
    stays_below(found, evidence)
    lost = evidence - found.elbo_star
    assert (lost[:2] < 0.05 + 4 * found.standard_error[:2]).all()
    more = lost[2] - math.log(2)
    assert more < 0.04 + 4 * found.standard_error[2]
    assert name == "auxiliary" or more > -0.04 - 4 * found.standard_error[2]  # v may choose between the two modes
    assert found.gain[2] > 2.5


@pytest.mark.parametrize(("name", "least"), [searched("planar", 0.2), searched("auxiliary", 0.95)])
@pytest.mark.slow
def test_one_latent_alone(name: str, least: float) -> None:
    """A posterior with a wall on one side. A planar flow, without a path gradient, may be left at its start here."""

    def walled(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal((1.5 * z).exp(), 0.3), obs=x)

    x, z = torch.tensor([0.0, 0.3, 0.0]), torch.linspace(-12, 8, 2001)[:, None, None]
    evidence = joint_density(walled, x)(z.expand(-1, 3, 1)).logsumexp(0) + math.log(0.01)
    start = optimize_local(walled, None, x, settings=LocalSettings(max_steps=500, learning_rate=0.03))
    found = optimize_flow(walled, start, x, settings=sized(name, 32), search=searching(num_steps=400))
    stays_below(found, evidence)
    assert found.gain.mean() > least * (evidence - found.elbo_start).mean()
    assert found.elbo_star[0] != found.elbo_star[2]  # equal data, but draws and parameters of their own


# The search -----------------------------------------------------------------------------------------------------------


@every_family
def test_no_point_ends_below_its_best_gaussian(name: str) -> None:
    """Few steps, and far too long ones: what is worse than the start is not kept."""
    problem = Problem(10)
    start = optimize_local(problem.model, problem.start, problem.x, settings=LocalSettings(max_steps=100))
    for rate in (5e-3, 0.5):
        search = searching(num_steps=20, num_score=500, learning_rate=rate)
        stays_below(
            optimize_flow(problem.model, start, problem.x, settings=sized(name), search=search), problem.evidence
        )


def test_a_far_worse_start_is_left_behind_by_the_gaussian_alone() -> None:
    problem = Problem(6)
    start = Gaussian(problem.start.loc + problem.start.scale, 1.5 * problem.start.scale)
    search = searching(num_steps=400, learning_rate=0.05)
    found = optimize_flow(problem.model, start, problem.x, settings=FlowSettings("gaussian"), search=search)
    assert ((found.elbo_star - problem.best).abs() < 4 * found.standard_error).all()
    torch.testing.assert_close(found.q.scale, problem.start.scale, rtol=0.05, atol=0)
    assert found.parameters == {}


@every_family
def test_neighbours_and_chunks_do_not_change_the_answer_of_a_point(name: str, monkeypatch) -> None:
    problem, search = Problem(7), searching(num_steps=20, num_kept=20, num_score=20)
    start, x = problem.start, problem.x
    whole = optimize_flow(problem.model, start, x, settings=sized(name), search=search)
    first = Gaussian(start.loc[:2], start.scale[:2])
    alone = optimize_flow(problem.model, first, x[:2], settings=sized(name), search=search)
    calls: list[tuple[int, ...]] = []

    def report(*done: int) -> None:
        calls.append(done)

    monkeypatch.setattr(flow_search, "_points_per_chunk", lambda *_: 3)
    chunks = optimize_flow(problem.model, start, x, settings=sized(name), search=search, progress=report)
    assert calls == [(done + 1, 60) for done in range(60)]  # three chunks of three, the last filled up
    for other, num in ((alone, 2), (chunks, 7)):
        torch.testing.assert_close(other.elbo_star, whole.elbo_star[:num], rtol=0, atol=1e-8)
        torch.testing.assert_close(other.gain, whole.gain[:num], rtol=0, atol=1e-8)
        torch.testing.assert_close(other.q.loc, whole.q.loc[:num], rtol=0, atol=1e-8)
        assert all(len(p) == num for p in other.parameters.values())


def test_the_memory_budget_decides_how_many_points_a_chunk_has() -> None:
    problem, flows = Problem(12), PointFlows(4, sized("realnvp"), torch.zeros(0))
    joint = joint_density(problem.model, problem.x)
    sizes = [flow_search._points_per_chunk(joint, flows, searching(memory_budget=b)) for b in (1.0, 5e5, None)]
    assert sizes[0] == 1 < sizes[1] < sizes[2] == 12


@pytest.mark.slow
def test_draws_of_the_flow_have_the_weights_it_was_scored_by() -> None:
    problem = Problem(5)
    search = searching(num_steps=100)
    found = optimize_flow(problem.model, problem.start, problem.x, settings=sized("auxiliary"), search=search)
    z, log_q = found.sample(2000, Generator().manual_seed(0))
    log_w = joint_density(problem.model, problem.x)(z) - log_q
    error = (log_w.var(0) / len(log_w) + found.standard_error.square()).sqrt()
    assert ((log_w.mean(0) - found.elbo_star).abs() < 4 * error).all()
    torch.testing.assert_close(log_w.logsumexp(0) - math.log(2000), problem.evidence, rtol=0, atol=0.2)


@pytest.mark.slow
def test_a_gradient_that_is_no_number_is_left_out_for_its_point_alone() -> None:
    """The root has an infinite slope where its argument is cut at 0: never for two points, now and then for one."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            above = z.sum(-1) - x[:, 1]
            pyro.sample("x", dist.Normal((above * (above > 0)).sqrt() + z[:, 0], 1.0), obs=x[:, 0])

    x = torch.tensor([[10.0, -100.0], [0.3, -3.0], [10.5, -100.0]])
    start = Gaussian(torch.tensor([0.0, 2.0]).expand(3, 2), torch.ones(3, 2))
    search = searching(num_steps=60, learning_rate=0.02, num_kept=100)
    found = optimize_flow(model, start, x, settings=sized("realnvp", 8), search=search)
    assert found.num_skipped[0] == found.num_skipped[2] == 0
    assert 0 < found.num_skipped[1] < 60
    assert found.elbo_star.isfinite().all()
    assert (found.gain > 3 * found.gain_error).all(), found.num_skipped  # the other steps of that point count
    first = Gaussian(start.loc[:1], start.scale[:1])
    alone = optimize_flow(model, first, x[:1], settings=sized("realnvp", 8), search=search)
    torch.testing.assert_close(alone.elbo_star, found.elbo_star[:1], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_constrained_sites_another_plate_and_shared_latents() -> None:
    """log u and v given log u are Gaussian: the posterior is a correlated Gaussian on the unconstrained space."""

    def model(x: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("observations", len(x)):
            u = pyro.sample("u", dist.LogNormal(0.0, 1.0))
            v = pyro.sample("v", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(slope * (u.log() + v), 0.5), obs=x)

    x = torch.tensor([-1.0, 0.5, 3.0])
    fixed = {"slope": torch.tensor(1.5)}
    evidence = dist.Normal(0.0, (1.5**2 * 2 + 0.25) ** 0.5).log_prob(x)
    start = optimize_local(
        model, None, x, plate="observations", fixed=fixed, settings=LocalSettings(max_steps=500, learning_rate=0.03)
    )
    search = searching(num_steps=400)
    found = optimize_flow(model, start, x, settings=sized("realnvp"), plate="observations", fixed=fixed, search=search)
    stays_below(found, evidence)
    assert (found.gain > 0.5).all()
    assert ((evidence - found.elbo_star) < 0.02 + 4 * found.standard_error).all()


def test_the_seed_decides_and_nothing_else_moves() -> None:
    problem = Problem(3)
    problem.model.register_parameter("extra", torch.nn.Parameter(torch.ones(2)))
    state = torch.get_rng_state()
    once, again, other = (
        optimize_flow(problem.model, problem.start, problem.x, settings=sized("planar"), search=QUICK, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(once.elbo_star, again.elbo_star)
    assert not torch.equal(once.elbo_star, other.elbo_star)
    assert all(p.grad is None for p in problem.model.parameters())
    assert not any(t.requires_grad for t in (*once.parameters.values(), *once.q))
    assert once.evaluations == 10 * 10 + 2 * (10 + 10)


@pytest.mark.parametrize("name", [searched(n, quick=["planar", "realnvp"]) for n in FLOWS])
@pytest.mark.slow_cases("realnvp")
def test_single_precision(name: str) -> None:
    problem = Problem(4)
    torch.set_default_dtype(torch.float32)
    model = LinearGaussian(problem.model.weight.float(), torch.zeros(6), 1.0)
    search = searching(num_steps=200, num_score=500)
    found = optimize_flow(model, problem.start, problem.x.float(), settings=sized(name), search=search)
    stays_below(found, problem.evidence)
    assert found.gain.mean() > 0.2 * problem.gap
    assert {p.dtype for p in (*found.parameters.values(), *found.q)} == {torch.float32}
    assert found.elbo_star.dtype == torch.float64


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_samples": 5}, "num_samples with an even number, since draws come in pairs, got 5"),
        ({"num_steps": 0}, "num_steps of 1 or more, got 0"),
        ({"num_kept": 1}, "num_kept of 2 or more, got 1"),
        ({"num_score": 1}, "num_score of 2 or more, got 1"),
        ({"learning_rate": 0.0}, "learning_rate above 0"),
        ({"learning_rate": math.nan}, "learning_rate above 0"),
        ({"max_growth": 0.5}, "max_growth of 1 or more, got 0.5"),
    ],
)
def test_settings_out_of_range(option: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowSearchSettings(**option)


def test_bad_input() -> None:
    problem = Problem(3)
    model, start, x = problem.model, problem.start, problem.x
    with pytest.raises(ValueError, match=r"shape \(3, 4\), got \(2, 4\) and \(2, 4\)"):
        optimize_flow(model, Gaussian(start.loc[:2], start.scale[:2]), x)
    with pytest.raises(ValueError, match="finite scale above 0"):
        optimize_flow(model, Gaussian(start.loc, 0 * start.scale), x)
    with pytest.raises(ValueError, match="finite loc"):
        optimize_flow(model, Gaussian(start.loc / 0, start.scale), x)
    bad = x.clone()
    bad[1, 0] = math.nan
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="got 1 values that are nan"):
        optimize_flow(model, start, bad)
