"""Tables in Markdown, for drafts of papers and for the docs of this project."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from amortized_bayes.presenting.tables import filled_tables

if TYPE_CHECKING:
    import pandas as pd

    from amortized_bayes.experiments.spec import Table

__all__ = ["markdown_table", "print_markdown", "with_block"]


def markdown_table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    r"""A table of texts.

    Example:
        >>> print(markdown_table(["q", "gap"], [["a|b", "0.1"]]))
        | q | gap |
        |---|---|
        | a\|b | 0.1 |
    """
    return "\n".join([_line(headings), f"|{'---|' * len(headings)}", *map(_line, lines)])


def with_block(page: str, name: str, text: str) -> str:
    r"""A page whose block, between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``, is ``text``.

    Raises:
        ValueError: a page without one begin and, after it, one end.

    Example:
        >>> with_block("# Ours <!-- gaps: begin -->old<!-- gaps: end -->", "gaps", "new")
        '# Ours <!-- gaps: begin -->\n\nnew\n\n<!-- gaps: end -->'
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found or page.count(begin) + page.count(end) != 2:
        raise ValueError(f"expected a page with one {begin} and, after it, one {end}, got another")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


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
