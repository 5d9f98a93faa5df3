"""Figures: data frames and arrays in, a matplotlib ``Figure`` out; ``save_figure`` alone touches the disk.

Nothing here imports torch, and no function changes matplotlib's global state.
"""

from amortized_bayes.plotting.closing import Way, closing_figure
from amortized_bayes.plotting.curves import curve_figure
from amortized_bayes.plotting.family_gap import family_gap_figure
from amortized_bayes.plotting.images import picture_figure, reconstruction_figure
from amortized_bayes.plotting.mixture import Decoder as MixtureDecoder
from amortized_bayes.plotting.mixture import mixture_figure
from amortized_bayes.plotting.point_elbos import point_elbo_figure
from amortized_bayes.plotting.qstar import Search, convergence_figure, restart_figure
from amortized_bayes.plotting.stages import StagePanel, stages_figure
from amortized_bayes.plotting.style import GuideStyle, guide_style, save_figure, size_style, style
from amortized_bayes.plotting.toy import Cloud, toy_figure
from amortized_bayes.plotting.when_and_why import ModelPanel, course_figure, when_and_why_figure

__all__ = [
    "Cloud",
    "GuideStyle",
    "MixtureDecoder",
    "ModelPanel",
    "Search",
    "StagePanel",
    "Way",
    "closing_figure",
    "convergence_figure",
    "course_figure",
    "curve_figure",
    "family_gap_figure",
    "guide_style",
    "mixture_figure",
    "picture_figure",
    "point_elbo_figure",
    "reconstruction_figure",
    "restart_figure",
    "save_figure",
    "size_style",
    "stages_figure",
    "style",
    "toy_figure",
    "when_and_why_figure",
]
