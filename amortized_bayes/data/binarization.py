"""Black-and-white images from grey ones: each pixel a Bernoulli draw whose probability is its grey value.

Drawn once for a seed, not afresh at each visit: a bound on data that change is no bound on any data set, and
inference a point (factorized guides, gaps) needs to meet the same point twice. So did R. Salakhutdinov and I. Murray,
"On the Quantitative Analysis of Deep Belief Networks", ICML 2008.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from amortized_bayes.seeding import numpy_generator

__all__ = ["binarize"]

CHUNK_ROWS = 4096  # bounds the memory; the draws do not depend on it


def binarize(
    dataset_pixels: np.ndarray,
    grey_levels: int,
    seed: int,
    split: str,
    method: Literal["sampled", "threshold"] = "sampled",
) -> np.ndarray:
    """Turn ``dataset_pixels``, ``(N, ...)``, into ``uint8`` 0 and 1 of the same shape.

    ``"sampled"`` sets a pixel with probability ``pixel / grey_levels``, by draws belonging to ``(seed, split)``: row i
    gets the same ones however many rows follow. ``"threshold"`` sets it where that value is above 1/2. Black and white
    pixels stay so under both.

    Raises ``ValueError`` if a value divided by ``grey_levels`` is not in [0, 1], or ``method`` is none of the two.
    """
    if method not in ("sampled", "threshold"):
        raise ValueError(f"expected binarization 'sampled' or 'threshold', got {method!r}")
    if grey_levels < 1:
        raise ValueError(f"expected grey_levels of 1 or more, got {grey_levels}")
    _check_range(dataset_pixels, grey_levels)
    generator = numpy_generator(seed, "binarize", split)
    bits = np.empty(dataset_pixels.shape, np.uint8)
    for start in range(0, len(bits), CHUNK_ROWS):
        grey = dataset_pixels[start : start + CHUNK_ROWS].astype(np.float32) / np.float32(grey_levels)
        cut = generator.random(grey.shape, dtype=np.float32) if method == "sampled" else np.float32(0.5)
        bits[start : start + CHUNK_ROWS] = cut < grey  # draws lie in [0, 1): white is always set, black never
    return bits


def _check_range(pixels: np.ndarray, grey_levels: int) -> None:
    if pixels.dtype.kind not in "buif" or pixels.ndim == 0:
        raise ValueError(f"expected an array of pixels to binarize, got type {pixels.dtype}, shape {pixels.shape}")
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= grey_levels):  # so written, NaN is refused too
        got = f"values from {pixels.min()} to {pixels.max()}"
        raise ValueError(f"expected pixels from 0 to {grey_levels} to binarize, got {got}")
