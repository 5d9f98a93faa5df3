"""A search or a walk whose numbers stop being numbers ends at once, and what was kept of it before is sound."""

import math

import planted_nans
import pytest
import torch
import wing
from test_keeping import AIS, MODEL, Disk, X, run

import amortized_bayes as ab
from amortized_bayes.divergence import CHECK_EVERY
from amortized_bayes.evaluation import hmc
from amortized_bayes.inference import coupling_chunk
from amortized_bayes.inference.flow_climb import BLOCK, FlowChunk
from amortized_bayes.inference.slots import Slots


@pytest.fixture(autouse=True)
def _uncaptured():
    with wing.uncaptured():
        yield


@pytest.fixture(scope="module")
def guide():
    torch.manual_seed(0)
    return ab.Amortized(ab.latent_sites(MODEL, X).local, num_data=5, observed=3, width=4)


def search(steps=40):
    """With windows of 8 steps."""
    settings = ab.LocalSettings(max_steps=steps, num_windows=5, max_rounds=2, num_score=20)
    return lambda guide: ab.optimize_local(MODEL, guide, X, settings=settings)


def flows(steps=150, sizes=(4,)):
    start = ab.optimize_local(MODEL, None, X, settings=ab.LocalSettings(max_steps=10, max_rounds=1, num_score=20))
    search = ab.FlowSearchSettings(num_steps=steps, num_samples=4, num_kept=20, num_score=20)
    flow = ab.FlowSettings("realnvp", num_flows=1, hidden=sizes)
    return lambda guide: ab.optimize_flow(MODEL, start, X, settings=flow, search=search)


def walk(temperatures=30):
    settings = ab.AISSettings(**{**AIS, "num_temperatures": temperatures})
    return lambda guide: ab.ais(MODEL, guide, X, settings=settings)


PLANTS = {
    # where: what runs, what is planted, at which call, and within how many steps of it the next look comes
    "q*": (search, planted_nans.nan_in_qstar, 13, 8),
    "q*, density": (search, planted_nans.nan_of_density, 30, 16),
    "flow": (flows, planted_nans.nan_in_flow, 27, CHECK_EVERY),
    "flow, at its end": (flows, planted_nans.nan_in_flow, 150, 1),
    "flow, density": (lambda: flows(250), planted_nans.nan_of_density, 37, 2 * CHECK_EVERY),
    "kernel": (flows, planted_nans.nan_in_kernel, 27, CHECK_EVERY),
    "pilot": (walk, planted_nans.nan_in_pilot, 3, 100),
    "walk": (walk, planted_nans.nan_in_walk, 13, 30),
    "long walk": (lambda: walk(300), planted_nans.nan_in_walk, 113, CHECK_EVERY),
    "walk, density": (lambda: walk(400), planted_nans.nan_of_density, 37, 2 * CHECK_EVERY),
}


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("where", PLANTS)
@pytest.mark.slow_cases("flow, density-False", "flow, density-True", "kernel-False")
def test_numbers_that_stop_being_numbers_end_a_computation_at_once(guide, monkeypatch, where, kept):
    make, plant, call, within = PLANTS[where]
    if where == "kernel" and coupling_chunk.coupling_kernel() is None:
        pytest.skip("no C++ compiler here")
    compute, disk = make(), Disk()
    plant(monkeypatch, call)
    with pytest.raises(ab.Divergence) as stopped:
        run(lambda: compute(guide), disk) if kept else compute(guide)
    assert str(stopped.value.step) in str(stopped.value)
    if "density" not in where:  # whose calls are others than steps
        assert call <= stopped.value.step <= call + (within if not kept else BLOCK if "flow" in where else within)
    if kept:
        assert disk.kept is not None
        assert not any(part.isnan().any() for part in planted_nans.numbers_in(disk.kept))


@pytest.mark.parametrize("where", ["q*", "flow", "walk"])
def test_without_a_look_the_start_would_be_reported(guide, monkeypatch, where):
    """What the looks are for: all else goes on to numbers that look like others."""
    make, plant, call, _ = PLANTS[where]
    compute = make()
    plant(monkeypatch, call)
    for owner, name in (
        (Slots, "_check_finite"),
        (FlowChunk, "check"),
        (hmc.ChainCheck, "__call__"),
    ):
        monkeypatch.setattr(owner, name, lambda *_: None)
    found = compute(guide)
    value = found.log_p if where == "walk" else found.elbo_star
    assert value.isfinite().all()


def test_a_chain_without_a_density_at_its_start_is_left_alone():
    def density(z):
        log_end = torch.where(z[..., 0] > 0, -math.inf, -0.5 * z.square().sum(-1))
        return hmc.PathEnds(log_end, log_end, -z, -z)

    z = torch.tensor([[[0.5]], [[-0.5]]])
    ladder = hmc.Ladder(torch.linspace(0, 1, 4), torch.full((3, 1), 0.1), torch.ones(1, 1), 1)
    walked = hmc.anneal(density, hmc.start_chains(density, z), ladder, torch.Generator().manual_seed(0))
    assert walked.log_weights[0, 0] == -math.inf
    assert walked.log_weights[1, 0] == 0
