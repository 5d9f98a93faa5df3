"""Curves along a training that has stages: panels that share the steps, with a line where a stage ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from amortized_bayes.plotting.annotations import fix_layout, footnote, format_tick, log_scale, title
from amortized_bayes.plotting.panels import Series, draw_lines
from amortized_bayes.plotting.style import style

__all__ = ["StagePanel", "stages_figure"]

COLUMNS = 2


class StagePanel(NamedTuple):
    """A panel.

    Args:
        ylabel: label of its axis.
        series: its curves; values of 0 or less are left out where the axis is logarithmic.
        log: whether it is.
    """

    ylabel: str
    series: Sequence[Series]
    log: bool = False


def stages_figure(panels: Sequence[StagePanel], ends: Sequence[tuple[int, str]], heading: str, note: str) -> Figure:
    """Panels in two columns.

    Args:
        panels: with at least one curve each.
        ends: last step of each stage, and its name.
        heading: title.
        note: under the panels.
    """
    rows = -(-len(panels) // COLUMNS)
    with style():
        figure = Figure(figsize=(8.4, 0.9 + 2.5 * rows), layout="constrained")
        axes = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True).ravel()
        for one, panel in zip(axes, panels, strict=False):
            draw_lines(one, panel.series)
            if panel.log:
                positive = np.concatenate([series.y[series.y > 0] for series in panel.series])
                if len(positive):
                    one.set_ylim(positive.min() / 2, positive.max() * 2)
                    log_scale(one, "y")
            one.set_ylabel(panel.ylabel)
            if len(panel.series) > 1:
                one.legend()
            for step, _ in ends[:-1]:
                one.axvline(step, color="0.35", linewidth=0.8, linestyle=":")
        start = 0
        for step, name in ends:
            for one in axes[: min(COLUMNS, len(panels))]:
                one.text((start + step) / 2, 1.02, name, transform=one.get_xaxis_transform(), ha="center", color="0.3")
            start = step
        for one in axes[-COLUMNS:]:
            one.set_xlabel("steps")
            one.xaxis.set_major_formatter(FuncFormatter(format_tick))
        for one in axes[len(panels) :]:
            one.set_visible(False)
        title(figure, heading)
        footnote(figure, [note])
        fix_layout(figure)
    return figure
