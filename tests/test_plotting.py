"""What every figure does: it is saved whole, the same each time, and leaves no trace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from sweep_rows import make, make_images

from amortized_bayes.plotting import (
    curve_figure,
    family_gap_figure,
    save_figure,
    style,
)
from amortized_bayes.results import durable

FIGURES: dict[str, Callable[[], Figure]] = {
    "curve": lambda: curve_figure(make(failing=True), "mnist", "behind_reference"),
    "gap": lambda: family_gap_figure(make(failing=True)),
    "time": lambda: curve_figure(make(failing=True), "mnist", "share_closed"),
    "images": make_images,
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.slow_cases("curve", "gap", "time")
def test_saved_figures_are_whole_and_the_same_twice(name: str, tmp_path: Path) -> None:
    figure = FIGURES[name]()
    first = {path.name: path.read_bytes() for path in save_figure(figure, tmp_path / "new", name)}
    assert sorted(first) == [f"{name}.pdf", f"{name}.png"]
    assert first[f"{name}.png"].startswith(b"\x89PNG")
    assert first[f"{name}.pdf"].startswith(b"%PDF")
    assert first[f"{name}.pdf"].rstrip().endswith(b"%%EOF")
    again = {path.name: path.read_bytes() for path in save_figure(figure, tmp_path / "new", name)}
    built_again = {path.name: path.read_bytes() for path in save_figure(FIGURES[name](), tmp_path / "new", name)}
    assert first == again == built_again
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(first)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
def test_figures_leave_no_trace(name: str, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 31, "axes.grid": False}):
        figure = FIGURES[name]()
        save_figure(figure, tmp_path, name)
        assert mpl.rcParams["font.size"] == 31
    assert dict(mpl.rcParams) == before
    if name != "images":
        assert figure.axes[0].xaxis.label.get_size() < 12


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = FIGURES["images"]()
    save_figure(figure, tmp_path, "images")
    before = (tmp_path / "images.png").read_bytes()

    def break_off(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        raise OSError("disk full")

    monkeypatch.setattr(durable, "_write_synced", break_off)
    with pytest.raises(ValueError, match=r"cannot write to .*: disk full"):
        save_figure(figure, tmp_path, "images")
    assert (tmp_path / "images.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.pdf", "images.png"]


def test_style_puts_back_what_was_there_after_an_error() -> None:
    before = dict(mpl.rcParams)
    inside = {}

    @style()
    def break_off() -> None:
        inside.update(mpl.rcParams)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert inside != before
    assert dict(mpl.rcParams) == before


def test_plotting_imports_neither_torch_nor_pyplot() -> None:
    unwanted = "{'torch', 'pyro', 'matplotlib.pyplot'}"
    code = f"import sys, amortized_bayes.plotting; print(sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
