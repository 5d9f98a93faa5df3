"""Tables in Markdown, for papers' drafts and for the docs of this project."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from amortized_bayes.presenting.tables import filled_tables

if TYPE_CHECKING:
    import pandas as pd

    from amortized_bayes.experiments.spec import Table

__all__ = ["markdown_table", "print_markdown"]


def markdown_table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    r"""A table of texts.

    Example:
        >>> print(markdown_table(["q", "gap"], [["a|b", "0.1"]]))
        | q | gap |
        |---|---|
        | a\|b | 0.1 |
    """
    return "\n".join([_line(headings), f"|{'---|' * len(headings)}", *map(_line, lines)])


def print_markdown(tables: Iterable[Table], rows: pd.DataFrame, *, wide: bool = False) -> None:
    """Print tables of a run's rows, with their titles and captions.

    Raises:
        ValueError: a table whose lines leave open which number is meant.
    """
    for text in _texts(tables, rows, wide):
        print(text, end="\n\n")


def _texts(tables: Iterable[Table], rows: pd.DataFrame, wide: bool) -> Iterator[str]:
    for table in tables:
        for filled in filled_tables(table, rows) if wide or not table.wide else ():
            yield filled.title
            yield markdown_table(filled.headings, filled.cells)
            if filled.caption:
                yield filled.caption


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.strip().replace('|', chr(92) + '|') for cell in cells)} |"
