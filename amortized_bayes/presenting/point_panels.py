"""Panels that show data points, from the arrays of jobs: gaps, one metric against another, ladders of bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from amortized_bayes import labels
from amortized_bayes.experiments.spec import Ecdf, Gaps, Ladder, Scatter
from amortized_bayes.per_point import mean_over_points
from amortized_bayes.plotting.panels import LINES, Series, bend, draw_dots, draw_points, series_style
from amortized_bayes.presenting.view import RunView
from amortized_bayes.types import Factor

__all__ = ["BELOW", "Ready", "of_points"]

Ready = tuple[Callable[[Axes], None], float]
"""What draws one panel, and how many inches wide it is."""
BELOW: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17)}
"""Position of a legend below the axes, where it hides no mark."""
OUTLIER = 2.0
"""Multiple of the 95% quantile of gaps beyond which a point would squeeze the others on a linear axis."""


def of_points(panel: Gaps | Scatter | Ecdf | Ladder, run: RunView) -> Ready | None:
    """What draws a panel of data points; ``None`` if no job kept its arrays."""
    if isinstance(panel, Gaps):
        return _gaps(panel, run)
    if isinstance(panel, Ecdf):
        return _ecdf(panel, run)
    return _scatter(panel, run) if isinstance(panel, Scatter) else _ladder(panel, run)


def _arrays(
    run: RunView, factor: str, where: Any, metrics: tuple[str, ...]
) -> Iterator[tuple[Factor, dict[str, np.ndarray]]]:
    """Arrays of the jobs that kept all these metrics, by the value of a factor, in reading order."""
    wanted = {name: value for name, value in where.items() if not isinstance(value, tuple)}
    for value in labels.order(factor, (run.jobs[key].get(factor) for key in run.find(wanted))):
        for key in run.find({**wanted, factor: value}):
            arrays = run.arrays(key)
            if all(metric in arrays for metric in metrics):
                yield value, arrays


def _gaps(panel: Gaps, run: RunView) -> Ready | None:
    """A dot per data point and metric."""
    found: list[pd.DataFrame] = []
    for value, arrays in _arrays(run, panel.x, panel.where, ()):
        for metric in (metric for metric in panel.y if metric in arrays):
            place, part = labels.value_label(panel.x, value), labels.metric_name(metric)
            found.append(pd.DataFrame({"value": arrays[metric].ravel(), "part": part, "place": place}))
    if not found:
        return None
    points = pd.concat(found, ignore_index=True)

    def draw(axes: Axes) -> None:
        draw_dots(axes, points)
        values = points["value"].to_numpy(float)
        values = values[np.isfinite(values)]
        if len(values) and values.max() > OUTLIER * np.quantile(values, 0.95):
            bend(axes, "y", 1.0, values)
        axes.set_xlabel(labels.factor_label(panel.x))
        axes.set_ylabel("gap of each data point (nats)\nbox: quartiles")
        axes.legend(ncols=2, **BELOW)

    return draw, 2.6 + 0.9 * points["place"].nunique()


def _ecdf(panel: Ecdf, run: RunView) -> Ready | None:
    """The share of points whose value is at most x."""
    found = [
        (
            f"{labels.metric_name(metric)}, {labels.value_label(panel.hue, value)}",
            place,
            nth,
            values,
        )
        for place, (value, arrays) in enumerate(_arrays(run, panel.hue, panel.where, panel.y))
        for nth, metric in enumerate(panel.y)
        if len(values := arrays[metric][np.isfinite(arrays[metric])])
    ]
    if not found:
        return None

    def draw(axes: Axes) -> None:
        for name, place, nth, values in found:
            line = {"markevery": max(1, len(values) // 6), "markersize": 3.5, "linewidth": 1.2}
            look = {**series_style(place, LINES[nth % len(LINES)]).line(), **line}
            axes.ecdf(values, label=name, **look)
        bend(axes, "x")
        if axes.get_xlim()[0] < 0:
            axes.axvline(0, color="black", linewidth=0.8)
        axes.set_ylim(0, 1)
        axes.set_xlabel(f"gap of each data point ({labels.metric_label(panel.y[0]).unit.split()[0]})")
        axes.set_ylabel("share of points at or below")
        axes.legend(ncols=2, **BELOW)

    return draw, 5.2


def _scatter(panel: Scatter, run: RunView) -> Ready | None:
    """One metric of each data point against another."""
    found = [
        (labels.value_label(panel.hue, value), arrays[panel.x].ravel(), arrays[panel.y].ravel())
        for value, arrays in _arrays(run, panel.hue, panel.where, (panel.x, panel.y))
    ]
    if not found:
        return None

    def draw(axes: Axes) -> None:
        for place, (name, x, y) in enumerate(found):
            look = series_style(place)
            dots: dict[str, Any] = {"marker": look.marker, "color": look.color, "markersize": 3, "alpha": 0.6}
            axes.plot(x, y, linestyle="none", markeredgewidth=0, label=name, rasterized=True, **dots)
        bend(axes, "y")
        if panel.edge is not None:
            axes.axvline(panel.edge[0], color="black", linewidth=1.0, linestyle="--", label=panel.edge[1])
        axes.set_xlabel(labels.axis_label(panel.x))
        axes.set_ylabel(f"{labels.metric_label(panel.y).heading} of each data point (nats)")
        axes.legend(ncols=3, markerscale=2, **BELOW)

    return draw, 4.6


def _ladder(panel: Ladder, run: RunView) -> Ready | None:
    """Mean distances from the last metric with standard errors of the paired differences; no last one, no ladder."""
    top = panel.metrics[-1]
    series: list[Series] = []
    for value, arrays in _arrays(run, panel.hue, panel.where, panel.metrics):
        found = [mean_over_points(arrays[metric] - arrays[top]) for metric in panel.metrics]
        y, error = (np.array(part, float) for part in zip(*found, strict=True))
        error[-1] = np.nan  # zero by definition
        x = np.arange(len(y), dtype=float)
        name = labels.value_label(panel.hue, value)
        series.append(Series(name, series_style(len(series)), x, y, y - error, y + error))
    if not series:
        return None

    def draw(axes: Axes) -> None:
        draw_points(axes, series, [labels.metric_label(metric).heading for metric in panel.metrics], joined=True)
        axes.set_ylabel(f"distance to {labels.metric_label(top).heading} (nats per point)\nbar: 1 standard error")
        axes.legend(title=labels.factor_label(panel.hue), ncols=3, **BELOW)

    return draw, 4.6
