"""``kill -9`` at random moments of every kind of job: parameters and rows are those of a run that was not killed."""

import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import sweeps
import wing
from safetensors.numpy import load_file
from test_faults import MONKEY, Disk, in_child, kill_me

from amortized_bayes.experiments import frozen_decoder, model_gaps, plans, running
from amortized_bayes.results import RunFolder, list_runs

EVERY = 0.03
CALLS = ("write", "fsync", "replace")
BOUNDS = replace(wing.BOUNDS, best_families=("gaussian", "realnvp"), flow_steps=45, local_steps=40, temperatures=30)
MODEL = replace(wing.TINY, epochs=10, early_stopping=True, num_validation=50)
CONFIGS = {
    "sweep": ("sweep", replace(sweeps.ONE, epochs=6)),
    "train": ("train", replace(MODEL, family="planar")),
    "model-gaps": (
        "model-gaps",
        model_gaps.Config(
            **{"dataset": ("digits",), "families": ("gaussian",), "encoders": ("small",), "annealing": (False,)},
            **{"epochs": 1, "points": 6, "early_stopping": False, "bounds": BOUNDS},
        ),
    ),
    "frozen-decoder": (
        "frozen-decoder",
        frozen_decoder.Config(
            **{"model": replace(MODEL, epochs=1), "encoders": ("small",), "families": ("gaussian", "realnvp")},
            **{"encoder_epochs": 5, "points": 6, "bounds": BOUNDS},
        ),
    ),
}


def told(out):
    """Rows without times, and the bytes of all arrays and parameters, of every run of a folder."""
    found = {}
    for info in list_runs(out):
        run = RunFolder.open(info.path)
        assert run.finished
        assert run.verify() == []
        assert not list(info.path.glob("checkpoints/*unfinished*"))
        rows = run.rows()
        assert len(wing.values(rows)) == len(rows[~rows["metric"].str.startswith("seconds")])  # none is doubled
        timed = rows["metric"].str.contains("seconds")
        tensors = {}
        for file in [*info.path.glob("checkpoints/*.safetensors"), *info.path.glob("arrays/*.npz")]:
            if ".previous" not in file.name:
                content = load_file(file) if file.suffix == ".safetensors" else dict(np.load(file))
                tensors |= {f"{file.name}:{k}": v.tobytes() for k, v in content.items() if k != "seconds"}
        found[info.experiment] = wing.values(rows[~timed]), tensors
    return found


def run(name, config, out):
    """Start a run, or resume it."""
    left = [info for info in list_runs(out) if info.status == "unfinished" and info.experiment == name]
    if not left and any(info.experiment == name for info in list_runs(out)):
        return
    lab = wing.QuickLab(out, wing.CPU, keep_every=EVERY)
    with wing.uncaptured():
        if left:
            plan = plans.resumed_plan(name, str(left[0].path), lab)
        else:
            plan = plans.new_plan(name, config, lab, ["config", "dataset"], {"threads": 1})
        running.run(plan, wing.Recorder())


def later(seconds):
    """Be killed by a thread after so many seconds."""

    def wait():
        time.sleep(seconds)
        kill_me()

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        pytest.param("sweep", 1, marks=pytest.mark.slow),
        ("model-gaps", 1),
        *(pytest.param(kind, 12, marks=pytest.mark.slow) for kind in CONFIGS),
    ],
)
@pytest.mark.slow
def test_a_run_that_is_killed_gives_the_bits_of_one_that_is_not(tmp_path, kind, kills):
    name, config = CONFIGS[kind]
    begin = time.monotonic()
    run(name, config, tmp_path / "whole")
    seconds = time.monotonic() - begin
    whole, rng, survived = told(tmp_path / "whole"), np.random.default_rng(0), 0
    out = tmp_path / "out"
    for number in range(kills):
        inside, calls, wait = number % 4 == 0, int(rng.integers(1, 30)), float(rng.uniform(0.0, 0.5 * seconds))
        act = partial(UnfinishedOnly, MONKEY, out, CALLS, calls, kill_me) if inside else partial(later, wait)
        ended = in_child(partial(run, name, config, out), act)
        assert ended in (0, -signal.SIGKILL)
        survived += ended == 0
        if ended == 0:  # it came to its end: another one
            assert told(out) == whole
            out = tmp_path / f"out-{number}"
    assert survived < kills
    run(name, config, out)
    assert told(out) == whole


class UnfinishedOnly(Disk):
    """Counts what is written of jobs that are not done."""

    def watched(self, name, real):
        counted = super().watched(name, real)

        def call(place, *given, **named):
            path = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else str(place)
            return (counted if "unfinished" in path else real)(place, *given, **named)

        return call
