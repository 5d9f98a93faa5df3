"""What a page about a report says: its verdict, its summary, its figures and tables, and what could not be made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from amortized_bayes import labels
from amortized_bayes.page.parts import Missing, Part, Section, Table, Words

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["contents"]

ERRORS = (ArithmeticError, LookupError, RuntimeError, ValueError)
"""What may go wrong in making one part; the others are made all the same."""


def contents(
    verdict: Any, summary: Callable[[], pd.DataFrame], parts: Iterable[tuple[str, Callable[[], Part]]]
) -> list[Section]:
    """The sections of a page.

    Args:
        verdict: whose ``str`` is its words; ``reasons`` say why it abstains.
        summary: makes the table of means.
        parts: figures and tables by name, each with what makes it.
    """
    words = str(verdict)
    reasons = [f"no verdict: {reason}" for reason in verdict.reasons if reason not in words]
    made: list[Part] = []
    missing: list[str] = []
    for name, make in [("summary", lambda: _frame_table("Summary", summary())), *parts]:
        try:
            made.append(make())
        except ERRORS as error:
            missing.append(f"{name}: {' '.join(str(error).split())}")
    return [
        Section("What was found", [[Words([*words.split("\n"), *reasons], leads=True)]]),
        Section("Numbers and figures", [made]),
        Section("Not shown", [[Missing(missing)] if missing else []]),
    ]


def _frame_table(title: str, frame: pd.DataFrame) -> Table:
    """A data frame, its index as names of the lines; what is missing is left empty."""
    lines = zip(frame.index, frame.to_dict("records"), strict=True)
    cells = [(_cell(name), *(_cell(value) for value in row.values())) for name, row in lines]
    headings = [_words(name) for name in frame.columns]
    texts = [_words(name) for name in frame.columns if frame[name].map(lambda value: isinstance(value, str)).any()]
    return Table(title, ["", *headings], cells, texts=texts)


def _words(name: Any) -> str:
    return labels.METRICS[name].heading if name in labels.METRICS else str(name).replace("_", " ")


def _cell(value: Any) -> str:
    if value is None or type(value).__name__ == "NAType" or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else str(value)
    return labels.METRICS[value].heading if value in labels.METRICS else str(value).replace("_", " ")
