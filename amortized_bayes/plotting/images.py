"""Rows of images: originals and what each guide's decoder makes of them, draws from a model, extreme cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amortized_bayes.plotting.annotations import fix_layout
from amortized_bayes.plotting.annotations import title as set_title
from amortized_bayes.plotting.style import style

__all__ = ["picture_figure", "reconstruction_figure"]

INCH_PER_IMAGE = 0.75


def reconstruction_figure(
    originals: np.ndarray,
    reconstructions: Mapping[str, np.ndarray],
    title: str,
    mse: Mapping[str, float] | None = None,
) -> Figure:
    """Draw n originals in the first row and each guide's reconstructions of them in a row of its own.

    Every array is ``(n, height, width)``, or ``(n, height, width, 3)`` for colour images; all rows share the scale of
    the originals: [0, 1] where they lie in it, else from their least to their greatest value. ``mse`` adds the error of
    a row to its name.

    Raises:
        ValueError: arrays of other shapes, or errors of rows that are not drawn.
    """
    return picture_figure({"original": originals, **reconstructions}, title, mse)


def picture_figure(pictures: Mapping[str, np.ndarray], title: str, mse: Mapping[str, float] | None = None) -> Figure:
    """Draw rows of images by name, all on the scale of the first row; arrays as in :func:`reconstruction_figure`.

    Raises:
        ValueError: arrays of other shapes, or errors of rows that are not drawn.
    """
    rows = {name: np.asarray(images, float) for name, images in pictures.items()}
    _check(rows, mse or {})
    first = next(iter(rows.values()))
    _, height, width, *_ = first.shape
    low, high = _scale(first)
    gap = max(1, height // 14)
    names = [f"{name}\nMSE {mse[name]:.3g}" if mse and name in mse else name for name in rows]
    with style():
        strips = [_strip((images - low) / max(high - low, 1e-12), gap) for images in rows.values()]
        mosaic = np.clip(np.concatenate(strips), 0, 1)
        inches = INCH_PER_IMAGE / width
        letters = max(len(line) for name in names for line in name.split("\n"))
        size = (mosaic.shape[1] * inches + 0.3 + 0.085 * letters, mosaic.shape[0] * inches + 0.45)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        _name_rows(axes, names, height + gap)
        set_title(figure, title)
        fix_layout(figure)
    return figure


def _check(rows: Mapping[str, np.ndarray], mse: Mapping[str, float]) -> None:
    first, shape = next((name, images.shape) for name, images in rows.items())
    if len(shape) not in (3, 4) or 0 in shape or shape[3:] not in ((), (3,)):
        raise ValueError(f"expected {first}s of shape (n, height, width) or (n, height, width, 3), got {shape}")
    for name, images in rows.items():
        if images.shape != shape:
            raise ValueError(
                f"expected reconstructions of shape {shape} as the {first}s, got {images.shape} for {name!r}"
            )
    strangers = sorted(set(mse) - set(rows))
    if strangers:
        raise ValueError(f"expected errors of {', '.join(rows)}, got mse for {', '.join(strangers)}")


def _scale(originals: np.ndarray) -> tuple[float, float]:
    low, high = float(originals.min()), float(originals.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _strip(images: np.ndarray, gap: int) -> np.ndarray:
    """Lay images side by side, a white gap after and below each: ``(height + gap, n (width + gap))``, and colours."""
    padded = np.pad(images, ((0, 0), (0, gap), (0, gap), (0, 0))[: images.ndim], constant_values=1.0)
    return padded.swapaxes(0, 1).reshape(padded.shape[1], -1, *images.shape[3:])


def _name_rows(axes: Axes, names: Sequence[str], pitch: int) -> None:
    axes.set_yticks([pitch * (row + 0.5) - 1 for row in range(len(names))], names)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
