"""The final values of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["summarise"]

_NUMBERS = ("step", "seconds", "value", "standard_error", "error_over", "status", "note")


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the final values: for every metric and distinct factors the row with the largest step.

    Of rows with equal steps the last that was written is kept. Columns and order of writing stay as they are.
    """
    identity = [name for name in rows.columns if name not in _NUMBERS]
    last = rows.reset_index(drop=True).sort_values("step", kind="stable").drop_duplicates(identity, keep="last")
    return last.sort_index().reset_index(drop=True)
