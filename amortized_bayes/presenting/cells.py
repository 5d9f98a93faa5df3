"""Cells and titles: a value with its error, and the names of what all rows share."""

from __future__ import annotations

import math
from string import Formatter
from typing import TYPE_CHECKING

from amortized_bayes import labels, selection

if TYPE_CHECKING:
    import pandas as pd

    from amortized_bayes.selection import Found

__all__ = ["cell", "fill"]


def cell(metric: str, found: Found | None) -> str:
    """A value with its error, empty where there is none; a gap clearly below zero carries its z-score."""
    if found is None:
        return ""
    if math.isnan(found.value):
        return "not reached" if metric.endswith("_to_share") else "none"
    shown = labels.metric_label(metric)
    text = f"{shown.scale * found.value:.{shown.digits}f}"
    if not math.isfinite(found.error):
        return text
    z = found.value / found.error if metric.endswith("gap") and found.error > 0 else 0.0
    return f"{text}±{shown.scale * found.error:.{shown.digits}f}{f' (z = {z:.1f})' if z < -2 else ''}"


def fill(title: str, rows: pd.DataFrame) -> str:
    """A title whose braces name factors, ``"{dataset}: gaps"``, or with ``{model}`` all that the rows share."""
    names = {name: "" for _, name, _, _ in Formatter().parse(title) if name}
    model = labels.describe(selection.factors_of(rows))
    return title.format_map({**names, **selection.shared(rows), "model": model}) if len(rows) else title
