"""Runs of many jobs: equal seeds, a job that breaks among others that do not, and nothing that piles up."""

import gc
import math
import os
import resource
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import planted_nans
import pytest
import sweeps
import wing
from test_kills import CONFIGS, run, told

from amortized_bayes.divergence import CHECK_EVERY
from amortized_bayes.experiments import plans, running
from amortized_bayes.experiments.lab import RECENT, Lab
from amortized_bayes.inference import svi
from amortized_bayes.inference.flow_climb import BLOCK
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


TWO_MODELS = ("model-gaps", replace(CONFIGS["model-gaps"][1], families=("gaussian", "realnvp")))
PLANTS = {
    # where: which run, what is planted, before which step, how many steps apart states are offered, how many jobs
    "sweep": (CONFIGS["sweep"], partial(Poison, which=1), 5, 1, 5),
    "train": (CONFIGS["train"], partial(Poison, which=0), 13, 1, 1),
    "frozen-decoder": (CONFIGS["frozen-decoder"], partial(Poison, which=1), 7, 1, 3),
    "q*": (TWO_MODELS, planted_nans.nan_in_qstar, 13, 1, 2),
    "flow": (TWO_MODELS, planted_nans.nan_in_flow, 13, BLOCK, 2),
    "ais": (TWO_MODELS, planted_nans.nan_in_walk, 13, 1, 2),
}


@pytest.mark.parametrize("every", [0.0, pytest.param(1e9, marks=pytest.mark.slow)])
@pytest.mark.parametrize("where", [w if w == "train" else pytest.param(w, marks=pytest.mark.slow) for w in PLANTS])
def test_a_job_whose_numbers_become_nan_stops_at_once_and_the_others_go_on(tmp_path, monkeypatch, call, where, every):
    (name, config), plant, step, apart, jobs = PLANTS[where]
    plant(monkeypatch, step=step)
    with wing.uncaptured():
        lab = wing.QuickLab(tmp_path, wing.CPU, keep_every=every)
        plan = plans.new_plan(name, config, lab, ["config", "dataset"], {"threads": 1})
        folder = running.run(plan, wing.Recorder())
    assert folder.finished
    assert folder.verify() == []
    ends = folder.done()
    assert len(ends) == jobs
    failed = [job for job, end in ends.items() if end == "failed"]  # and what would have gone on from it
    rows = folder.rows()
    broken = rows[rows["status"] == "failed"]
    assert broken["metric"].tolist() == ["failure"] * len(failed)
    first = broken.iloc[0]
    assert step <= first["step"] <= step + (apart if every == 0.0 else CHECK_EVERY)
    assert f"step {first['step']}" in first["note"] or f"transition {first['step']}" in first["note"]
    assert np.isfinite(rows["value"].dropna()).all()
    if every == 0.0:  # the last good state stays
        tensors, _ = folder.load_unfinished(failed[0])
        assert not any(np.isnan(t).any() for t in tensors.values() if t.dtype.kind == "f")
    shown = call("table", folder.path).out
    assert "failed" in shown
    assert first["note"] in " ".join(shown.split())


@pytest.mark.slow
@pytest.mark.usefixtures("few_visits")
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
