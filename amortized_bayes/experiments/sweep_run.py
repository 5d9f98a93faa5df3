"""Run a sweep: fits one after another, each with its rows and checkpoint, then the comparisons between them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from amortized_bayes.data import load_dataset
from amortized_bayes.experiments.comparison import compare_fits, final_row
from amortized_bayes.experiments.fitting import Fitting, Progress, finish_fit, go_on, new_fit, restore_fit, run_fit
from amortized_bayes.experiments.measure import Measure, paired_difference
from amortized_bayes.experiments.problem import load_sweep_images, model_name
from amortized_bayes.experiments.setup import ImageData
from amortized_bayes.experiments.sweep import Fit, SweepConfig, grid
from amortized_bayes.guides import LocalGuide
from amortized_bayes.inference.options import Divergence
from amortized_bayes.results import RunFolder
from amortized_bayes.types import Row

__all__ = ["run"]


class Setting(NamedTuple):
    """What the fits of one data set and seed share."""

    config: SweepConfig
    folder: RunFolder
    problem: ImageData
    note: str
    watch: Callable[[Progress], None]


def run(
    config: SweepConfig,
    folder: RunFolder,
    *,
    device: torch.device,
    data_dir: Path | None = None,
    note: str = "",
    watch: Callable[[Progress], None] = lambda _: None,
) -> Iterator[Row]:
    """Run what ``folder`` does not hold yet, write it there, and yield every new row.

    Args:
        config: what to run.
        folder: an open, writable run.
        device: where to run.
        data_dir: where to look for data first.
        note: put into every row.
        watch: called while fits run.

    Raises:
        ValueError: data that cannot be had or do not fit the likelihood.
    """
    folder.drop_unfinished_rows()
    for dataset in config.dataset:
        for seed in config.seeds:
            problem = load_sweep_images(config, load_dataset(dataset, data_dir=data_dir, seed=seed), seed, device)
            fits = [f for f in grid(config) if f.dataset == dataset and f.seed == seed]
            yield from _run_seed(Setting(config, folder, problem, note, watch), fits)


def _run_seed(setting: Setting, fits: list[Fit]) -> Iterator[Row]:
    """All fits of one data set and seed, what doubling gains, and the comparisons."""
    folder = setting.folder
    elbos: dict[Fit, np.ndarray] = {}
    for fit in fits:
        if fit.key not in folder.done():
            yield from _run_fit(setting, fit, _best_amortized(elbos))
        if (values := _final_elbo(folder, fit.key)) is not None:
            elbos[fit] = values
    gains: dict[Fit, Measure] = {}
    for fit in (_best_amortized(elbos), next((f for f in elbos if f.guide == "factorized"), None)):
        if fit is None:
            continue
        if f"{fit.key}_doubled" not in folder.done():
            yield from _run_doubled(setting, fit)
        if (values := _final_elbo(folder, f"{fit.key}_doubled")) is not None:
            gains[fit] = paired_difference(values, elbos[fit])
    key = fits[0].key.replace(fits[0].guide, "comparison")
    if key not in folder.done():
        yield from _store(setting, fits[0], key, compare_fits(_named(folder.rows(), setting, fits[0]), elbos, gains))


def _run_fit(setting: Setting, fit: Fit, best: Fit | None) -> Iterator[Row]:
    config, problem, folder = setting.config, setting.problem, setting.folder
    start: LocalGuide | None = None
    if fit.guide == "factorized-from-amortized":
        if best is None:
            reason = "no amortized fit succeeded to start from"
            yield from _store(setting, fit, fit.key, [_failure(setting, fit, 0, reason)])
            return
        restored = restore_fit(config, problem, best, folder)
        restored.training.settle()
        start = restored.guide
    fitting = new_fit(config, problem, fit, start)
    yield from _store(setting, fit, fit.key, _rows_of(setting, fitting))


def _rows_of(setting: Setting, fitting: Fitting) -> Iterator[Row]:
    yield from run_fit(setting.config, setting.problem, fitting, setting.watch)
    yield from finish_fit(setting.config, setting.problem, fitting, setting.folder)


def _run_doubled(setting: Setting, fit: Fit) -> Iterator[Row]:
    config, problem, folder = setting.config, setting.problem, setting.folder
    fitting = restore_fit(config, problem, fit, folder)
    rows = go_on(config, problem, fitting, folder, setting.watch)
    yield from _store(setting, fit, f"{fit.key}_doubled", _continued(setting, fit, rows))


def _continued(setting: Setting, fit: Fit, rows: Iterator[Row]) -> Iterator[Row]:
    """Rows of a continuation, marked as the fit itself is; a divergence takes nothing from what was finished."""
    status = final_row(_named(setting.folder.rows(), setting, fit), fit).status
    try:
        for row in rows:
            yield row._replace(status=status)
    except Divergence as error:
        failed = _failure(setting, fit, error.step, f"trained as long again it diverged: {error}")
        yield failed._replace(metric="doubled_elbo", status=status)


def _store(setting: Setting, fit: Fit, key: str, rows: Iterable[Row]) -> Iterator[Row]:
    """Complete rows, write each as it comes, record a divergence as a failure, and mark the fit as done."""
    try:
        for row in rows:
            yield _append(setting, row, key)
    except Divergence as error:
        yield _append(setting, _failure(setting, fit, error.step, str(error)), key)
    finally:
        if isinstance(rows, Generator):  # now, not when it is forgotten: a fit has Pyro's validation off while it runs
            rows.close()
    setting.folder.mark_done(key)


def _append(setting: Setting, row: Row, key: str) -> Row:
    note = "; ".join(dict.fromkeys(n for n in (setting.note, row.note) if n))
    full = row._replace(dataset=setting.problem.name, note=note)
    setting.folder.append(full, key)
    return full


def _failure(setting: Setting, fit: Fit, step: int, reason: str) -> Row:
    return Row(
        *("sweep", fit.dataset, model_name(setting.config), fit.guide, fit.k, fit.seed, step, 0.0, "failure", None),
        status="failed",
        note=reason,
    )


def _named(frame: pd.DataFrame, setting: Setting, fit: Fit) -> pd.DataFrame:
    """Rows under the name by which fits know their data set (a user's file is known by its path)."""
    return frame[frame["dataset"] == setting.problem.name].assign(dataset=fit.dataset)


def _final_elbo(folder: RunFolder, key: str) -> np.ndarray | None:
    """ELBO a point of a finished fit; ``None`` for one that failed or was not run."""
    if not (folder.path / "arrays" / f"{key}.npz").exists():
        return None
    return folder.load_arrays(key)["elbo"]


def _best_amortized(elbos: dict[Fit, np.ndarray]) -> Fit | None:
    amortized = [f for f in elbos if f.guide == "amortized"]
    return max(amortized, key=lambda f: float(elbos[f].mean())) if amortized else None
