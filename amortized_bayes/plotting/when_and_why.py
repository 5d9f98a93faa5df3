"""Models of which it is known what f must see: the family gap by width and input, and the course of the fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from amortized_bayes.plotting.annotations import fix_layout, log_scale, title
from amortized_bayes.plotting.panels import Series, draw_lines, draw_points
from amortized_bayes.plotting.style import GuideStyle, style

__all__ = ["ModelPanel", "course_figure", "when_and_why_figure"]

COLUMNS = 3
LINEAR_BELOW = 0.01
"""Nats per point; below them the axis is linear, so that it has a 0."""


class ModelPanel(NamedTuple):
    """One model.

    Args:
        name: name of the model.
        series: gaps of A-VI by what f sees, at the places of the widths; or courses.
        lines: gaps that do not depend on the width, each with its look.
    """

    name: str
    series: Sequence[Series]
    lines: Mapping[str, tuple[float, GuideStyle]] = {}


def when_and_why_figure(panels: Sequence[ModelPanel], widths: Sequence[int], heading: str) -> Figure:
    """Family gap against width, a panel per model, a curve for each input; F-VI's optimum is the line at 0."""
    with style():
        figure, axes = _panels(len(panels))
        for place, (one, panel) in enumerate(zip(axes, panels, strict=False)):
            names = ["linear" if k == 0 else str(k) for k in widths]
            draw_points(one, panel.series, names, joined=True)
            for label, (value, look) in panel.lines.items():
                one.axhline(value, label=label, color=look.color, linestyle=look.linestyle, linewidth=look.linewidth)
            one.axhline(0, color="black", linewidth=0.8, label="F-VI's optimum, exact")
            one.set_title(panel.name)
            _log_with_zero(one)
            one.set_xlabel("width k of f" if place >= len(panels) - COLUMNS else "")
            one.set_ylabel("family gap (nats per point)" if place % COLUMNS == 0 else "")
        _finish(figure, axes, len(panels), heading)
    return figure


def course_figure(panels: Sequence[ModelPanel], share: float, heading: str) -> Figure:
    """Nats behind F-VI's optimum against steps, a panel per model, with the level that counts as having come near."""
    with style():
        figure, axes = _panels(len(panels))
        for place, (one, panel) in enumerate(zip(axes, panels, strict=False)):
            draw_lines(one, panel.series)
            start = max(float(series.y.max()) for series in panel.series)
            one.axhline((1 - share) * start, color="black", linewidth=0.8, label=f"{1 - share:.0%} of the start's gap")
            one.set_title(panel.name)
            log_scale(one, "x")
            log_scale(one, "y")
            one.set_xlabel("steps" if place >= len(panels) - COLUMNS else "")
            one.set_ylabel("nats per point behind\nF-VI's optimum" if place % COLUMNS == 0 else "")
        _finish(figure, axes, len(panels), heading)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(0.6 + 2.9 * columns, 1.3 + 2.4 * rows), layout="constrained")
    return figure, [*figure.subplots(rows, columns, squeeze=False).ravel()]


def _log_with_zero(axes: Axes) -> None:
    """A logarithmic axis with a 0."""
    axes.set_yscale("symlog", linthresh=LINEAR_BELOW, linscale=0.6)
    top = max(axes.get_ylim()[1], LINEAR_BELOW)  # some scale, where all is 0
    ticks = [0, *(t for t in (0.01, 0.1, 1, 10, 100, 1000) if t <= 1.5 * top)]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(-0.3 * LINEAR_BELOW, 1.6 * top)


def _finish(figure: Figure, axes: Sequence[Axes], count: int, heading: str) -> None:
    for one in axes[count:]:
        one.set_visible(False)
    handles = {}
    for one in axes[:count]:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=3)
    title(figure, heading)
    fix_layout(figure)
