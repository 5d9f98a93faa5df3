"""Text for tables and sentences: a value with its error, titles filled with factors, lists of words and seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from string import Formatter
from typing import TYPE_CHECKING

from amortized_bayes import labels, selection
from amortized_bayes.guides.registry import ALREADY

if TYPE_CHECKING:
    import pandas as pd

    from amortized_bayes.selection import Found

__all__ = ["ROW_ERRORS", "cell", "fill", "listed", "why_not", "with_seeds"]


ROW_ERRORS = (ArithmeticError, LookupError, TypeError, ValueError)
"""Errors raised when a sentence or a table is made from rows that lack what it needs."""


def why_not(error: Exception) -> str:
    """Why the rows give no such sentence or table."""
    return f"its rows have no {error}" if isinstance(error, LookupError) else " ".join(str(error).split())


def cell(metric: str, found: Found | None) -> str:
    """A value with its error, empty where there is none; a gap clearly below zero also has its z-score."""
    if found is None:
        return ""
    if math.isnan(found.value):
        missing = "before the smallest budget" if ALREADY in found.note else "not reached"
        return missing if metric.endswith("_to_share") else "none"
    shown = labels.metric_label(metric)
    text = f"{shown.scale * found.value:z.{shown.digits}f}"  # what rounds to 0 has no sign
    z = found.value / found.error if metric.endswith("gap") and found.error > 0 else 0.0
    error = f"±{shown.scale * found.error:.{shown.digits}f}" if math.isfinite(found.error) else ""
    doubts = [f"(z = {z:.1f})"] if z < -2 else []
    doubts += [f"({found.note})"] if found.note else []
    return " ".join([f"{text}{error}", *doubts])


def fill(title: str, rows: pd.DataFrame) -> str:
    """A title whose braces name factors, ``"{dataset}: gaps"``, or with ``{model}`` all that the rows share."""
    names = {name: "" for _, name, _, _ in Formatter().parse(title) if name}
    model = labels.describe(selection.factors_of(rows))
    return title.format_map({**names, **selection.shared(rows), "model": model}) if len(rows) else title


def listed(words: Iterable[str], last: str = "and") -> str:
    """One word or several, ``"a, b and c"``."""
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end


def with_seeds(some: set[int], seeds: set[int]) -> str:
    """The seeds concerned, as words; empty if all are."""
    return "" if some == seeds else f" with seed{'s' if len(some) > 1 else ''} {listed(map(str, sorted(some)))}"
