"""The points at which a guide loses most: one table, for pages about reports and for those about runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from amortized_bayes import labels
from amortized_bayes.page.parts import Table

__all__ = ["hardest_table"]

WORST = 10
"""Points in the table."""
COLUMNS = ("elbo", "log_p_lower", "amortization_gap", "approximation_gap", "inference_gap", "k_hat")


def hardest_table(
    values: Mapping[str, Any],
    called: Callable[[int], Sequence[str]],
    names: Sequence[str] = ("point",),
    whose: str = "",
    numbering: str = "",
) -> Table | None:
    """The points with the largest inference gap, the worst first; ``None`` where no point has one.

    Args:
        values: arrays by name, of which those per point, ``(B,)`` in nats, are shown.
        called: what the point at a place is called, a text for each of ``names``.
        names: headings of these texts.
        whose: whose gaps they are, in words.
        numbering: how points are numbered.
    """
    gap = np.asarray(values.get("inference_gap", ()), dtype=float)
    if gap.ndim != 1 or not np.isfinite(gap).any():
        return None
    columns = {name: np.asarray(values[name], dtype=float) for name in COLUMNS if name in values}
    columns = {name: column for name, column in columns.items() if column.shape == gap.shape}
    worst = np.argsort(np.where(np.isfinite(gap), -gap, np.inf), kind="stable")[:WORST]
    cells = [[*called(int(place)), *(f"{column[place]:.2f}" for column in columns.values())] for place in worst]
    title = f"The {len(cells)} points with the largest inference gap{f' of {whose}' if whose else ''}"
    headings = [*names, *(labels.metric_label(name).heading for name in columns)]
    return Table(title, headings, cells, f"nats; points are numbered {numbering}", texts=tuple(names[1:]))
