"""Tables, figures and sentences of a run, from what its experiment declares. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amortized_bayes.results import RunFolder

__all__ = ["draw", "present", "tell"]


def present(experiment: Any, folder: RunFolder, *, wide: bool = False) -> list[Path]:
    """Print what a run found, then draw its figures, and return their files; see :func:`tell` and :func:`draw`."""
    tell(experiment, folder, wide=wide, claims=False)
    return draw(experiment, folder)


def tell(
    experiment: Any, folder: RunFolder, *, wide: bool = False, claims: bool = True, markdown: bool = False
) -> None:
    """Print what a run found, in sentences and then in tables.

    A sentence or table that cannot be made from the rows is replaced by a line that says why.

    Args:
        experiment: module of the run's experiment, with ``TABLES`` and perhaps ``FINDINGS``.
        folder: a run.
        wide: whether to print wide tables too.
        claims: whether to print published claims too.
        markdown: whether to print only the tables, in Markdown.

    Raises:
        ValueError: rows that cannot be read.
    """
    from amortized_bayes.presenting.cells import ROW_ERRORS, why_not
    from amortized_bayes.presenting.claims import claims_found
    from amortized_bayes.presenting.markdown import print_markdown
    from amortized_bayes.presenting.sentences import sentences
    from amortized_bayes.presenting.tables import print_claims, print_tables
    from amortized_bayes.results.summary import summarise

    rows = folder.rows()
    if not len(rows):
        print(f"{folder.path} has no rows yet")
        return
    if not markdown:
        try:
            for sentence in sentences(rows, getattr(experiment, "FINDINGS", ())):
                print(sentence)
        except ROW_ERRORS as error:
            print(f"no sentences: {why_not(error)}")
        print()
    show = print_markdown if markdown else print_tables
    for table in experiment.TABLES:
        try:
            show([table], rows, wide=wide)
        except ROW_ERRORS as error:
            print(f"table {table.title!r} cannot be printed: {why_not(error)}")
    if claims and not markdown:
        preset = str(folder.environment().get("preset", ""))
        try:
            print_claims(list(claims_found(folder.experiment, summarise(rows), preset)))
        except ROW_ERRORS as error:
            print(f"published claims cannot be compared: {why_not(error)}")


def draw(experiment: Any, folder: RunFolder, into: Path | None = None) -> list[Path]:
    """Draw the figures of a run, into its folder or ``into``, and return their files.

    A figure that cannot be drawn is replaced by a line that says why.

    Args:
        experiment: module of the run's experiment, with ``FIGURES``.
        folder: a run.
        into: another folder.

    Raises:
        ValueError: rows that cannot be read.
    """
    from amortized_bayes.presenting.figures import draw_figures
    from amortized_bayes.presenting.view import RunView

    rows = folder.rows()
    return draw_figures(experiment.FIGURES, RunView(folder), rows, into) if len(rows) else []
