"""The final values of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["summarise"]


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the final values: of every metric of every fit the row with the largest step, the last written of equals.

    ``rows`` and the result have the columns ``ROW_FIELDS``; the order of writing is kept.
    """
    fit = ["experiment", "dataset", "model", "guide", "k", "seed", "metric"]
    last = rows.reset_index(drop=True).sort_values("step", kind="stable").drop_duplicates(fit, keep="last")
    return last.sort_index().reset_index(drop=True)
