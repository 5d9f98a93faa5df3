"""Small sweeps, run by the mechanism that runs all experiments, and a guide that is none of the package's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch

from amortized_bayes.experiments import sweep, tune
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.plans import new_plan, resumed_plan
from amortized_bayes.experiments.running import run
from amortized_bayes.guides import LocalGuide
from amortized_bayes.guides.registry import GuideEntry, Rates
from amortized_bayes.results import RunFolder, find_run

SHARED = {
    "dataset": ("digits",),
    "hidden": (4,),
    "latent_dim": 2,
    "epochs": 2,
    "batch_size": 50,
    "num_train": 100,
    "rungs": 2,
    "num_test": 20,
    "compile_step": "off",
}
TINY = sweep.Config(**SHARED, widths=(1, 2), elbo_draws=2, iwae_particles=4, iwae_points=10)
ONE = replace(TINY, widths=(1,))
TINY_TRIALS = tune.Config(**SHARED, widths=(1, 2, 3))
TIMES = ("seconds_per_step", "seconds_to_share", "capture_seconds")
COLUMNS = ["guide", "k", "metric", "epochs", "share", "step", "value", "standard_error", "error_over", "status", "note"]


class Listener:
    """Nobody who is told how far a run is, unless ``watch`` wants to know job, stage and what is done of it."""

    def __init__(self, watch=lambda job, stage, done: None):
        self.watch, self.rows, self.lines = watch, [], []

    def started(self, folder, num_jobs, forecast):
        self.folder = folder

    def show(self, forecast, job, stage, done, total, state):
        self.watch(job, stage, done)

    def say(self, line):
        self.lines.append(line)

    def row(self, row):
        self.rows.append(row)

    def shown(self, job, shown):
        pass


def a_lab(out: Path) -> Lab:
    def nested(name, config):
        return run(new_plan(name, config, a_lab(out), ["config"], {}), Listener())

    return Lab(out, torch.device("cpu"), nested=nested)


def start(out: Path, config=TINY, name="sweep", listener=None) -> RunFolder:
    """Run an experiment to its end."""
    return run(new_plan(name, config, a_lab(out), ["config"], {}), listener or Listener())


def resume(out: Path, name="sweep") -> SimpleNamespace:
    """Resume the latest run of an experiment; give its folder, the rows that were new, and what was said."""
    listener = Listener()
    folder = run(resumed_plan(name, "latest", a_lab(out)), listener)
    return SimpleNamespace(folder=folder, rows=listener.rows, lines=listener.lines)


def latest(out: Path, name="sweep") -> RunFolder:
    return RunFolder.open(find_run(out, "latest", name))


def values(frame: pd.DataFrame, metric: str) -> dict[tuple[str, int | None], float]:
    rows = frame[frame["metric"] == metric]
    widths = [None if pd.isna(k) else int(k) for k in rows.get("k", [None] * len(rows))]
    return dict(zip(zip(rows["guide"], widths, strict=True), rows["value"], strict=True))


def of(frame: pd.DataFrame, metric: str, guide: str, k: int | None = None) -> pd.DataFrame:
    rows = frame[(frame["metric"] == metric) & (frame["guide"] == guide)]
    return rows[rows["k"].isna() if k is None else (rows["k"] == k).fillna(False).astype(bool)]


def numbers(frame: pd.DataFrame) -> list[list]:
    """What must be equal between two runs: everything but times, with missing values as None."""
    kept = frame[~frame["metric"].isin(TIMES)].reindex(columns=COLUMNS).astype(object)
    return kept.where(kept.notna(), None).to_numpy().tolist()


class Prototypes(LocalGuide):
    """Each point uses the Gaussian of the nearest of its first few points: between constant and amortized VI."""

    prototypes: torch.Tensor

    def __init__(self, sites, num_data, prototypes, **options):
        super().__init__(sites, num_data, **options)
        self.register_buffer("prototypes", prototypes)
        start = torch.cat([torch.zeros(self.latent_dim), -torch.ones(self.latent_dim)])
        self.rows = torch.nn.Parameter(start.repeat(len(prototypes), 1))

    def locate(self, x, index):
        return self.rows[torch.cdist(x.flatten(1), self.prototypes).argmin(1)]


def prototypes(spec):
    few = spec.data[: spec.width].flatten(1).to(torch.get_default_dtype())
    return Prototypes(spec.sites, spec.num_data, few, shared=spec.shared, plate=spec.plate)


ADDED = GuideEntry("prototypes", prototypes, Rates(0.01, 0.02), tuned_over=(0.02, 0.04), has_width=True)
"""What docs/add_a_guide.md adds."""
