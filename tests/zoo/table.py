"""The table of docs/your_model.md, made from what both calls did with each model: ``python tests/zoo`` writes it."""

from __future__ import annotations

from pathlib import Path

from zoo.entry import WORKS, ZOO, Entry

PAGE = Path(__file__).parents[2] / "docs" / "your_model.md"
BEGIN, END = "<!-- zoo: begin -->", "<!-- zoo: end -->"


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


def on_page(text: str) -> str:
    """What stands between the markers."""
    return text.split(BEGIN)[1].split(END)[0].strip("\n")


def write() -> None:
    """Put the table between the markers of the page."""
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


def pairs() -> list[tuple[Entry, str]]:
    """Each model and call."""
    return [(entry, call) for entry in ZOO for call in ("compare", "diagnose")]
