"""Nats recovered against what they take: seconds at test time with the Pareto front, and seconds of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from amortized_bayes.plotting.annotations import fix_layout, log_scale, title
from amortized_bayes.plotting.style import MARKERS, PALETTE, style

__all__ = ["Way", "closing_figure"]

HALO = [withStroke(linewidth=2.0, foreground="white")]
FRONT = "Pareto front"
ROOM = 0.25
"""Of the axis of nats that shows losses, at most, of what there is to recover."""


class Way(NamedTuple):
    """A method at one data set, at each of its numbers of steps.

    Args:
        name: for the legend.
        steps: numbers of steps, 0 where the method has none.
        recovered: nats per point.
        error: its standard errors.
        milliseconds: per point at test time.
        training: seconds of further training, nan where there is none.
        is_ceiling: whether what it recovers is all that there is.
    """

    name: str
    steps: Sequence[int]
    recovered: Sequence[float]
    error: Sequence[float]
    milliseconds: Sequence[float]
    training: Sequence[float]
    is_ceiling: bool = False


def closing_figure(found: Mapping[str, Sequence[Way]], heading: str) -> Figure:
    """A row for each data set: against milliseconds per point at test time, and against seconds of training."""
    names = list(dict.fromkeys(way.name for ways in found.values() for way in ways))
    with style():
        figure = Figure(figsize=(9.6, 1.4 + 3.3 * len(found)), layout="constrained")
        rows = figure.subplots(len(found), 2, squeeze=False)
        for (left, right), (dataset, ways) in zip(rows, found.items(), strict=True):
            _front(left, ways)
            low = _limits(ways)[0]
            for way in ways:
                look = _look(names.index(way.name))
                _series(left, way, way.milliseconds, look, 0.9 * low)
                if np.isfinite(way.training).any():
                    _series(right, way, way.training, look, 0.9 * low)
            for axes in (left, right):
                _levels(axes, ways)
            left.set_title(dataset)
            left.set_ylabel("nats recovered per point, bar: 1 s.e.")
            left.set_xlabel("milliseconds per point at test time")
            right.set_xlabel("seconds of training beyond the model's own")
            for axes in (left, right):
                axes.margins(x=0.08)
                log_scale(axes, "x")
        handles: dict[str, Any] = {}
        for axes in rows.ravel():
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
        title(figure, heading)
        fix_layout(figure)
    return figure


def _look(place: int) -> dict[str, Any]:
    """Marker, colour and filling, such that markers alone tell methods apart."""
    color = PALETTE[place % len(PALETTE)]
    filled = place < len(MARKERS)
    face = color if filled else "white"
    return {"color": color, "marker": MARKERS[place % len(MARKERS)], "markerfacecolor": face, "markeredgecolor": color}


def _series(axes: Axes, way: Way, x: Sequence[float], look: dict[str, Any], low: float) -> None:
    """The points of a method, joined, each with its number of steps; what lies below ``low`` is written at the edge."""
    values = np.maximum(way.recovered, low)
    cut = values > np.asarray(way.recovered)
    error = np.where(cut, 0.0, way.error)
    axes.errorbar(x, values, yerr=error, **look, linewidth=0.9, markersize=6, capsize=2, label=way.name)
    near: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "path_effects": HALO, "ha": "center"}
    for steps, recovered, place, value, lost in zip(way.steps, way.recovered, x, values, cut, strict=True):
        words = [f"{steps}"] if steps else []
        words += [f"{recovered:.2g}"] if lost else []
        if words:
            axes.annotate(": ".join(words), (place, value), (0, 6), **near)


def _front(axes: Axes, ways: Sequence[Way]) -> None:
    """What no other point beats in both seconds and nats."""
    points = sorted((s, r) for way in ways for s, r in zip(way.milliseconds, way.recovered, strict=True))
    best: list[tuple[float, float]] = []
    for seconds, recovered in points:
        if recovered > max([0.0, *(value for _, value in best)]):
            best.append((seconds, recovered))
    if best:
        end = max(seconds for seconds, _ in points)
        x, y = np.array([*best, (max(end, best[-1][0]), best[-1][1])]).T
        axes.plot(x, y, color="0.75", linewidth=4, drawstyle="steps-post", zorder=1, label=FRONT)


def _limits(ways: Sequence[Way]) -> tuple[float, float]:
    """Of the axis of nats: losses larger than a part of what there is to recover are cut off."""
    pairs = [(value, error) for way in ways for value, error in zip(way.recovered, way.error, strict=True)]
    high = max(value for value, _ in (*pairs, (1e-3, 0.0)))
    top = max(high, *(value + np.nan_to_num(error) for value, error in pairs))
    return max(min(0.0, *(value for value, _ in pairs)), -ROOM * high) - 0.08 * high, 1.08 * top


def _levels(axes: Axes, ways: Sequence[Way]) -> None:
    """The encoder's own answer, and what there is to recover."""
    ceilings = [max(way.recovered) for way in ways if way.is_ceiling]
    near: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "color": "0.3", "path_effects": HALO}
    for value, words in [(0.0, "the encoder's own answer"), *((c, "best q of each point") for c in ceilings[:1])]:
        axes.axhline(value, color="0.3", linewidth=0.8, linestyle=(0, (4, 2)), zorder=1.2)
        axes.annotate(words, (0.01, value), (0, 2), xycoords=("axes fraction", "data"), **near)
    axes.set_ylim(*_limits(ways))
