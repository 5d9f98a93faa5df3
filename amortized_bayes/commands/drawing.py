"""The figures of a run of any kind, drawn from its folder and saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from amortized_bayes.commands.gap_figures import draw_gaps, draw_qstar, draw_training
from amortized_bayes.commands.suboptimality_figures import draw_frozen_decoder, draw_set_gaps, draw_toy
from amortized_bayes.commands.sweep_figures import draw_sweep
from amortized_bayes.plotting import save_figure
from amortized_bayes.results import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_all"]


def draw_all(folder: RunFolder, frame: pd.DataFrame, into: Path | None = None) -> list[Path]:
    """Draw every figure that the rows allow, as PNG and PDF, into the run's folder or ``into``.

    Args:
        folder: a run.
        frame: its rows.
        into: another folder.

    Raises:
        ValueError: the figures cannot be written, or the run is of a kind that has none.
    """
    if folder.experiment not in DRAWERS:
        raise ValueError(f"expected a run with figures ({', '.join(DRAWERS)}), got {folder.path}")
    saved: list[Path] = []
    for name, figure in DRAWERS[folder.experiment](folder, frame):
        saved.extend(save_figure(figure, into or folder.path, name))
    return saved


DRAWERS: dict[str, Callable[[RunFolder, pd.DataFrame], Iterator[tuple[str, Figure]]]] = {
    "sweep": draw_sweep,
    "tune": draw_sweep,
    "train": draw_training,
    "gaps": draw_gaps,
    "qstar": draw_qstar,
    "test-set-gaps": draw_set_gaps,
    "frozen-decoder": draw_frozen_decoder,
    "toy-posteriors": draw_toy,
}
