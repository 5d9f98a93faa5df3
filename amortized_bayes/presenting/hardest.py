"""The points at which a guide loses most, and a few images of the data, from the arrays of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from amortized_bayes import labels, plotting, selection
from amortized_bayes.page.parts import Table
from amortized_bayes.presenting.classes import class_name
from amortized_bayes.presenting.pictures import PICTURE, as_images
from amortized_bayes.reports.hardest import hardest_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from amortized_bayes.presenting.view import RunView

__all__ = ["data_thumbnail", "hardest_points"]

GLANCE = 10
"""Images of the data."""
NO_DATA = ("reconstruction", "draw")
"""In names of images that a model made."""


def hardest_points(run: RunView) -> Iterator[Table]:
    """Yield a table for each job that left gaps: the points with the largest inference gap, the worst first."""
    shared = selection.factors_of(run.rows)
    for key in run.find({}):
        arrays, own = run.arrays(key), run.jobs[key]
        gap = arrays.get("inference_gap")
        if gap is None:
            continue
        kept = {name: arrays[name] for name in ("places", "labels") if name in arrays}
        kept = {name: each for name, each in kept.items() if each.shape == gap.shape}
        names = ["point", *(["class"] if "labels" in kept else [])]
        whose = labels.describe({n: v for n, v in own.items() if n not in shared})
        called = partial(_called, str(own.get("dataset", "")), kept)
        found = hardest_table(arrays, called, names, whose, "as in their split")
        if found is not None:
            yield found


def _called(dataset: str, kept: dict[str, np.ndarray], place: int) -> list[str]:
    """Number and class of the point at a place."""
    point = kept["places"][place] if "places" in kept else place
    return [str(point), *([class_name(dataset, int(kept["labels"][place]))] if "labels" in kept else [])]


def data_thumbnail(run: RunView) -> Figure | None:
    """A few images of each data set, from the first job that kept some; ``None`` without any."""
    found: dict[str, np.ndarray] = {}
    for key in run.find({}):
        name = labels.dataset_label(str(run.jobs[key].get("dataset", "data")))
        if name not in found and (images := _images(run.arrays(key))) is not None:
            found[name] = images
    same = {name: images for name, images in found.items() if images.shape == next(iter(found.values())).shape}
    return plotting.picture_figure(same, "Some of the data") if same else None


def _images(arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    names = [n for n in arrays if n == "original" or (n.startswith(PICTURE) and not any(no in n for no in NO_DATA))]
    return as_images(arrays[names[0]][:GLANCE]) if names else None
