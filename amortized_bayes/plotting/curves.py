"""Training curves: one metric of every guide against iterations and against seconds.

The ELBO is drawn as the negative ELBO, ``nelbo = -elbo``, in nats per point: lower is better, and no
curve is measured from another. A line is the mean over seeds, a band runs from the least seed to the greatest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amortized_bayes.labels import dataset_label
from amortized_bayes.plotting.annotations import fix_layout, footnote, format_value, log_scale, title
from amortized_bayes.plotting.frames import Group, by_guide, remarks, select, tidy, where, widths
from amortized_bayes.plotting.style import guide_style, style

__all__ = ["CURVES", "curve_figure"]

FEW_POINTS = 12
"""A curve with no more points than this shows each of them."""


class Curve(NamedTuple):
    """How a metric is read: ``sign`` times the value, named ``label`` with its unit, on a log axis if ``log``."""

    name: str
    label: str
    sign: float = 1.0
    log: bool = True


CURVES = {
    "elbo": Curve("Negative ELBO on training data", "negative ELBO (nats per point)", sign=-1.0),
    "mse_train": Curve("Reconstruction of training data", "training MSE (per pixel, grey in [0, 1])"),
    "mse_test": Curve("Reconstruction of test data", "test MSE (per pixel, grey in [0, 1])"),
    "kl": Curve("What the latents carry", "KL from the prior (nats per point)", log=False),
}


def curve_figure(frame: pd.DataFrame, dataset: str, metric: str) -> Figure:
    """Draw one metric (a key of ``CURVES``) of every guide against iterations (left) and seconds (right).

    Vacuous fits are thin and say so in the legend. Failed fits are thin, end in a cross, enter no mean, and are named
    under the panels. The legend gives the last value of each line.
    """
    if metric not in CURVES:
        raise ValueError(f"expected a metric with a curve ({', '.join(CURVES)}), got {metric!r}")
    curve = CURVES[metric]
    rows = tidy(frame)
    chosen = select(rows, metric, dataset, curve=True)
    with style():
        figure = Figure(figsize=(10, 4.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, clock in zip(panels, ("step", "seconds"), strict=True):
            for place, group in enumerate(by_guide(chosen.assign(value=curve.sign * chosen["value"]))):
                _draw(axes, group, clock, widths(rows), place)
        _scales(panels, curve)
        figure.legend(
            handles=_handles(panels[0]),
            loc="outside right center",
            title=_legend_title(chosen),
            alignment="left",
            labelspacing=0.7,
        )
        title(figure, f"{curve.name}, {dataset_label(dataset)}")
        footnote(figure, remarks(chosen, rows, dataset))
        fix_layout(figure)
    return figure


def _draw(axes: Axes, group: Group, clock: str, all_widths: tuple[int, ...], place: int) -> None:
    look = guide_style(group.guide, group.k, all_widths)
    if group.fate == "failed":
        for place_of_fit, (_, fit) in enumerate(group.rows.groupby("seed")):
            points = _positive(fit.sort_values("step"), clock).dropna(subset="value")
            label = group.label if place_of_fit == 0 else None
            cross: dict[str, Any] = {"marker": "X", "markersize": 7, "markevery": [-1]} if len(points) else {}
            axes.plot(points[clock], points["value"], color=look.color, linewidth=0.7, label=label, **cross)
        return
    line = _mean_over_seeds(group, clock)
    if line.empty:
        return
    keywords: dict[str, Any] = look.line() | ({"linewidth": 0.7, "markersize": 3.5} if group.fate == "vacuous" else {})
    every = 1 if len(line) <= FEW_POINTS else (0.02 * (place % 5), 0.14)
    label = f"{group.label}: {format_value(line['mean'].iloc[-1])}"
    axes.plot(
        line[clock], line["mean"], markevery=every, label=label, zorder=2 + (group.guide != "amortized"), **keywords
    )
    if group.num_seeds > 1:
        axes.fill_between(line[clock], line["min"], line["max"], color=look.color, alpha=0.18, linewidth=0)


def _mean_over_seeds(group: Group, clock: str) -> pd.DataFrame:
    """Average at the steps that all seeds of the group reached; seconds are averaged too."""
    by_step: Any = group.rows.dropna(subset="value").groupby("step")
    line = by_step["value"].agg(["mean", "min", "max", "count"]).join(by_step["seconds"].mean()).reset_index()
    return _positive(where(line, line["count"] == group.num_seeds), clock)


def _positive(line: pd.DataFrame, clock: str) -> pd.DataFrame:
    """Drop what a log axis cannot show: the state before the first step."""
    return where(line, line[clock] > 0)


def _scales(panels: np.ndarray, curve: Curve) -> None:
    left, right = panels
    log_scale(left, "x")
    log_scale(right, "x")
    values = np.concatenate([[], *(np.asarray(line.get_ydata(), float) for line in left.get_lines())])
    if curve.log and len(values) and (values > 0).all():
        log_scale(left, "y")
    left.set_xlabel("iterations")
    right.set_xlabel("training time (seconds)")
    left.set_ylabel(curve.label)


def _handles(axes: Axes) -> list:
    return axes.get_legend_handles_labels()[0]


def _legend_title(rows: pd.DataFrame) -> str:
    seeds = {group.num_seeds for group in by_guide(rows) if group.fate != "failed"} or {1}
    if seeds == {1}:
        return "last value; one seed"
    count = f"{max(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    return f"last value; mean of {count} seeds\nband: least to greatest seed"
