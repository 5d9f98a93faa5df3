"""Figures: data frames and arrays in, a matplotlib ``Figure`` out; ``save_figure`` alone touches the disk.

Nothing here imports torch, and no function changes matplotlib's global state.
"""

from amortized_bayes.plotting.convergence import Curve, convergence_figure
from amortized_bayes.plotting.curves import curve_figure
from amortized_bayes.plotting.decomposition import Decomposed, class_gap_figure, decomposition_figure
from amortized_bayes.plotting.gaps import family_gap_figure
from amortized_bayes.plotting.images import reconstruction_figure
from amortized_bayes.plotting.memory import memory_figure
from amortized_bayes.plotting.style import (
    GuideStyle,
    dataset_label,
    guide_label,
    guide_style,
    save_figure,
    style,
)
from amortized_bayes.plotting.suboptimality import Cloud, encoder_gap_figure, model_gap_figure, toy_figure
from amortized_bayes.plotting.timing import time_to_target_figure
from amortized_bayes.plotting.training import training_figure

__all__ = [
    "Cloud",
    "Curve",
    "Decomposed",
    "GuideStyle",
    "class_gap_figure",
    "convergence_figure",
    "curve_figure",
    "dataset_label",
    "decomposition_figure",
    "encoder_gap_figure",
    "family_gap_figure",
    "guide_label",
    "guide_style",
    "memory_figure",
    "model_gap_figure",
    "reconstruction_figure",
    "save_figure",
    "style",
    "time_to_target_figure",
    "toy_figure",
    "training_figure",
]
