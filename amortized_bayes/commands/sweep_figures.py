"""The figures of a sweep, drawn from its folder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd

from amortized_bayes.commands.findings import fits_of, value_of
from amortized_bayes.configuration import load_config
from amortized_bayes.experiments.sweep import Fit, SweepConfig, grid
from amortized_bayes.plotting import (
    curve_figure,
    dataset_label,
    family_gap_figure,
    guide_label,
    memory_figure,
    reconstruction_figure,
    time_to_target_figure,
)
from amortized_bayes.results import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_sweep"]

SHORT = {"mnist": "mnist", "fashion-mnist": "fmnist"}
"""Names of data sets in names of figures; others keep their own."""


def draw_sweep(folder: RunFolder, frame: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Every figure that the rows of a sweep allow, with its name."""
    config = load_config(SweepConfig, folder.path / "config.yaml")
    finished = cast(pd.DataFrame, frame[frame["metric"] == "final_elbo"])
    for place, dataset in enumerate(finished["dataset"].unique()):
        rows = cast(pd.DataFrame, frame[frame["dataset"] == dataset])
        short = SHORT.get(dataset, Path(dataset).stem)
        yield f"{short}_elbo", curve_figure(rows, dataset, "elbo")
        yield f"{short}_mse", curve_figure(rows, dataset, "mse_train")
        yield f"{short}_mse_test", curve_figure(rows, dataset, "mse_test")
        if (rows["metric"] == "seconds_to_1_nat").any():
            yield f"{short}_comp", time_to_target_figure(rows, dataset)
        if (arrays := _reconstructions(folder, config, rows, dataset)) is not None:
            yield f"re{place + 1}", reconstruction_figure(*arrays)
    if (frame["metric"] == "family_gap").any():
        yield "family_gap", family_gap_figure(frame)
    if (observed := _observed(folder, config)) is not None:
        yield "memory", memory_figure(_memory(config, frame, observed))


def _reconstructions(
    folder: RunFolder, config: SweepConfig, rows: pd.DataFrame, dataset: str
) -> tuple[np.ndarray, dict[str, np.ndarray], str, dict[str, float]] | None:
    """Test images and what each guide of the first seed makes of them; ``None`` if they are no images."""
    seed = int(rows["seed"].min())
    seen: dict[str, np.ndarray] = {}
    errors: dict[str, float] = {}
    original = None
    for guide, k in fits_of(rows):
        key = next((f.key for f in _fits(config, dataset) if (f.guide, f.k, f.seed) == (guide, k, seed)), None)
        if key is None or not (folder.path / "arrays" / f"{key}.npz").exists():
            continue
        arrays = folder.load_arrays(key)
        if (original := _as_images(arrays["original"])) is None:
            return None
        seen[guide_label(guide, k)] = arrays["reconstruction"].reshape(original.shape)
        if (error := value_of(rows, guide, k, "final_mse_test")) is not None:
            errors[guide_label(guide, k)] = error[0]
    if original is None:
        return None
    title = f"{dataset_label(dataset)}: test images, mean z decoded through mean θ (seed {seed})"
    return original, seen, title, errors


def _as_images(pixels: np.ndarray) -> np.ndarray | None:
    """Images as they are, and vectors as squares if they can be; ``None`` for others."""
    if pixels.ndim == 3:
        return pixels
    side = math.isqrt(pixels.shape[1])
    return pixels.reshape(-1, side, side) if side * side == pixels.shape[1] else None


def _fits(config: SweepConfig, dataset: str) -> list[Fit]:
    """Fits of a data set, which in rows is known by its name and in the configuration perhaps by its path."""
    return [f for f in grid(config) if dataset in (f.dataset, Path(f.dataset).name)]


def _observed(folder: RunFolder, config: SweepConfig) -> int | None:
    """Size of a data point, of the first data set that was fitted."""
    keys = (fit.key for fit in grid(config) if (folder.path / "arrays" / f"{fit.key}.npz").exists())
    first = next(keys, None)
    return None if first is None else math.prod(folder.load_arrays(first)["original"].shape[1:])


def _memory(config: SweepConfig, frame: pd.DataFrame, observed: int) -> pd.DataFrame:
    """Parameters that give local factors, and bytes that fitting holds, for N from 1,000 to 1,000,000."""
    from amortized_bayes.experiments.estimate import sizes

    table = [
        {"guide": guide, "k": k, "N": n, "num_parameters": parameters, "memory_bytes": size}
        for guide, k in fits_of(frame)
        for n in (1_000, 10_000, 100_000, 1_000_000)
        for parameters, size in [sizes(config, observed, guide, k, n)]
        if guide != "factorized-from-amortized"
    ]
    return pd.DataFrame(table).astype({"k": "Int64"})
