"""Tables, figures and sentences of a run, from what its experiment declares. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amortized_bayes.presenting.progress import Progress, duration
from amortized_bayes.results import RunFolder

__all__ = ["Progress", "duration", "present"]


def present(
    experiment: Any,
    folder: RunFolder,
    *,
    wide: bool = False,
    claims: bool = True,
    draw: bool = True,
    into: Path | None = None,
) -> list[Path]:
    """Print what a run found, in sentences and then in tables, then draw its figures; return their files.

    A table or figure that cannot be made is a line that says why, and the others follow.

    Args:
        experiment: with ``TABLES``, ``FIGURES`` and perhaps ``FINDINGS``.
        folder: a run.
        wide: whether to print wide tables too.
        claims: whether to print published claims too.
        draw: whether to draw figures.
        into: folder for figures; the run's own by default.

    Raises:
        ValueError: rows that cannot be read.
    """
    from amortized_bayes.experiments.spec import Claims
    from amortized_bayes.presenting.sentences import sentences
    from amortized_bayes.presenting.tables import print_tables

    rows = folder.rows()
    if not len(rows):
        print(f"{folder.path} has no rows yet")
        return []
    for sentence in sentences(rows, getattr(experiment, "FINDINGS", ())):
        print(sentence)
    print()
    for table in experiment.TABLES:
        if claims or not isinstance(table, Claims):
            try:
                print_tables([table], rows, wide=wide)
            except ValueError as error:
                print(f"table {table.title!r} cannot be printed: {error}")
    if not draw:
        return []
    from amortized_bayes.presenting.figures import draw_figures
    from amortized_bayes.presenting.view import RunView

    return draw_figures(experiment.FIGURES, RunView(folder), rows, into)
