"""Titles, footnotes, and ticks that print plain numbers on any scale."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

__all__ = ["fix_layout", "footnote", "format_tick", "format_value", "log_scale", "title"]

CHARACTERS_PER_INCH = 14.5


def title(figure: Figure, text: str) -> None:
    """Set the title at the left, wrapped to the figure's width."""
    figure.suptitle(_wrap(figure, text, 11), x=0.01, ha="left")


def footnote(figure: Figure, lines: Sequence[str]) -> None:
    """Write small lines under the panels; the layout keeps room for them."""
    if lines:
        text = "\n".join(_wrap(figure, line, 7.5) for line in lines)
        figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color="0.3")


def format_value(value: float, error: float | None = None) -> str:
    """Return a value to three digits; with a standard error, signed and to the decimals that the error leaves known."""
    if error and math.isfinite(error):
        decimals = min(max(0, -math.floor(math.log10(error / 2))), 6)
        return f"{value:+.{decimals}f}"
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e6:
        return f"{value:.3g}"
    return f"{value:.{0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4}f}"


def format_tick(value: float, _: int = 0) -> str:
    """Return a short plain number: 0.02, 500, 20k, 3M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1e3 if name == 'k' else unit):g}{name}"
    return f"{value:g}"


def log_scale(axes: Axes, which: Literal["x", "y"]) -> None:
    """Put an axis on a log scale, with plain numbers at as many ticks as its range (set before) can carry."""
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = sorted(axis.get_view_interval())
    ratio = high / low
    if ratio < 4:
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        axis.set_minor_locator(NullLocator())
    else:
        subs = (1, 2, 3, 5, 7) if ratio < 12 else (1, 2, 5) if ratio < 60 else (1, 3) if ratio < 500 else (1,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=15))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(format_tick))


def fix_layout(figure: Figure) -> None:
    """Lay the figure out and fix the places found.

    A live layout moves by a fraction of a pixel with the resolution and with each draw: no two files would agree.
    """
    for _ in range(2):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _wrap(figure: Figure, text: str, size: float) -> str:
    columns = int(figure.get_figwidth() * CHARACTERS_PER_INCH * 9 / size)
    return "\n".join(textwrap.wrap(text, columns))
