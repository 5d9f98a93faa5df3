"""A metric of every guide against iterations and seconds: a mark for each budget that the guide was fitted with.

Marks of a line are separate fits, but for the last, which goes on from the one before, so that a line is no training
curve. A line is the mean over seeds, a band runs from the least seed to the greatest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from amortized_bayes.labels import dataset_label
from amortized_bayes.plotting.annotations import fix_layout, footnote, format_tick, format_value, log_scale, title
from amortized_bayes.plotting.frames import Group, by_guide, remarks, select, tidy, where, widths
from amortized_bayes.plotting.style import guide_style, style

__all__ = ["CURVES", "curve_figure"]

LINEAR_NATS = 0.3
"""Nats up to which the axis of distances to the reference is linear, unless none is ten times as large."""
LINEAR_SHARE = 0.01
SHARES = (-2.0, -0.5, 0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0, 1.02, 1.1)
"""Ticks of the share of the gap that is closed, each with a line across the panels."""
CLOCKS = {"step": "training budget (iterations)", "seconds": "training budget (seconds)"}


def _log_axis(axes: Axes) -> None:
    values = _drawn(axes)
    if len(values) and (values > 0).all():
        log_scale(axes, "y")


def _nats_axis(axes: Axes) -> None:
    """Linear about zero and logarithmic beyond, so that tenths of a nat can be read beside hundreds."""
    largest = float(np.abs(_drawn(axes)).max(initial=0.0)) or 1.0
    linear = LINEAR_NATS * 10.0 ** min(0, math.floor(math.log10(largest / LINEAR_NATS) - 1))
    steps = [linear * factor * 10.0**power for power in range(7) for factor in (1, 10 / 3)]
    _symlog(axes, linear, [*(-step for step in steps), 0.0, *steps], format_tick)


def _share_axis(axes: Axes) -> None:
    """Of what is left on a log scale, downwards; what is far behind constant VI, as the first budgets are, is cut."""
    _symlog(axes, LINEAR_SHARE, [1 - share for share in SHARES], lambda left, _: f"{1 - left:.0%}")
    low, high = axes.get_ylim()
    ends = [np.asarray(line.get_ydata(), float)[-1] for line in axes.get_lines()]
    axes.set_ylim(min(high, 1.3 * max(1.0, *ends)), low)


def _symlog(axes: Axes, linear: float, ticks: list[float], form: Callable[[float, int], str]) -> None:
    values = _drawn(axes)
    axes.set_yscale("symlog", linthresh=linear, linscale=0.5)
    low, high = values.min(initial=0.0), values.max(initial=0.0)
    axes.set_ylim(low * 1.3 - 0.3 * linear if low < 0 else -0.6 * linear, high * 1.3 + 0.1 * linear)
    axes.yaxis.set_major_locator(FixedLocator(sorted(ticks)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(form))


def _drawn(axes: Axes) -> np.ndarray:
    """All y that lines and bands reach."""
    return np.concatenate(
        [
            np.empty(0),
            *(np.asarray(line.get_ydata(), float) for line in axes.get_lines()),
            *(np.asarray(path.vertices)[:, 1] for band in axes.collections for path in band.get_paths()),
        ]
    )


class Curve(NamedTuple):
    """How a metric is drawn.

    Args:
        name: name of the figure, before the data set.
        label: label of the y axis, with the unit.
        axis: puts the y axis on its scale.
        drawn: what is drawn of a value.
        form: writes a value in the legend.
    """

    name: str
    label: str
    axis: Callable[[Axes], None] = _log_axis
    drawn: Callable[[Any], Any] = lambda value: value
    form: Callable[[float], str] = format_value


CURVES = {
    "behind_reference": Curve(
        "how far each guide stays behind the best F-VI found",
        "nats per point behind the reference (the line at 0)",
        _nats_axis,
        form=lambda nats: f"{nats + 0.0:.2f}",
    ),
    "share_closed": Curve(
        "share of the gap between constant VI and the best F-VI that is closed",
        "share of the gap closed",
        _share_axis,
        lambda share: 1 - share,
        lambda left: f"{1 - left:.1%}",
    ),
    "mse_train": Curve("reconstruction of training data", "training MSE (per pixel, grey in [0, 1])"),
    "mse_test": Curve("reconstruction of test data", "test MSE (per pixel, grey in [0, 1])"),
}
"""Metrics with a figure of their own."""


def curve_figure(frame: pd.DataFrame, dataset: str, metric: str) -> Figure:
    """Draw one metric (a key of ``CURVES``) of every guide against iterations (left) and seconds (right).

    Vacuous fits are thin and say so in the legend. Failed fits are thin, end in a cross, enter no mean, and are named
    under the panels. The legend gives the value with the largest budget.

    Raises:
        ValueError: a metric that has no figure, or of which there are no rows.
    """
    if metric not in CURVES:
        raise ValueError(f"expected a metric with a curve ({', '.join(CURVES)}), got {metric!r}")
    curve = CURVES[metric]
    rows = tidy(frame)
    chosen = select(rows, metric, dataset, curve=True)
    chosen = chosen.assign(value=curve.drawn(chosen["value"]))
    with style():
        figure = Figure(figsize=(10, 4.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (clock, label) in zip(panels, CLOCKS.items(), strict=True):
            for group in by_guide(chosen):
                _draw(axes, group, clock, widths(rows), curve.form)
            axes.set_xlabel(label)
        curve.axis(panels[0])
        panels[0].set_ylabel(curve.label)
        for axes in panels:
            _crop(axes)
            log_scale(axes, "x")
        if metric == "behind_reference":
            for axes in panels:
                axes.axhline(0, color="black", linewidth=0.9, zorder=1.5)
        figure.legend(
            handles=panels[0].get_legend_handles_labels()[0],
            loc="outside right center",
            title=_legend_title(chosen),
            alignment="left",
            labelspacing=0.7,
        )
        title(figure, f"{dataset_label(dataset)}: {curve.name}")
        footnote(figure, remarks(chosen, rows, dataset))
        fix_layout(figure)
    return figure


def _draw(axes: Axes, group: Group, clock: str, all_widths: tuple[int, ...], form: Callable[[float], str]) -> None:
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
    label = f"{group.label}: {form(line['mean'].iloc[-1])}"
    axes.plot(line[clock], line["mean"], label=label, zorder=2 + (group.guide != "amortized"), **keywords)
    if group.num_seeds > 1:
        axes.fill_between(line[clock], line["min"], line["max"], color=look.color, alpha=0.18, linewidth=0)


def _crop(axes: Axes) -> None:
    """Leave no room for marks that lie beyond the y axis."""
    low, high = sorted(axes.get_ylim())
    marks = [np.stack([np.asarray(line.get_xdata()), np.asarray(line.get_ydata())], 1) for line in axes.get_lines()]
    seen = [x for line in marks for x, y in line if low <= y <= high]
    if seen:
        axes.set_xlim(min(seen) / 1.2, max(seen) * 1.2)


def _mean_over_seeds(group: Group, clock: str) -> pd.DataFrame:
    """Average at the steps that all seeds of the group reached; seconds are averaged too."""
    by_step: Any = group.rows.dropna(subset="value").groupby("step")
    line = by_step["value"].agg(["mean", "min", "max", "count"]).join(by_step["seconds"].mean()).reset_index()
    return _positive(where(line, line["count"] == group.num_seeds), clock)


def _positive(line: pd.DataFrame, clock: str) -> pd.DataFrame:
    """Drop what a log axis cannot show: a budget of no step."""
    return where(line, line[clock] > 0)


def _legend_title(rows: pd.DataFrame) -> str:
    seeds = {group.num_seeds for group in by_guide(rows) if group.fate != "failed"} or {1}
    if seeds == {1}:
        return "with the whole budget; one seed"
    count = f"{max(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    return f"with the whole budget; mean of {count} seeds;\nband: least to greatest seed"
