"""Learning rates of each family from one grid, the same number of pairs for each.

``python run_experiments.py sweep --tune`` tries 9 pairs a family on each data set, with half the epochs and a seed of
their own; pairs for A-VI on its middle and its widest encoder, since a rate that suits one can break the other. A local
rate with which any trial diverged is out. Of the rest the pair with the highest final ELBO (mean over trials) is kept,
and the sweep runs with the winners.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import torch

from amortized_bayes.data import load_dataset
from amortized_bayes.experiments import measure
from amortized_bayes.experiments.fitting import Progress
from amortized_bayes.experiments.problem import build_guide, fit_options, load_sweep_images
from amortized_bayes.experiments.setup import ImageData, build_model
from amortized_bayes.experiments.sweep import Fit, Rates, SweepConfig
from amortized_bayes.inference.options import Divergence
from amortized_bayes.inference.svi import Training
from amortized_bayes.results import RunFolder
from amortized_bayes.types import Row

__all__ = ["GRID", "TUNING_SEED", "num_trials", "tune", "with_winners"]

TUNING_SEED = 10_000
"""Seed of the trials, which no reported run uses."""
SHARED = (4e-3, 8e-3, 1.6e-2)
GRID: dict[str, list[Rates]] = {
    "constant": [Rates(s, l) for s in SHARED for l in (4e-3, 8e-3, 1.6e-2)],
    "amortized": [Rates(s, l) for s in SHARED for l in (2e-3, 4e-3, 8e-3)],
    "factorized": [Rates(s, l) for s in SHARED for l in (0.1, 0.2, 0.4)],
}
"""Rates tried for each family: q(theta) and model, then encoder, vector or rows (visited once an epoch only)."""


def tune(
    config: SweepConfig,
    folder: RunFolder,
    *,
    device: torch.device,
    data_dir: Path | None = None,
    note: str = "",
    watch: Callable[[Progress], None] = lambda _: None,
) -> Iterator[Row]:
    """Run all trials that ``folder`` does not hold yet, and yield a row with the final ELBO of each.

    The note of a row is its pair of rates, and ``note`` after it.

    Raises:
        ValueError: data that cannot be had.
    """
    folder.drop_unfinished_rows()
    for dataset in config.dataset:
        problem = load_sweep_images(
            config, load_dataset(dataset, data_dir=data_dir, seed=TUNING_SEED), TUNING_SEED, device
        )
        for family, trials in GRID.items():
            for fit, rates in product(_fits(config, dataset, family), trials):
                key = f"{fit.key}_{rates.shared:g}_{rates.local:g}"
                if key in folder.done():
                    continue
                row = _trial(config, problem, fit, rates, watch)._replace(dataset=problem.name)
                row = row._replace(note="; ".join(n for n in (row.note, note) if n))
                folder.append(row, key)
                folder.mark_done(key)
                yield row


def _fits(config: SweepConfig, dataset: str, family: str) -> list[Fit]:
    """What each pair of rates is tried on."""
    if family != "amortized":
        return [Fit(dataset, TUNING_SEED, family)]
    widths = sorted(config.widths)
    return [Fit(dataset, TUNING_SEED, family, k) for k in dict.fromkeys((widths[len(widths) // 2], widths[-1]))]


def num_trials(config: SweepConfig) -> int:
    """Fits that :func:`tune` runs."""
    return sum(len(_fits(config, d, family)) * len(trials) for d in config.dataset for family, trials in GRID.items())


def _trial(config: SweepConfig, problem: ImageData, fit: Fit, rates: Rates, watch: Callable[[Progress], None]) -> Row:
    model, sites = build_model(config, problem, fit.seed)
    guide = build_guide(config, problem, sites, fit)
    options = fit_options(config, fit, len(problem.train), rates)
    training = Training(model, guide, problem.train, options, fit.seed)
    num_steps = max(1, config.epochs // 2) * training.batches.per_epoch
    row = Row("tune", fit.dataset, config.decoder, fit.guide, fit.k, fit.seed, num_steps, 0.0, "tune_elbo", None)
    row = row._replace(note=f"{rates.shared:g} {rates.local:g}")
    try:
        for record in training.run(num_steps, range(0, num_steps, max(1, num_steps // 20))):
            watch(Progress(fit, record.step, num_steps, record.elbo, doubled=False))
    except Divergence as error:
        return row._replace(status="failed", step=error.step)
    with pyro.validation_enabled(False), training.averaged():
        value, error, over = measure.over_points(measure.train_elbo(config, problem, model, guide, 2).value)
    if value is None or not math.isfinite(value):
        return row._replace(status="failed")
    return row._replace(seconds=training.seconds, value=value, standard_error=error, error_over=over)


def with_winners(config: SweepConfig, frame: pd.DataFrame) -> SweepConfig:
    """The configuration with the rates that won, from the rows of :func:`tune`.

    Raises:
        ValueError: a family for which every trial failed.
    """
    chosen: dict[str, Any] = {}
    for family in GRID:
        rows = frame[frame["guide"] == family]
        pairs = rows["note"].str.split("; ").str[0]
        failed = rows["status"] == "failed"
        unstable = {pair.split()[1] for pair in pairs[failed]}
        trials = {str(pair): group["value"].mean() for pair, group in rows[~failed].groupby(pairs[~failed])}
        scores = {pair: value for pair, value in trials.items() if pair.split()[1] not in unstable}
        if not scores:
            raise ValueError(f"expected learning rates that work for {family} VI in every trial, got none")
        shared, local = (float(part) for part in max(scores, key=scores.__getitem__).split())
        chosen[f"rates_{family}"] = (shared, local)
    return replace(config, tune=False, **chosen)
