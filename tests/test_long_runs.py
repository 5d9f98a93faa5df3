"""Runs of many jobs: equal seeds, a job that breaks among others that do not, and nothing that piles up."""

import gc
import math
import os
import resource
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sweeps
import wing
from test_kills import CONFIGS, run, told

from amortized_bayes.experiments import plans, running
from amortized_bayes.experiments.lab import RECENT, Lab
from amortized_bayes.inference import svi
from amortized_bayes.results import RunFolder, list_runs

SEEDS = 20
JOBS = 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_twenty_runs_of_a_seed_are_equal_to_the_bit(tmp_path, kind):
    name, config = CONFIGS[kind]
    found = []
    for number in range(SEEDS):
        run(name, config, tmp_path / f"{number}")
        found.append(told(tmp_path / f"{number}"))
    assert all(each == found[0] for each in found)


class Poison:
    """Makes the parameters of one training nan before one of its steps."""

    def __init__(self, patch, which, step):
        self.which, self.step, self.trainings = which, step, []
        plain = svi.Training._step

        def poisoned(training, done):
            if training not in self.trainings:
                self.trainings.append(training)
            if training is self.trainings[-1] and len(self.trainings) == which + 1 and training.steps == step:
                for parameter in training.guide.parameters():
                    parameter.data.fill_(math.nan)
            return plain(training, done)

        patch.setattr(svi.Training, "_step", poisoned)


LOOPS = {
    # kind: which training, at which step, and how many jobs there are
    "sweep": (1, 5, 5),
    "train": (0, 13, 1),
    "frozen-decoder": (1, 7, 3),
}


@pytest.mark.parametrize("every", [0.0, pytest.param(1e9, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind", ["train", *(pytest.param(k, marks=pytest.mark.slow) for k in list(LOOPS) if k != "train")]
)
def test_a_job_whose_parameters_become_nan_stops_at_once_and_the_others_go_on(tmp_path, monkeypatch, kind, every):
    name, config = CONFIGS[kind]
    which, step, jobs = LOOPS[kind]
    Poison(monkeypatch, which, step)
    with wing.uncaptured():
        lab = wing.QuickLab(tmp_path, wing.CPU, keep_every=every)
        plan = plans.new_plan(name, config, lab, ["config", "dataset"], {"threads": 1})
        folder = running.run(plan, wing.Recorder())
    assert folder.finished
    assert folder.verify() == []
    ends = folder.done()
    assert len(ends) == jobs
    failed = [job for job, end in ends.items() if end == "failed"]
    rows = folder.rows()
    broken = rows[rows["status"] == "failed"]
    assert set(broken["metric"]) == {"failure"}
    first = broken.iloc[0]
    assert step < first["step"] <= step + (1 if every == 0.0 else svi.CHECK_EVERY)
    assert np.isfinite(rows["value"].dropna()).all()
    assert len(failed) == len(broken)
    if every == 0.0:  # the last good state stays
        tensors, _ = folder.load_unfinished(failed[0])
        assert all(np.isfinite(t).all() for t in tensors.values() if t.dtype.kind == "f")


@pytest.mark.slow
def test_memory_and_descriptors_stay_the_same_over_two_hundred_jobs(tmp_path):
    one = replace(sweeps.ONE, seeds=(0,))
    per_seed = len(list(plans.new_plan("sweep", one, wing.QuickLab(tmp_path, wing.CPU), ["config"], {}).jobs))
    config = replace(one, seeds=tuple(range(math.ceil(JOBS / per_seed))))
    taken = []

    class Watcher(wing.Recorder):
        def row(self, row):
            if row.metric == "final_elbo":
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                taken.append((pages * resource.getpagesize() / 1e6, len(os.listdir("/proc/self/fd"))))

    with wing.uncaptured():
        plan = plans.new_plan("sweep", config, wing.QuickLab(tmp_path, wing.CPU), ["config"], {"threads": 1})
        running.run(plan, Watcher())
    (info,) = list_runs(tmp_path)
    assert len(RunFolder.open(info.path).done()) >= JOBS
    quarter = len(taken) // 4
    early, late = np.array(taken[quarter : 2 * quarter]), np.array(taken[-quarter:])
    before, after = np.median(early, 0), np.median(late, 0)
    print(f"\nmegabytes {before[0]:.1f} -> {after[0]:.1f}, descriptors {before[1]:.0f} -> {after[1]:.0f}")
    assert after[0] - before[0] < 5
    assert set(late[:, 1]) == set(early[:, 1])


def test_data_of_the_last_few_seeds_are_kept_and_no_others(tmp_path):
    lab = Lab(tmp_path, wing.CPU)
    made = [weakref.ref(lab.dataset("digits", seed).train.pixels) for seed in range(RECENT + 3)]
    gc.collect()
    assert [ref() is not None for ref in made] == [False] * 3 + [True] * RECENT
    oldest = made[3]()
    assert lab.dataset("digits", 3).train.pixels is oldest  # and is the last one used now
    lab.dataset("digits", 99)
    assert lab.dataset("digits", 3).train.pixels is oldest
