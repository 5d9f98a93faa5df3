"""One look for every figure: fonts, colours, markers, and the way a figure reaches the disk.

Amortized guides lie on a blue ramp, light for the narrowest encoder and dark for the widest, and each width has its own
marker, so that a curve is known by lightness or marker alone. Factorized guides share one strong
hue off the ramp, solid for the own start and dashed for the start from an amortized fit; constant VI is dotted grey.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from amortized_bayes.results.durable import write_atomically

__all__ = ["MARKERS", "PALETTE", "GuideStyle", "guide_style", "save_figure", "size_style", "style"]

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,  # a data set may be called $\\frac$
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "0.35",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": "0.88",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "legend.handlelength": 3.0,
    "figure.titlesize": 11,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": "0.25",
    "ytick.color": "0.25",
    "pdf.fonttype": 42,
    "pdf.use14corefonts": False,
}
RAMPS = {
    "amortized": ("YlGnBu", "-", True),
    "semi-amortized": ("Greens", "--", False),
    "refined": ("Purples", "-.", False),
}
"""Of the guides with a width: their colours, lines, and whether markers are solid."""
RAMP_ENDS = (0.42, 0.98)
"""Places on the ramp of the narrowest and the widest encoder; lighter than the first is lost on white paper.

A-VI is blue because viridis, greenish where it is light, meets vermilion in the eyes of readers without red or green
cones: their nearest colours are then 27 apart (CIE 1976 Lab), on this ramp 62."""
VERMILION = "#D55E00"
WIDTH_MARKERS = ("o", "s", "^", "v", "P", "<", ">", "h", "p", "8")
SIZE_MARKERS = ("v", "P", "<", ">", "h", "p", "8")
"""Of networks by size, which stand beside families of q, the first of `MARKERS`."""


class GuideStyle(NamedTuple):
    """How one guide is drawn. ``filled`` says whether its marker is solid or an outline."""

    color: str
    linestyle: str
    marker: str
    linewidth: float
    filled: bool = True

    def line(self) -> dict[str, Any]:
        """Return the keywords for ``Axes.plot`` that draw the line with its markers."""
        return {"linestyle": self.linestyle, "linewidth": self.linewidth, **self.points()}

    def points(self) -> dict[str, Any]:
        """Return the keywords for ``Axes.plot`` or ``Axes.errorbar`` that colour the markers only."""
        face = self.color if self.filled else "white"
        return {"color": self.color, "marker": self.marker, "markerfacecolor": face, "markeredgecolor": self.color}


GUIDE_STYLES = {
    "factorized": GuideStyle(VERMILION, "-", "D", 2.0),
    "factorized-from-amortized": GuideStyle(VERMILION, "--", "D", 1.6, filled=False),
    "constant": GuideStyle("#444444", ":", "x", 1.8),
    "reference": GuideStyle("#000000", "-", "", 0.8),
}
OTHER_GUIDE = GuideStyle("#CC79A7", "-.", "*", 1.4)
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9", "#999999")
"""Colours for series that are no guides (Okabe & Ito), which readers without red or green cones tell apart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@contextmanager
def style() -> Iterator[None]:
    """Set the style for what is built or saved inside the ``with`` block, and put back what was there before."""
    with mpl.rc_context(RC):
        yield


def guide_style(guide: str, k: int | None = None, widths: Sequence[int] = ()) -> GuideStyle:
    """Return how to draw a guide.

    ``widths`` are all encoder widths of the study: the place of ``k`` among them gives its colour and marker, so pass
    the same ones to every figure that shall be read beside another.
    """
    if guide not in RAMPS:
        return GUIDE_STYLES.get(guide, OTHER_GUIDE)
    ramp, linestyle, filled = RAMPS[guide]
    places = sorted({*widths, *(() if k is None else (k,))})
    place = 0 if k is None else places.index(k)
    marker = WIDTH_MARKERS[place % len(WIDTH_MARKERS)]
    return GuideStyle(_on_ramp(ramp, place, len(places)), linestyle, marker, 1.4, filled)


def size_style(place: int, count: int) -> GuideStyle:
    """Return how to draw one of ``count`` networks in the order of their sizes: on the ramp of encoder widths."""
    return GuideStyle(_on_ramp("YlGnBu", place, count), "-", SIZE_MARKERS[place % len(SIZE_MARKERS)], 1.4)


def _on_ramp(ramp: str, place: int, count: int) -> str:
    start, stop = RAMP_ENDS
    share = place / (count - 1) if count > 1 else 0.8
    return to_hex(mpl.colormaps[ramp](start + (stop - start) * share))


def save_figure(figure: Figure, folder: str | os.PathLike[str], name: str, dpi: int = 180) -> list[Path]:
    """Write ``name.png`` and ``name.pdf`` into ``folder`` and return their paths.

    No file is ever seen half written, and none carries a date: the same figure gives the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _save(figure, folder / f"{name}.png", {"Software": None}, dpi),
        _save(figure, folder / f"{name}.pdf", {"CreationDate": None}, dpi),
    ]


def _save(figure: Figure, path: Path, metadata: dict[str, Any], dpi: int) -> Path:
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=path.suffix[1:], dpi=dpi, metadata=metadata)
    write_atomically(path, buffer.getvalue())
    return path
