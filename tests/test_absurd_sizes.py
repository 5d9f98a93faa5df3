"""Sizes and times out of any reason: refused before anything is made, with what they would need."""

import math

import pytest
import torch

import amortized_bayes as ab
from amortized_bayes import memory
from amortized_bayes.commands import run as command
from amortized_bayes.divergence import Divergence
from amortized_bayes.joint import Gaussian

GIGABYTE = 1e9
X = torch.zeros(4, 3)
MODEL = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
SITES = ab.latent_sites(MODEL, X).local
GUIDE = ab.Constant(SITES, num_data=4)


@pytest.fixture(autouse=True)
def _small_machine(monkeypatch):
    """A machine of 4 GB, 1 GB of it free: nothing here may rest on what this one has."""
    monkeypatch.setattr(memory, "memory_of", lambda device="cpu": memory.Memory(GIGABYTE, 4 * GIGABYTE))


@pytest.mark.parametrize(
    "call",
    [
        lambda: ab.Amortized(SITES, 4, 3, width=10**8),
        lambda: ab.Amortized(SITES, 4, 3, width=10**18),
        lambda: ab.FlowGuide(SITES, 4, 3, width=10**9),
        lambda: ab.FlowGuide(SITES, 4, 3, ab.FlowSettings("realnvp", hidden=(10**9,))),
        lambda: ab.Factorized(SITES, num_data=10**9),
        lambda: ab.DeepGenerative(3, 2, [10**9], 4),
        lambda: ab.DeepGenerative(3, 2, [10**9], 4, bayesian=False),
        lambda: ab.DeepGenerative(3, 10**12, [4], 4),
        lambda: ab.compare(MODEL, X, widths=(10**9,), settings=ab.ComparisonSettings(epochs=2), progress=False),
        lambda: ab.log_weights(MODEL, GUIDE, X, num_particles=10**8),
        lambda: ab.ais(MODEL, GUIDE, X, settings=ab.AISSettings(num_chains=10**8)),
        lambda: ab.optimize_local(MODEL, GUIDE, X, settings=ab.LocalSettings(num_samples=10**8)),
        lambda: ab.optimize_flow(
            MODEL, Gaussian(torch.zeros(4, 2), torch.ones(4, 2)), X, search=ab.FlowSearchSettings(num_samples=10**8)
        ),
        lambda: ab.Training(
            ab.DeepGenerative(3, 2, [10**6], 4, bayesian=False), GUIDE, X.repeat(100, 1), ab.FitOptions()
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_bytes(call):
    with pytest.raises(
        ValueError, match=r"^expected sizes that fit into memory, got .* which needs [\d.,]+ [GT]B: "
    ) as why:
        call()
    assert "has 4 GB, of which 1 GB are free" in str(why.value)


def test_what_fits_is_made():
    assert ab.Amortized(SITES, 4, 3, width=1000).encoder is not None
    memory.check_memory(0.9 * GIGABYTE, "something")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ab.Amortized(SITES, 4, 3, depth=3_000), "expected depth of at most 100, got 3,000"),
        (lambda: ab.DeepGenerative(3, 2, [4] * 200, 4), "expected at most 101 layers, got 201"),
        (lambda: ab.elbo(MODEL, GUIDE, X, num_draws=10**9), "expected num_draws of at most 100,000,000"),
        (lambda: ab.fit(MODEL, GUIDE, X, 10**18), "expected num_steps of at most 100,000,000"),
    ],
)
def test_what_would_never_end_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_memory_is_that_of_the_machine_or_of_its_container(monkeypatch, tmp_path):
    monkeypatch.undo()
    free, total = memory.memory_of()
    assert 0 < free <= total < math.inf
    for name, text in (("max", "1000000000\n"), ("used", "400000000\n"), ("none", "max\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "LIMITS", ((tmp_path / "max", tmp_path / "used"),))
    assert memory.memory_of().total == 1e9
    assert memory.memory_of().free <= 6e8
    monkeypatch.setattr(memory, "LIMITS", ((tmp_path / "none", tmp_path / "nothing"),))
    assert memory.memory_of().total == total


# The command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def _at_once(monkeypatch):
    """Steps are not timed: a second each."""
    monkeypatch.setattr("amortized_bayes.experiments.lab.Lab.step_seconds", lambda *_: 1.0)


@pytest.mark.usefixtures("place", "_at_once")
def test_a_run_of_more_than_a_week_must_be_confirmed(refused, call, monkeypatch, tmp_path):
    given = ("train", "--dataset", "digits", "--epochs", "100000000", "--batch-size", "100")
    said = refused(*given)
    assert "expected a run of a week at most, got 1 job of train that take about" in said
    assert "years" in said
    assert "--yes starts it anyway" in said
    assert not (tmp_path / "results").exists()
    assert call(*given, "--dry-run").code == 0

    def started(plan, reporter):
        raise ValueError("it started")

    monkeypatch.setattr("amortized_bayes.experiments.running.run", started)
    assert "it started" in refused(*given, "--yes")


@pytest.mark.usefixtures("place", "_at_once")
def test_a_run_that_the_disk_cannot_hold_is_refused(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "free_bytes", lambda path: 1e3)
    said = refused("train", "--dataset", "digits", "--epochs", "1", "--batch-size", "100")
    assert "expected a run that fits on the disk, got one that leaves" in said
    assert not (tmp_path / "results").exists()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("sweep --dataset digits --widths 1000000000", "expected sizes that fit into memory, got a network of 64 x"),
        ("sweep --dataset digits --hidden 1000000000", "expected sizes that fit into memory, got a network of 16 x"),
        ("train --dataset digits --hidden 1000000000 --batch-size 100", "expected sizes that fit into memory"),
        ("sweep --depth 3000", "expected --depth of at most 100, got 3,000"),
        ("train --epochs 1000000000000000000", "expected --epochs of at most 100,000,000"),
        ("gaps --particles 1000000000", "expected --particles of at most 100,000,000"),
        ("decoder-capacity --layers 3000", "expected --layers of at most 100"),
        ("toy-posteriors --grid 1000000", "expected --grid of at most 5,000"),
    ],
)
def test_absurd_settings_are_one_line_and_leave_nothing(refused, arguments, words, tmp_path):
    assert words in refused(*arguments.split())
    assert not (tmp_path / "results").exists()


@pytest.mark.usefixtures("place")
def test_memory_that_runs_out_is_one_line(refused, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to")

    monkeypatch.setattr(command.Run, "run", full)
    assert "error: the memory ran out" in refused("train")


# Parameters that are not finite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3, 6])
def test_parameters_that_break_stop_a_fit_at_the_next_record(step, monkeypatch):
    guide = ab.Factorized(SITES, num_data=4)
    plain = ab.Training._step

    def broken(self, done):
        loss = plain(self, done)
        if self.steps + 1 == step:  # as an update of infinite size leaves them, after a loss that was finite
            guide.table.weight.data[2] = math.nan
        return loss

    monkeypatch.setattr(ab.Training, "_step", broken)
    records = []
    with pytest.raises(Divergence) as stopped:
        records += ab.fit_steps(MODEL, guide, X, 6, ab.FitOptions(batch_size=2, capture="off"), report_at=range(1, 7))
    assert step <= stopped.value.step <= step + 2
    assert f"step {stopped.value.step}" in str(stopped.value)
