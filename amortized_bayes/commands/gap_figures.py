"""The figures of ``train``, ``gaps`` and ``qstar``, drawn from a run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from amortized_bayes.configuration import load_config
from amortized_bayes.experiments.qstar_study import QStarConfig, Search, searches
from amortized_bayes.plotting import (
    Curve,
    Decomposed,
    class_gap_figure,
    convergence_figure,
    dataset_label,
    decomposition_figure,
    training_figure,
)
from amortized_bayes.results import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_gaps", "draw_qstar", "draw_training"]


def draw_training(folder: RunFolder, frame: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """The course of training."""
    del folder
    if (frame["metric"] == "elbo").any():
        yield "training", training_figure(frame)


def draw_gaps(folder: RunFolder, frame: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """The decomposition overall, and by class where there are labels."""
    splits: dict[str, Decomposed] = {}
    for split in ("train", "test"):
        if (folder.path / "arrays" / f"{split}.npz").exists():
            arrays = folder.load_arrays(split)
            splits[split] = Decomposed(arrays, arrays.get("labels"))
    if not splits or not len(frame):
        return
    heading = f"Where the nats go: {_title(frame)}"
    yield "gaps", decomposition_figure(splits, heading)
    if any(split.labels is not None for split in splits.values()):
        yield "gaps_by_class", class_gap_figure(splits, heading)


def draw_qstar(folder: RunFolder, frame: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Convergence of q*, and what a search believes of itself against the truth."""
    config = load_config(QStarConfig, folder.path / "config.yaml")
    done = folder.done()
    known = [search for search in searches(config) if search.key in done]
    if not known or not len(frame):
        return
    reference = folder.load_arrays(Search("reference", 0.0, config.reference_steps).key)["elbo_star"]
    curves: list[Curve] = []
    for start in config.starts:
        for spread in config.spreads:
            here = [s for s in known if (s.start, s.spread) == (start, spread)]
            found = [folder.load_arrays(s.key) for s in here]
            evaluations = [float(np.mean(a["evaluations"])) for a in found]
            behind = [reference - a["elbo_star"] for a in found]
            curves.append(
                Curve(start, spread, [s.steps for s in here], evaluations, behind, [a["residual"] for a in found])
            )
    yield "qstar", convergence_figure(curves, f"How far q* can be trusted: {_title(frame)}")


def _title(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    return f"{first['model']} on {dataset_label(str(first['dataset']))}, seed {first['seed']}"
