"""Every long loop, killed wherever its state is kept, and run again: equal bits to one that was not killed."""

import json
import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import wing

import amortized_bayes as ab
from amortized_bayes import stopping
from amortized_bayes.comparing.fitting import climb, finish_fit
from amortized_bayes.comparing.starting import start_fit
from amortized_bayes.guides.registry import Fit
from amortized_bayes.inference import coupling_chunk
from amortized_bayes.inference.flow_points import PointFlows
from amortized_bayes.inference.local import fresh_factors
from amortized_bayes.joint import joint_density
from amortized_bayes.keeping import Keeper, Kept, kept, known
from amortized_bayes.seeding import torch_generator

MODEL = ab.LinearGaussian(torch.tensor([[1.0, 0.3], [0.2, -0.7], [0.5, 0.5]]), torch.zeros(3), 0.5)
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _uncaptured(request):
    """For a few steps, capturing them costs more than it saves; slow tests do."""
    with wing.uncaptured() if "slow" not in request.keywords else nullcontext():
        yield


class Killed(BaseException):
    """By a signal that nobody can answer."""


class Disk:
    """Keeps the newest state, as bytes do, and kills the program at the n-th."""

    def __init__(self, kill_at: int = 0) -> None:
        self.kept: Kept | None = None
        self.count, self.kill_at = 0, kill_at

    def write(self, state: Kept) -> None:
        self.count += 1
        self.kept = Kept({name: np.array(value, order="C") for name, value in state.tensors.items()}, {**state.texts})
        if self.count == self.kill_at:
            raise Killed


def run(compute, disk):
    with Keeper(disk.write, disk.kept, every=0).watching():
        return compute()


def leaves(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from leaves(value)
    elif isinstance(tree, float):
        yield torch.tensor(tree)


def assert_same(one, other):
    one, other = list(leaves(one)), list(leaves(other))
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(nan=7.5), b.nan_to_num(nan=7.5))


def assert_survives(compute, kills=1):
    """Killed at some moments, and again right after, it gives what it gives alone, and what it gives with a keeper."""
    alone, whole = compute(), Disk()
    assert_same(run(compute, whole), alone)
    moments = np.random.default_rng(0).choice(np.arange(1, whole.count + 1), min(kills, whole.count), replace=False)
    for moment in sorted(map(int, moments)):
        disk = Disk(moment)
        with pytest.raises(Killed):
            run(compute, disk)
        disk.kill_at = moment + 1 if moment + 1 < whole.count else 0
        if disk.kill_at:
            with pytest.raises(Killed):
                run(compute, disk)
        assert disk.kept is not None
        before, loops = disk.count, len(json.loads(disk.kept.texts["loops"]))
        assert_same(run(compute, disk), alone)
        assert disk.count - before <= whole.count - moment + loops  # the rest alone is done again
    return whole


# The mechanism --------------------------------------------------------------------------------------------------------


def walk(num_steps=6):
    generator = torch_generator(0, "walk")
    place, z = 0, torch.zeros(3, dtype=torch.float64)
    with kept("walk", lambda: [place, z], generator) as loop:
        if loop.found is not None:
            place, z = loop.found
        while place < num_steps:
            z = z + torch.randn(3, generator=generator) + torch.randn(3)
            place += 1
            loop.offer()
    return z, torch.randn(2)


def test_a_loop_goes_on_with_every_generator_where_it_was():
    def twice():
        torch.manual_seed(3)
        return walk(), walk(4), known("sum", lambda: {"sum": torch.randn(2), "n": 3})

    assert_survives(twice, kills=15)


def test_without_a_keeper_nothing_is_kept():
    torch.manual_seed(3)
    assert torch.equal(walk()[0], walk(6)[0]) is False  # the global generator went on


def test_tensors_come_back_with_type_strides_and_memory_of_their_own():
    state = {
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "whole": torch.tensor([2**62, -1]),
        "truth": torch.tensor(True),
        "double": torch.tensor([math.inf, math.nan, -0.0, 1 / 3], dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "array": np.arange(3, dtype=np.int16),
        "plain": [1, 0.1, -math.inf, True, None, "text", {"a": 2}],
    }
    disk = Disk()
    with Keeper(disk.write, every=0).watching(), kept("state", lambda: state) as loop:
        loop.offer()
    with Keeper(disk.write, disk.kept).watching(), kept("state", lambda: None) as loop:
        found = loop.found
    assert found["plain"] == state["plain"]
    assert found["array"].dtype == np.int16
    for name in ("turned", "whole", "truth", "double", "empty"):
        assert found[name].dtype == state[name].dtype
        assert found[name].shape == state[name].shape
        assert torch.equal(found[name].nan_to_num(7.5), state[name].nan_to_num(7.5))
        assert found[name].data_ptr() % 64 == 0  # where torch would have put it: sums may round by the place
    assert found["turned"].stride() == state["turned"].stride() == (1, 3)
    assert math.copysign(1, found["double"][2].item()) == -1


def test_a_state_of_a_finished_loop_is_a_copy():
    value = torch.zeros(2)
    disk = Disk()
    keeper = Keeper(disk.write, every=1e9)
    with keeper.watching():
        with kept("first", lambda: value):
            pass
        value += 1
        keeper.next = 0.0
        with kept("second", lambda: 1) as loop:
            loop.offer()
    with Keeper(disk.write, disk.kept).watching(), kept("first", lambda: 0) as loop:
        assert loop.found.tolist() == [0.0, 0.0]


def test_loops_inside_loops_and_other_states_are_refused():
    with Keeper(lambda _: None).watching():
        with (
            kept("outer", lambda: 0),
            pytest.raises(RuntimeError, match="'inner' cannot be kept inside the loop 'outer"),
            kept("inner", lambda: 0),
        ):
            pass
        with pytest.raises(TypeError, match="expected tensors and plain values, got set"), kept("set", lambda: {1}):
            pass
    for texts in ({}, {"loops": "[]"}, {"loops": json.dumps({"a#0": {"tensor": "b"}})}):
        with pytest.raises(ValueError, match="expected the states of loops"):
            Keeper(lambda _: None, Kept({}, texts))


def test_what_is_slow_to_write_is_written_rarely(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("amortized_bayes.keeping.time.monotonic", lambda: now[0])
    seconds = 0.05
    keeper = Keeper(lambda _: now.__setitem__(0, now[0] + seconds), every=1.0)
    with keeper.watching(), kept("walk", lambda: 0) as loop:
        for _ in range(1000):
            now[0] += 0.1
            before = now[0]
            loop.offer()
            if now[0] != before:
                assert keeper.next == pytest.approx(now[0] + 100 * seconds)


def test_who_is_asked_to_stop_keeps_its_state_at_once(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(stopping, "_said", ["SIGTERM"])
    with pytest.raises(stopping.Stopped, match="SIGTERM"), Keeper(disk.write, every=1e9).watching():
        walk()
    assert disk.count == 1


# Every loop of the package --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guide():
    torch.manual_seed(0)
    return ab.Amortized(ab.latent_sites(MODEL, X).local, num_data=5, observed=3, width=4)


@pytest.mark.parametrize("restarts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_search_for_the_best_gaussians(guide, restarts):
    settings = ab.LocalSettings(max_steps=8, num_windows=2, max_rounds=2, num_score=50, num_restarts=restarts)
    settings = ab.LocalSettings(**{**vars(settings), "memory_budget": 1.0, "tolerance": 1e-4})
    assert_survives(lambda: tuple(ab.optimize_local(MODEL, guide, X, settings=settings)[:6]))


@pytest.mark.slow
def test_the_search_in_a_family_that_draws_by_itself():
    """Its frames are made of draws of the global generator."""
    counts = torch.tensor([1.0, 4.0, 2.0])

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(torch.full((3,), 3.0), torch.full((3,), 2.0)))

    settings = ab.LocalSettings(max_steps=8, num_windows=2, max_rounds=2, num_score=50, tolerance=0.0)

    def search():
        return tuple(ab.optimize_local(model, guide, counts, settings=settings, family="own")[:6])

    assert_survives(search)


@pytest.mark.parametrize("family", ["realnvp", pytest.param("auxiliary", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_search_for_the_best_flows(guide, family):
    start = ab.optimize_local(MODEL, guide, X, settings=ab.LocalSettings(max_steps=10))
    flow = ab.FlowSettings(family, num_flows=1, hidden=(4,))
    search = ab.FlowSearchSettings(num_steps=50, num_samples=4, num_kept=20, num_score=20, memory_budget=1e5)

    def found():
        best = ab.optimize_flow(MODEL, start, X, settings=flow, search=search)
        return best.elbo_star, best.gain, best.q, best.parameters, best.num_skipped

    assert_survives(found)


@pytest.mark.slow
def test_the_search_for_flows_by_a_kernel(guide, monkeypatch):
    if coupling_chunk.coupling_kernel() is None:
        pytest.skip("no C++ compiler here")
    monkeypatch.setattr(coupling_chunk, "PAYS_FROM", 0.0)
    start = ab.optimize_local(MODEL, guide, X, settings=ab.LocalSettings(max_steps=10))
    flow = ab.FlowSettings("realnvp", num_flows=1, hidden=(4,))
    search = ab.FlowSearchSettings(num_steps=50, num_samples=4, num_kept=20, num_score=20)

    def found():
        best = ab.optimize_flow(MODEL, start, X, settings=flow, search=search)
        return best.elbo_star, best.gain, best.q, best.parameters, best.num_skipped

    assert coupling_chunk.kernel_serves(*kernel_arguments(start, flow, search))
    assert_survives(found)


def kernel_arguments(start, flow, search):
    joint = joint_density(MODEL, X)
    return joint, PointFlows(joint.dim, flow, start.q.loc), search


AIS: dict[str, Any] = {"num_chains": 3, "num_temperatures": 6, "num_pilot": 4}


@pytest.mark.parametrize(
    "settings", [{}, pytest.param({"start": "prior", "memory_budget": 2000.0}, marks=pytest.mark.slow)], ids=str
)
def test_annealed_chains(guide, settings):
    assert_survives(lambda: tuple(ab.ais(MODEL, guide, X, settings=ab.AISSettings(**AIS, **settings))))


@pytest.mark.slow
def test_the_certificate_of_annealed_chains(guide):
    certificate = ab.CertificateSettings(num_points=4, target_gap=0.05, max_temperatures=15)

    def found():
        result = ab.bdmc(MODEL, guide, X, settings=ab.AISSettings(**AIS), certificate=certificate)
        return result.lower, result.upper, result.gap, result.settings.num_temperatures, result.difficulty

    assert_survives(found)


@pytest.mark.slow
def test_fresh_factors():
    options = ab.FitOptions(batch_size=2, capture="off")
    sites = ab.latent_sites(MODEL, X).local

    def found():
        fresh = fresh_factors(MODEL, None, sites, X, options, visits=(2, 16))
        return fresh.guide.table.weight.detach(), fresh.gain, float(fresh.visits)

    assert_survives(found)


@pytest.mark.parametrize("capture", ["off", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fit", [Fit("amortized", 2), pytest.param(Fit("factorized"), marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_ladder_of_a_fit(fit, capture):
    from test_ladder import problem_of

    problem = problem_of(ab.FitOptions.recipe(batch_size=5, capture=capture))

    def found():
        fitting = start_fit(problem, fit)
        rungs = [[e.step, dict(e.measures), values] for e, values in climb(problem, fitting)]
        top = finish_fit(problem, fitting).evaluation
        measures = {name: m for name, m in top.measures.items() if "seconds" not in name}
        return rungs, measures, {n: t for n, t in fitting.training.state().items() if n != "seconds"}

    assert_survives(found)
