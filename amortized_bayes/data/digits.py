"""The handwritten digits that scikit-learn ships: 1,797 images of 8 x 8 pixels, grey values 0 to 16, ten classes.

The data set that needs no download. Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits",
UCI Machine Learning Repository, 1998 (its test part), https://doi.org/10.24432/C50P49.
"""

from __future__ import annotations

import hashlib

import numpy as np

from amortized_bayes.seeding import numpy_generator
from amortized_bayes.types import Dataset, Images

__all__ = ["read_digits"]

NUM_TRAIN = 1500
DIGITS_SHA256 = {
    "load_digits images": "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3",
    "load_digits labels": "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0",
}
"""sha256 of the images as ``uint8`` ``(1797, 64)`` and of the labels as ``uint8`` ``(1797,)``, in C order."""


def read_digits() -> Dataset:
    """Read the digits, split into 1,500 for training and 297 for testing: the same ones whatever the run's seed.

    Raises ``ValueError`` if scikit-learn's copy is not the expected one.
    """
    from sklearn.datasets import load_digits  # here: it takes a second

    pixels, labels = (np.ascontiguousarray(a, dtype=np.uint8) for a in load_digits(return_X_y=True))
    for (what, expected), array in zip(DIGITS_SHA256.items(), (pixels, labels), strict=True):
        sha256 = hashlib.sha256(array.tobytes()).hexdigest()
        if sha256 != expected:
            raise ValueError(f"scikit-learn's {what} differ from the known ones: expected {expected}, got {sha256}")
    order = numpy_generator(0, "split", "digits").permutation(len(pixels))
    train, test = order[:NUM_TRAIN], order[NUM_TRAIN:]
    return Dataset(
        name="digits",
        train=Images(pixels[train], labels[train]),
        test=Images(pixels[test], labels[test]),
        image_shape=(1, 8, 8),
        grey_levels=16,
        sha256=dict(DIGITS_SHA256),
        source="scikit-learn, sklearn.datasets.load_digits",
    )
