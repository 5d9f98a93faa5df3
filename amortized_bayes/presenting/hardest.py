"""The points at which a guide loses most, and a glance at the data, from arrays that jobs left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from amortized_bayes import labels, plotting, selection
from amortized_bayes.page.parts import Table
from amortized_bayes.presenting.classes import class_name
from amortized_bayes.presenting.pictures import PICTURE, as_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from amortized_bayes.presenting.view import RunView

__all__ = ["data_thumbnail", "hardest_points"]

WORST = 10
"""Points in the table."""
GLANCE = 10
"""Images of the data."""
COLUMNS = ("elbo", "log_p_lower", "amortization_gap", "approximation_gap", "inference_gap", "k_hat")
NO_DATA = ("reconstruction", "draw")
"""In names of images that a model made."""


def hardest_points(run: RunView) -> Iterator[Table]:
    """Yield a table for each job that left gaps: the points with the largest inference gap, the worst first."""
    shared = selection.factors_of(run.rows)
    for key in run.find({}):
        arrays = run.arrays(key)
        gap = arrays.get("inference_gap")
        if gap is None or gap.ndim != 1 or not np.isfinite(gap).any():
            continue
        own = run.jobs[key]
        dataset = str(own.get("dataset", ""))
        columns = [name for name in COLUMNS if name in arrays and arrays[name].shape == gap.shape]
        kept = {name: arrays[name] for name in ("places", "labels") if _is_per_point(arrays.get(name), gap)}
        worst = np.argsort(np.where(np.isfinite(gap), -gap, np.inf))[:WORST]
        cells = [_line(place, dataset, kept, {name: arrays[name] for name in columns}) for place in worst]
        headings = [
            "point",
            *(["class"] if "labels" in kept else []),
            *(labels.metric_label(n).heading for n in columns),
        ]
        called = labels.describe({n: v for n, v in own.items() if n not in shared})
        title = f"The {len(cells)} points with the largest inference gap{f' of {called}' if called else ''}"
        yield Table(title, headings, cells, "nats; points are numbered as in their split", texts=("class",))


def _is_per_point(values: np.ndarray | None, gap: np.ndarray) -> bool:
    return values is not None and values.shape == gap.shape


def _line(place: Any, dataset: str, kept: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> list[str]:
    point = kept["places"][place] if "places" in kept else place
    called = [class_name(dataset, int(kept["labels"][place]))] if "labels" in kept else []
    return [str(point), *called, *(f"{values[place]:.2f}" for values in found.values())]


def data_thumbnail(run: RunView) -> Figure | None:
    """A few images of the data of each data set, as the first job that kept any has them; ``None`` without any."""
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
