"""Images among the arrays of jobs: ``picture_...``, or ``original`` and ``reconstruction`` of a fit."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

__all__ = ["PICTURE", "as_images", "pictures_of"]

PICTURE = "picture_"
"""Prefix of the names of arrays with images to draw."""
OF_A_FIT = ("original", "reconstruction")


def as_images(pixels: np.ndarray) -> np.ndarray | None:
    """Images unchanged, vectors of a square length as square images; ``None`` for others."""
    if pixels.ndim != 2:
        return pixels if pixels.ndim > 2 else None
    side = math.isqrt(pixels.shape[1])
    return pixels.reshape(-1, side, side) if side * side == pixels.shape[1] else None


def pictures_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Images ``(n, H, W, 1 or 3)`` in [0, 1] by name, all on the scale of the first: [0, 1] where it lies in it.

    Example:
        >>> found = pictures_of({"original": np.zeros((2, 4)), "elbo": np.zeros(2)})
        >>> {name: images.shape for name, images in found.items()}
        {'original': (2, 2, 2, 1)}
    """
    names = [name for name in arrays if name.startswith(PICTURE) or name in OF_A_FIT]
    found = {name.removeprefix(PICTURE): images for name in names if (images := as_images(arrays[name])) is not None}
    if not found:
        return {}
    first = next(iter(found.values()))
    low, high = (0.0, 1.0) if first.min() >= 0 and first.max() <= 1 else (float(first.min()), float(first.max()))
    scaled = {name: np.clip((images - low) / max(high - low, 1e-12), 0, 1) for name, images in found.items()}
    return {name: images if images.ndim == 4 else images[..., None] for name, images in scaled.items()}
