"""Cells of printed tables."""

from __future__ import annotations

import pandas as pd
from rich.console import Console

__all__ = ["cell", "wide_console"]


def cell(frame: pd.DataFrame, metric: str, decimals: int = 2) -> str:
    """A value with its standard error, empty where there is none; a gap below zero carries its z-score."""
    rows = frame[frame["metric"] == metric]
    if not len(rows) or pd.isna(rows["value"].iloc[0]):
        return ""
    value, error = float(rows["value"].iloc[0]), float(rows["standard_error"].iloc[0])
    if pd.isna(error):
        return f"{value:.{decimals}f}"
    below = f" (z = {value / error:.1f})" if metric.endswith("_gap") and value < 0 and error > 0 else ""
    return f"{value:.{decimals}f}±{error:.{decimals}f}{below}"


def wide_console(width: int) -> Console:
    """A console as wide as the terminal, or so wide where there is none; brackets in texts are no markup."""
    return Console(width=None if Console().is_terminal else width, markup=False)
