"""What the documentation shows is what the package has and what the kept runs draw."""

import contextlib
import io
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from matplotlib.testing.compare import compare_images

import amortized_bayes
from amortized_bayes.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GALLERY = (DOCS / "gallery.md").read_text(encoding="utf-8")
IMAGE = re.compile(r"\]\(\.\./images/([\w-]+)\.png\)")
QUICKEST = "gmm/quick"
"""Whose figures are drawn in every test run."""


def shown() -> dict[str, list[str]]:
    """Figures under each kept run of the gallery."""
    sections = re.split(r"^## ", GALLERY, flags=re.MULTILINE)[1:]
    found = {section.split("\n", 1)[0]: IMAGE.findall(section) for section in sections}
    return {run: images for run, images in found.items() if "/" in run}


def kept() -> list[str]:
    """Runs that are kept."""
    return sorted(
        str(path.parent.relative_to(ROOT / "results/reported")) for path in ROOT.glob("results/reported/*/*/FINISHED")
    )


def test_every_public_name_is_in_the_reference_once():
    named = re.findall(r"^\.\. auto\w+:: amortized_bayes\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(named) == amortized_bayes.__all__


def test_every_page_is_in_the_contents_once():
    contents = re.findall(r"^(\w+)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert sorted(contents) == sorted(page.stem for page in DOCS.glob("*.md") if page.stem != "index")


def test_every_figure_and_every_kept_run_is_in_the_gallery_once():
    assert sorted(IMAGE.findall(GALLERY)) == sorted(path.stem for path in ROOT.glob("images/*.png"))
    assert sorted(shown()) == kept()


@pytest.mark.parametrize(
    "run",
    [pytest.param(run, marks=[] if run == QUICKEST else pytest.mark.slow) for run, images in shown().items() if images],
)
def test_a_kept_run_draws_its_figures(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["plot", str(ROOT / "results/reported" / run), "--into", str(tmp_path)])
    for image in shown()[run]:
        drawn = [tmp_path / f"{name}.png" for name in (image, image.removesuffix("_fmnist"))]
        found = next((path for path in drawn if path.exists()), drawn[0])
        assert compare_images(str(ROOT / f"images/{image}.png"), str(found), tol=5) is None
    capsys.readouterr()


def test_the_architecture_page_names_every_file_of_the_package():
    page, package = (DOCS / "architecture.md").read_text(encoding="utf-8"), ROOT / "amortized_bayes"
    lists = re.findall(r"^- `(\w+)/`(.*)$", page, re.MULTILINE)
    for folder in (path for path in package.iterdir() if (path / "__init__.py").exists()):
        named = {name for listed, text in lists if listed == folder.name for name in re.findall(r"`(\w+)`", text)}
        assert {path.stem for path in folder.glob("*.py")} - named <= {"__init__"}, folder.name
    files = set(re.findall(r"`(\w+\.py)`", page.split("### Files by folder")[0]))
    assert sorted(files) == sorted(path.name for path in package.glob("*.py") if path.name != "__init__.py")
    for name in re.findall(r"`(\w+/\w+)`", page):
        assert (package / f"{name}.py").exists(), name


CELL = re.compile(r"(-?[\d,]+(?:\.\d+)?)%?±([\d,]+(?:\.\d+)?)")
FROM = re.compile(r"<!-- rows: (.+) -->")
GENERATED = re.compile(r"<!-- ([\w ]+): begin -->.*?<!-- \1: end -->", re.DOTALL)
"""Blocks of pages that other tests hold to what they are made from."""


class Shown(NamedTuple):
    """A table of a page: its first line's number, its text, and the runs that a comment above it names, if any."""

    line: int
    text: str
    runs: list[str] | None


def tables_of(page: str) -> list[Shown]:
    """Tables of a page but for generated ones."""
    page = GENERATED.sub(lambda block: "\n" * block[0].count("\n"), page)
    found = []
    for table in re.finditer(r"^\|.*(?:\n\|.*)*", page, re.MULTILINE):
        above = page[: table.start()].rstrip().rsplit("\n", 1)[-1]
        named = FROM.fullmatch(above)
        found.append(Shown(page[: table.start()].count("\n") + 1, table[0], named[1].split(", ") if named else None))
    return found


def cells_of(text: str) -> list[tuple[str, str]]:
    """Values and errors, as they are written."""
    text = text.replace("−", "-").replace("**", "")
    return [(value.replace(",", ""), error.replace(",", "")) for value, error in CELL.findall(text)]


@cache
def printed(run: str) -> list[tuple[str, str]]:
    """Values and errors in the tables of a kept run."""
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit, match=r"^0$"):
        main(["table", str(ROOT / "results/reported" / run), "--wide", "--markdown"])
    return cells_of(out.getvalue())


def is_among(cell: tuple[str, str], cells: list[tuple[str, str]]) -> bool:
    """Whether a cell is one of others, rounded to as many digits."""

    def is_rounded(short: str, long: str) -> bool:
        digits = len(short.partition(".")[2])
        return abs(float(short) - float(long)) <= 0.5 * 10**-digits + 1e-9

    return any(all(map(is_rounded, cell, other)) for other in cells)


PAGES = sorted(page.stem for page in DOCS.glob("*.md") if page.stem != "claims")


@pytest.mark.parametrize("name", PAGES)
def test_tables_of_a_page_are_those_of_kept_runs(name):
    for table in tables_of((DOCS / f"{name}.md").read_text(encoding="utf-8")):
        cells = cells_of(table.text)
        if not cells:
            continue
        where = f"{name}.md, table at line {table.line}"
        assert table.runs, f"{where}: expected a comment <!-- rows: RUN --> above it"
        known = [cell for run in table.runs for cell in printed(run)]
        strangers = ["±".join(cell) for cell in cells if not is_among(cell, known)]
        assert not strangers, f"{where}: not in {table.runs}"


def test_a_number_that_no_run_printed_is_found():
    known = cells_of("| gaussian | -207.27±0.72 | 20.6%±0.1 | −1,040±3 |")
    assert known == [("-207.27", "0.72"), ("20.6", "0.1"), ("-1040", "3")]
    assert all(is_among(cell, known) for cell in cells_of("-207.3±0.7 and 20.6±0.1"))
    assert not any(is_among(cell, known) for cell in cells_of("-207.2±0.7, -207.27±0.71, 207.27±0.72"))
    page = "<!-- a: begin -->\n| 1±2 |\n<!-- a: end -->\n\n<!-- rows: gmm/quick -->\n\n| q |\n|---|\n| 3±4 |\n\n| 5±6 |"
    assert [(t.line, cells_of(t.text), t.runs) for t in tables_of(page)] == [
        (7, [("3", "4")], ["gmm/quick"]),
        (11, [("5", "6")], None),
    ]
