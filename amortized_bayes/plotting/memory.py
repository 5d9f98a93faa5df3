"""What a guide costs in parameters and in memory as the data set grows."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from amortized_bayes.labels import guide_label
from amortized_bayes.plotting.annotations import fix_layout, log_scale
from amortized_bayes.plotting.annotations import title as set_title
from amortized_bayes.plotting.frames import by_guide, widths
from amortized_bayes.plotting.style import guide_style, style

__all__ = ["memory_figure"]

COLUMNS = ("guide", "k", "N", "num_parameters", "memory_bytes")
MEBIBYTE = 2**20


def memory_figure(table: pd.DataFrame) -> Figure:
    """Draw the number of parameters (left) and the memory (right) of each guide against N, all on log axes.

    ``table`` has a row per guide and N: ``guide``, ``k``, ``N``, ``num_parameters``, ``memory_bytes``.
    """
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing or table.empty:
        raise ValueError(
            f"expected rows with columns {', '.join(COLUMNS)}; missing: {', '.join(missing) or 'all rows'}"
        )
    rows = table.reset_index(drop=True)
    rows = rows.assign(k=pd.Series(rows["k"], dtype="Int64"), mebibytes=rows["memory_bytes"] / MEBIBYTE, fate="ok")
    with style():
        figure = Figure(figsize=(10, 4.0), layout="constrained")
        panels = figure.subplots(1, 2)
        _panel(panels[0], rows, "num_parameters", widths(rows))
        _panel(panels[1], rows, "mebibytes", widths(rows))
        panels[0].set_ylabel("parameters of the guide")
        panels[1].set_ylabel("memory (MiB)")
        figure.legend(handles=panels[0].get_legend_handles_labels()[0], loc="outside right center", labelspacing=0.7)
        set_title(figure, "What a guide costs as the data set grows")
        fix_layout(figure)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, column: str, all_widths: Sequence[int]) -> None:
    """Draw a line per guide; guides whose lines fall on one another share one, under both names."""
    drawn: dict[tuple[float, ...], Line2D] = {}
    for group in by_guide(rows):
        look = guide_style(group.guide, group.k, all_widths)
        line = group.rows.sort_values("N")
        label = guide_label(group.guide, group.k)
        points = tuple(line[["N", column]].to_numpy(float).ravel())
        if points in drawn:
            drawn[points].set_label(f"{drawn[points].get_label()}; {label}")
        else:
            (drawn[points],) = axes.plot(line["N"], line[column], label=label, **look.line())
    log_scale(axes, "x")
    log_scale(axes, "y")
    axes.set_xlabel("data points N")
