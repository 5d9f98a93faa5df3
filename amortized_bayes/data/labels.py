"""Labels for the fixed binarization of MNIST, whose files have none.

Each of its images was drawn from a grey one of MNIST, pixel by pixel, in another order. The grey image that makes the
bits likeliest,

    argmax_m  sum_i  x_i log g_mi + (1 - x_i) log(1 - g_mi),

is taken for its origin and lends it its label. The test images, which the files keep sorted by digit, come out sorted:
a check that the matching cannot have been given.
"""

from __future__ import annotations

import numpy as np

__all__ = ["labels_of_binarized"]

CHUNK_ROWS = 500  # bounds the memory of the products to 120 MB with 60,000 grey images
FLOOR = 1e-3
"""Grey values are kept this far from 0 and 1, so that a wrong origin costs much and not everything."""


def labels_of_binarized(bits: np.ndarray, grey: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels, ``(N,)``, of binary images ``(N, P)`` drawn from ``uint8`` grey ones ``(M, P)`` with ``labels`` (M,).

    Raises:
        ValueError: images of different sizes, or labels of another number.
    """
    if bits.ndim != 2 or grey.ndim != 2 or bits.shape[1] != grey.shape[1] or len(labels) != len(grey):
        raise ValueError(
            f"expected images of one size and a label per grey image, got {bits.shape}, {grey.shape} and {labels.shape}"
        )
    value = np.clip(grey.astype(np.float32) / np.float32(255), FLOOR, 1 - FLOOR)
    log_off = np.log1p(-value)
    log_odds = np.log(value, out=value) - log_off
    offset = log_off.sum(1)
    parts = [
        (part.astype(np.float32) @ log_odds.T + offset).argmax(1)
        for part in np.array_split(bits, range(CHUNK_ROWS, len(bits), CHUNK_ROWS))
    ]
    return labels[np.concatenate(parts)]
