"""Rows of a width sweep as figures take them, and the words in a figure."""

from __future__ import annotations

import made_runs
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text

from amortized_bayes.plotting import reconstruction_figure

WIDTHS = (1, 16, 256)
STAND_IN = "using digits instead of FashionMNIST"
OTHERS = ("factorized", "factorized-from-amortized", "constant")


def make(
    seeds: int = 3, all_widths: tuple[int, ...] = WIDTHS, failing: bool = False, datasets: tuple[str, ...] = ("mnist",)
) -> pd.DataFrame:
    """Rows; if ``failing``, the widest encoder fails with its last seed."""
    wide = ("amortized", all_widths[-1]) if failing else None
    note = STAND_IN if datasets[-1] == "fashion-mnist" else ""
    return made_runs.sweep(datasets, tuple(range(seeds)), all_widths, failing=wide, note=note).frame()


def make_images() -> Figure:
    originals = np.random.default_rng(0).random((6, 8, 8))
    return reconstruction_figure(
        originals, {"F-VI": originals * 0.9, "constant VI": originals * 0}, "t", {"F-VI": 0.002}
    )


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]
