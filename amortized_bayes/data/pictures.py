"""Rows of pixels as pictures to draw."""

from __future__ import annotations

import numpy as np

__all__ = ["to_pictures"]


def to_pictures(pixels: np.ndarray, image_shape: tuple[int, int, int] | None) -> np.ndarray:
    """Rows ``(n, P)`` as ``(n, H, W)`` where ``image_shape`` (C, H, W) has one channel, else as ``(n, H, W, C)``.

    Vectors, of no ``image_shape``, stay as they are.

    Example:
        >>> to_pictures(np.zeros((5, 64)), (1, 8, 8)).shape, to_pictures(np.zeros((5, 192)), (3, 8, 8)).shape
        ((5, 8, 8), (5, 8, 8, 3))
    """
    if image_shape is None:
        return pixels
    images = pixels.reshape(len(pixels), *image_shape)
    return images[:, 0] if image_shape[0] == 1 else images.transpose(0, 2, 3, 1)
