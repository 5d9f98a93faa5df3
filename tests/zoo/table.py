"""The table of docs/your_model.md, made from what both calls did with each model: ``python tests/zoo`` writes it."""

from __future__ import annotations

from pathlib import Path

from amortized_bayes.presenting.markdown import with_block
from zoo.entry import WORKS, ZOO, Entry

PAGE = Path(__file__).parents[2] / "docs" / "your_model.md"


def table() -> str:
    """Rows of the table: a model each."""
    head = ["model", "written after", "`compare`", "`diagnose`", "what to know"]
    rows = [[entry.name, entry.after, cell(entry.compare), cell(entry.diagnose), entry.know] for entry in ZOO]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    works = sum(entry.compare == WORKS for entry in ZOO), sum(entry.diagnose == WORKS for entry in ZOO)
    said = f"{len(ZOO)} models; `compare` works with {works[0]}, `diagnose` with {works[1]}; the others are refused."
    return "\n".join([said, "", *lines])


def cell(expected: str) -> str:
    return expected if expected == WORKS else f"refused: “{expected}”"


def page() -> str:
    """The page with the table in its place."""
    return with_block(PAGE.read_text(), "zoo", table())


def write() -> None:
    """Put the table into the page."""
    PAGE.write_text(page())


def pairs() -> list[tuple[Entry, str]]:
    """Each model and call."""
    return [(entry, call) for entry in ZOO for call in ("compare", "diagnose")]
