"""Where a trained model loses its nats, drawn: overall, by class, and point by point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amortized_bayes.plotting.furniture import settle, title
from amortized_bayes.plotting.style import style

__all__ = ["PARTS", "Decomposed", "class_gap_figure", "decomposition_figure", "stack"]

PARTS = {
    "approximation_gap": ("approximation (family)", "#D55E00", ""),
    "amortization_gap": ("amortization", "#56B4E9", "//"),
}
"""Label, colour and hatching of each part, which tells them apart without colour."""


class Decomposed(NamedTuple):
    """Gaps of one split: per point ``(B,)`` by name, and labels ``(B,)`` where there are some."""

    gaps: Mapping[str, np.ndarray]
    labels: np.ndarray | None


def decomposition_figure(splits: Mapping[str, Decomposed], heading: str) -> Figure:
    """Left: mean gaps of each split, stacked, with errors over points. Right: both gaps of all points, sorted."""
    with style():
        figure = Figure(figsize=(8.4, 3.5), layout="constrained")
        bars, points = figure.subplots(1, 2, width_ratios=[1, 1.5])
        for place, split in enumerate(splits.values()):
            stack(bars, place, _means(split.gaps), 0.6, label=not place)
        bars.set_xticks(range(len(splits)), [f"{name} points" for name in splits])
        bars.set_xlim(-0.6, len(splits) - 0.4)
        bars.set_ylabel("mean gap (nats a point), bar: 1 s.e.")
        bars.legend(loc="upper left")
        bars.set_ylim(top=1.35 * bars.get_ylim()[1])
        for (split, decomposed), line in zip(splits.items(), ("-", "--"), strict=False):
            for name, (label, color, _) in PARTS.items():
                values = np.sort(decomposed.gaps[name])
                share = (np.arange(len(values)) + 0.5) / len(values)
                points.plot(values, share, color=color, linestyle=line, label=f"{label}, {split}")
        points.axvline(0, color="black", linewidth=0.8)
        points.set_xlabel("gap of a point (nats)")
        points.set_ylabel("share of points below")
        points.legend(loc="lower right")
        title(figure, heading)
        settle(figure)
    return figure


def class_gap_figure(splits: Mapping[str, Decomposed], heading: str) -> Figure:
    """Mean gaps by class, stacked, with errors over points: one panel a split."""
    labelled = {name: split for name, split in splits.items() if split.labels is not None}
    with style():
        figure = Figure(figsize=(4.4 * len(labelled) + 0.6, 3.5), layout="constrained")
        panels = figure.subplots(1, len(labelled), sharey=True, squeeze=False)[0]
        for axes, (name, split) in zip(panels, labelled.items(), strict=True):
            assert split.labels is not None
            classes = np.unique(split.labels)
            for place, label in enumerate(classes):
                stack(axes, place, _means(split.gaps, split.labels == label), 0.75, label=not place)
            axes.set_xticks(range(len(classes)), [str(c) for c in classes])
            axes.set_xlabel("class")
            axes.set_title(f"{name} points")
            axes.grid(visible=False, axis="x")
        panels[0].set_ylabel("mean gap (nats a point), bar: 1 s.e.")
        panels[0].legend(loc="upper left")
        panels[0].set_ylim(top=1.25 * panels[0].get_ylim()[1])
        title(figure, heading)
        settle(figure)
    return figure


def stack(axes: Axes, place: int, gaps: Mapping[str, tuple[float, float]], width: float, *, label: bool) -> None:
    """Mean gaps with their errors on top of each other, from zero; a negative one hangs below."""
    top = {True: 0.0, False: 0.0}
    for name, (mean, error) in gaps.items():
        words, color, hatch = PARTS[name]
        base = top[mean >= 0]
        look = {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
        axes.bar(place, mean, width, bottom=base, yerr=error, capsize=2, label=words if label else None, **look)
        top[mean >= 0] = base + mean


def _means(gaps: Mapping[str, np.ndarray], here: np.ndarray | slice = slice(None)) -> dict[str, tuple[float, float]]:
    """Mean of each part, and its standard error over points."""
    found = {}
    for name in PARTS:
        values = gaps[name][here]
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
        found[name] = (float(values.mean()), error)
    return found
