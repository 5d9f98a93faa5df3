"""Panels for any experiment: points with error bars, lines with bands, stacked bars, and one dot per data point.

They take numbers and names, and know nothing of what was measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from amortized_bayes.plotting.annotations import format_tick, log_scale
from amortized_bayes.plotting.style import MARKERS, PALETTE, GuideStyle

__all__ = [
    "LINES",
    "Series",
    "bend",
    "draw_bars",
    "draw_dots",
    "draw_lines",
    "draw_points",
    "series_style",
    "zero_line",
]

LINES = ("-", "--", "-.", ":")


class Series(NamedTuple):
    """What belongs together in a panel: its name, its look, and ``x``, ``y`` with ``low`` and ``high`` about it."""

    label: str
    look: GuideStyle
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


def series_style(place: int, line: str = "-") -> GuideStyle:
    """The look of the series at a place: by colour, and by marker for those who see none."""
    return GuideStyle(PALETTE[place % len(PALETTE)], line, MARKERS[place % len(MARKERS)], 1.4)


def draw_points(axes: Axes, series: Sequence[Series], names: Sequence[str], *, joined: bool) -> None:
    """Draw means with error bars at named places, ``joined`` by lines where x has an order."""
    aside = min(0.12, 0.6 / max(1, len(series)))
    for place, one in enumerate(series):
        x = one.x + aside * (place - (len(series) - 1) / 2)
        look = one.look.line() if joined else {**one.look.points(), "linestyle": "none"}
        axes.errorbar(x, one.y, yerr=_reach(one), capsize=2, label=one.label, **look)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)


def draw_lines(axes: Axes, series: Sequence[Series]) -> None:
    """Draw curves with bands, fainter ones where many overlap."""
    alpha = 0.15 if len(series) < 6 else 0.07
    for one in series:
        every = max(1, len(one.x) // 8)
        axes.plot(one.x, one.y, label=one.label, markevery=every, **one.look.line())
        if np.isfinite(one.low).any():
            axes.fill_between(one.x, one.low, one.high, color=one.look.color, alpha=alpha, linewidth=0)


def draw_bars(
    axes: Axes, bars: Sequence[Mapping[str, tuple[float, float]]], names: Sequence[str], width: float = 0.65
) -> None:
    """Draw the parts of each bar on top of each other, from zero, with their errors; a negative one hangs below."""
    labelled: set[str] = set()
    parts = list(dict.fromkeys(part for bar in bars for part in bar))
    for place, bar in enumerate(bars):
        top = {True: 0.0, False: 0.0}
        for part, (mean, error) in bar.items():
            look = _part_look(parts.index(part))
            base = top[mean >= 0]
            yerr = error if np.isfinite(error) else None
            label = None if part in labelled else part
            axes.bar(
                place,
                mean,
                width,
                bottom=base,
                yerr=yerr,
                capsize=2,
                label=label,
                edgecolor="white",
                linewidth=0.5,
                **look,
            )
            top[mean >= 0] = base + mean
            labelled.add(part)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")
    zero_line(axes)


def draw_dots(axes: Axes, points: pd.DataFrame) -> None:
    """Draw a dot per data point, and a box with quartiles over them.

    ``points`` has the columns ``place`` (names along x), ``part`` (names of the colours) and ``value``.
    """
    import seaborn as sns

    parts = list(dict.fromkeys(points["part"]))
    colors = {part: _part_look(number)["color"] for number, part in enumerate(parts)}
    shared: dict[str, Any] = {"data": points, "x": "place", "y": "value", "hue": "part", "palette": colors, "ax": axes}
    shared |= {"legend": False}
    black = {"color": "black", "linewidth": 0.9}
    look: dict[str, Any] = {"boxprops": {"facecolor": "none", "edgecolor": "black"}, "whiskerprops": black}
    look |= {"capprops": black, "medianprops": {"color": "black", "linewidth": 1.8}}
    with warnings.catch_warnings():  # seaborn 0.13 calls matplotlib 3.11 by an older name of an argument
        warnings.simplefilter("ignore", DeprecationWarning)
        state = np.random.get_state()  # noqa: NPY002 -- seaborn's jitter comes from there
        np.random.seed(0)  # noqa: NPY002
        sns.stripplot(**shared, dodge=True, jitter=0.28, size=2.2, alpha=0.5, zorder=1, rasterized=True)
        np.random.set_state(state)  # noqa: NPY002
        sns.boxplot(**shared, showfliers=False, linewidth=0.9, zorder=2, gap=0.2, **look)
    for part in parts:
        axes.plot([], [], "o", color=colors[part], label=part)
    axes.set_xlabel("")
    zero_line(axes)


def zero_line(axes: Axes) -> None:
    """Show zero, where anything is drawn about it."""
    axes.axhline(0, color="black", linewidth=0.8)


def bend(axes: Axes, which: str, linear: float = 0.1, shown: np.ndarray | None = None) -> None:
    """Make an axis logarithmic, or where values of zero or less would be lost, linear about zero and so beyond.

    ``shown`` are the values that must be seen; those of the lines without it.
    """
    lines = [np.asarray(line.get_xdata() if which == "x" else line.get_ydata(), float) for line in axes.get_lines()]
    lines = lines if shown is None else [shown]
    data = np.concatenate([np.empty(0), *lines])
    data = data[np.isfinite(data)]
    limit, scale = (axes.set_xlim, axes.set_xscale) if which == "x" else (axes.set_ylim, axes.set_yscale)
    if len(data) and (data > 0).all():
        limit(data.min() / 1.5, data.max() * 1.5)
        log_scale(axes, "x" if which == "x" else "y")
        return
    low, high = (
        (axes.get_xlim() if which == "x" else axes.get_ylim())
        if not len(data)
        else (min(1.5 * data.min(), -0.5 * linear), max(1.5 * data.max(), 0.5 * linear))
    )
    limit(low, high)
    scale("symlog", linthresh=linear)
    axis = axes.xaxis if which == "x" else axes.yaxis
    ticks = [sign * linear * 10.0**e for sign in (-1, 1) for e in range(7)]
    axis.set_major_locator(FixedLocator([t for t in sorted([*ticks, 0.0]) if low <= t <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(format_tick))
    if which == "y":
        zero_line(axes)


def _part_look(number: int) -> dict[str, Any]:
    """Colour and hatching of a part, either of which tells it from the others."""
    return {"color": PALETTE[(1, 6, 2, 4)[number % 4]], "hatch": ("", "//", "..", "xx")[number % 4]}


def _reach(series: Series) -> np.ndarray | None:
    """Lengths of the error bars below and above; ``None`` where there are none."""
    reach = np.stack([series.y - series.low, series.high - series.y])
    return np.nan_to_num(reach) if np.isfinite(reach).any() else None
