"""What the documentation shows is what the package has and what the kept runs draw."""

import re
from pathlib import Path

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


def test_the_architecture_page_names_every_file_of_the_package_and_no_other():
    page, package = (DOCS / "architecture.md").read_text(encoding="utf-8"), ROOT / "amortized_bayes"
    lists = re.findall(r"^- `(\w+)/`(.*)$", page, re.MULTILINE)
    for folder in (path for path in package.iterdir() if (path / "__init__.py").exists()):
        named = {name for listed, text in lists if listed == folder.name for name in re.findall(r"`(\w+)`", text)}
        assert {path.stem for path in folder.glob("*.py")} - named <= {"__init__"}, folder.name
    files = set(re.findall(r"`(\w+\.py)`", page.split("### Files by folder")[0]))
    assert sorted(files) == sorted(path.name for path in package.glob("*.py") if path.name != "__init__.py")
    for name in re.findall(r"`(\w+/\w+)`", page):
        assert (package / f"{name}.py").exists(), name
