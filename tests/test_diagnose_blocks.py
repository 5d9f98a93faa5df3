"""A diagnosis in blocks of points: what blocks share, what is theirs alone, and that all of them together are right."""

from dataclasses import replace
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from shared_shift import SharedShift
from test_diagnose import QUICK, Problem
from torch import Tensor
from torch.distributions import MultivariateNormal

from amortized_bayes.diagnosis import Groundwork, diagnose, diagnose_block, join_blocks, prepare_blocks
from amortized_bayes.evaluation.gaps import paired_gap
from amortized_bayes.evaluation.settings import AISSettings, CertificateSettings
from amortized_bayes.flows import FlowSettings
from amortized_bayes.guides import FlowGuide
from amortized_bayes.inference.settings import FlowSearchSettings, LocalSettings
from amortized_bayes.sites import latent_sites

pytestmark = pytest.mark.usefixtures("float64")

BLOCK = 30


@cache
def measured() -> tuple[Problem, Groundwork, list[Any]]:
    """Three blocks of a problem whose gaps are known."""
    problem = Problem(off=0.8, stretch=1.3, num_points=3 * BLOCK)
    ground = prepare_blocks(problem.model, problem.guide, problem.x[:20], settings=QUICK)
    return problem, ground, [block(problem, ground, number) for number in range(3)]


@pytest.fixture
def blocks(float64: None) -> tuple[Problem, Groundwork, list[Any]]:
    """Measured once, for tests that change nothing in them."""
    return measured()


def block(problem: Problem, ground: Groundwork, number: int) -> Any:
    x = problem.x[number * BLOCK : (number + 1) * BLOCK]
    return diagnose_block(problem.model, problem.guide, x, ground=ground, settings=QUICK, seed=1 + number)


def same(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name, pair in one.items():
        for a, b in zip(pair, other[name], strict=True):
            assert torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0)), name


@pytest.mark.slow
def test_one_block_of_all_points_is_the_diagnosis() -> None:
    problem = Problem(off=0.8, stretch=1.3)
    settings = replace(QUICK, local=LocalSettings(num_restarts=2))
    whole = diagnose(problem.model, problem.guide, problem.x, settings=settings, seed=3)
    ground = prepare_blocks(problem.model, problem.guide, problem.x[:20], settings=settings, seed=3)
    found = diagnose_block(problem.model, problem.guide, problem.x, ground=ground, settings=settings, seed=3)
    joined = join_blocks([found], ground, settings=settings, seed=3)
    assert joined.to_frame().equals(whole.to_frame())
    assert joined.verdict == whole.verdict
    assert joined.evidence() == whole.evidence()
    assert joined.settings == {**whole.settings, "blocks": 1}


def test_all_blocks_together_meet_the_exact_values(blocks: tuple[Problem, Groundwork, list[Any]]) -> None:
    """The means of all points, within three of the Monte Carlo errors that are reported."""
    problem, ground, found = blocks
    report = join_blocks(found, ground, settings=QUICK)
    log_p = problem.model.log_evidence(problem.x)
    best = problem.model.best_factorized_elbo(problem.x)
    for name, exact in (("log_p_lower", log_p), ("elbo_star", best), ("elbo", best - problem.amortization)):
        value, error = report.estimate(name)
        assert error is not None
        assert abs((value - exact).mean()) < 3 * error.square().sum().sqrt() / len(exact), name
        assert ((value - exact).abs() < 6 * error + 0.01).all(), name  # each point is in its place
    of_ais = paired_gap(report.estimate("log_p_lower"), report.estimate("elbo_star"))
    for gap, expected in ((report.gaps().amortization, problem.amortization), (of_ais, problem.approximation)):
        assert gap.standard_error is not None
        assert abs(gap.mean - expected) < 3 * gap.standard_error.square().sum().sqrt() / len(log_p)
    assert report.num_points == 3 * BLOCK
    assert report.verdict.cause == "amortization"
    assert report.certified
    assert report.settings["blocks"] == 3


@pytest.mark.slow
def test_a_block_does_not_depend_on_others_or_on_what_ran_before(blocks: tuple[Problem, Groundwork, list[Any]]) -> None:
    problem, ground, found = blocks
    torch.manual_seed(99)
    same(block(problem, ground, 2), found[2])
    same(block(problem, Groundwork.unpack(*ground.pack()), 1), found[1])


def test_blocks_draw_noise_of_their_own(blocks: tuple[Problem, Groundwork, list[Any]]) -> None:
    """The same points under another seed: other numbers of everything that is drawn."""
    problem, ground, found = blocks
    x = problem.x[:BLOCK]
    other = diagnose_block(problem.model, problem.guide, x, ground=ground, settings=QUICK, seed=8)
    for name in ("elbo", "iwae", "elbo_star", "log_p_lower"):
        assert (other[name][0] != found[0][name][0]).all(), name


@pytest.mark.slow
def test_the_groundwork_of_few_points_is_that_of_all_and_can_be_packed() -> None:
    problem = Problem(off=0.3)
    few, every = (prepare_blocks(problem.model, problem.guide, x, settings=QUICK) for x in (problem.x[:20], problem.x))
    again = Groundwork.unpack(*few.pack())
    for ground in (every, again):
        assert ground._replace(certificate=None) == few._replace(certificate=None)
        assert few.certificate is not None
        assert ground.certificate is not None
        for one, other in zip(few.certificate, ground.certificate, strict=True):
            assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    assert few.chains.num_temperatures >= QUICK.ais.num_temperatures


@pytest.mark.slow
def test_all_blocks_see_the_same_draws_of_shared_latents(linear_problem: Any) -> None:
    """The guide is the exact posterior given theta, so that each of its weights is log p(x | theta), which is known."""
    model, x = SharedShift(linear_problem.model), linear_problem.x
    settings = replace(QUICK, num_shared=2, certificate=CertificateSettings(4, 0.5, max_temperatures=30))
    settings = replace(settings, flow=FlowSettings("gaussian"))
    guide = model.guide(torch.zeros(5), 0.5)
    ground = Groundwork.unpack(*prepare_blocks(model, guide, x[:4], settings=settings).pack())
    found = [
        diagnose_block(model, guide, some, ground=ground, settings=settings, seed=seed)
        for seed, some in enumerate(x.split(6))
    ]
    report = join_blocks(found, ground, settings=settings)
    covariance = model.marginal_covariance()
    exact = torch.stack([MultivariateNormal(d["theta"], covariance).log_prob(x) for d in ground.fixed])
    assert exact.std(0).min() > 0.5  # another draw would show
    for name in ("elbo", "iwae"):
        torch.testing.assert_close(report.values[name], exact)
    assert ((report.values["log_p_lower"] - exact).abs() < 5 * report.errors["log_p_lower"] + 0.05).all()
    assert report.certificate is not None
    assert report.certificate.lower.shape == (2, 4)


@pytest.mark.slow
def test_a_flow_is_searched_in_each_block() -> None:
    problem = Problem(off=0.0, num_points=8)
    sites = latent_sites(problem.model, problem.x).local
    guide = FlowGuide(sites, num_data=8, observed=8, settings=FlowSettings("planar", 2), width=4)
    few = replace(
        QUICK,
        num_particles=50,
        ais=AISSettings(4, 5, num_pilot=4),
        certificate=CertificateSettings(4, 5.0, max_temperatures=5),
        local=LocalSettings(max_steps=20, max_rounds=1),
        flow_search=FlowSearchSettings(num_steps=5),
    )
    whole = diagnose(problem.model, guide, problem.x, settings=few)
    ground = Groundwork.unpack(*prepare_blocks(problem.model, guide, problem.x[:4], settings=few).pack())
    found = diagnose_block(problem.model, guide, problem.x, ground=ground, settings=few)
    joined = join_blocks([found], ground, settings=few)
    assert joined.settings["flow"] == whole.settings["flow"]
    same({"star": (joined.values["elbo_star"],)}, {"star": (whole.values["elbo_star"],)})
    assert joined.verdict.words == whole.verdict.words


def table(x: Tensor) -> None:
    """A guide with a row for each of 24 points."""
    rows = pyro.param("rows", torch.randn(24, 4))
    with pyro.plate("data", 24):
        pyro.sample("z", dist.Normal(rows, 1.0).to_event(1))


def indexed(x: Tensor, index: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 8), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + 0.1 * index[:, None], 1.0).to_event(1), obs=x)


def encoder(x: Tensor, index: Any = None) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0).to_event(1))


def test_guides_with_rows_and_models_without_their_index_are_refused() -> None:
    problem = Problem(off=0.0)
    with pytest.raises(
        ValueError, match=r"a function of the data, .*block by block, got one with per-point parameters"
    ):
        prepare_blocks(problem.model, table, problem.x, settings=QUICK)
    with pytest.raises(ValueError, match="expected index=, the places of these points among all"):
        prepare_blocks(indexed, encoder, problem.x, settings=QUICK)


def test_blocks_that_do_not_fit_together_are_refused(blocks: tuple[Problem, Groundwork, list[Any]]) -> None:
    _, ground, found = blocks
    with pytest.raises(ValueError, match="one block of points or more, got none"):
        join_blocks([], ground, settings=QUICK)
    less = {name: pair for name, pair in found[1].items() if name != "residual"}
    with pytest.raises(ValueError, match="measured with the same settings"):
        join_blocks([found[0], less], ground, settings=QUICK)
    two = {name: tuple(part.repeat(2, 1) for part in pair) for name, pair in found[1].items()}
    with pytest.raises(ValueError, match="measured with the same settings"):
        join_blocks([found[0], two], ground, settings=QUICK)


def test_blocks_of_a_million_points_are_joined_in_order(blocks: tuple[Problem, Groundwork, list[Any]]) -> None:
    """The report is of all points, and so are its errors, which fall with their number."""
    _, ground, few = blocks
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, 250_000, generator=generator) for _ in range(4)]
    found = [{name: (part, torch.ones_like(part)) for name in few[0]} for part in parts]
    report = join_blocks(found, ground, settings=QUICK)
    assert report.num_points == 1_000_000
    assert torch.equal(report.values["elbo"], torch.cat(parts, -1))
    assert report.summary().loc["elbo", "standard_error"] == pytest.approx(1e-3, rel=0.01)
