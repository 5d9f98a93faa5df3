"""Arrays of the user's own, from ``.npy`` and ``.npz`` files, checked before anything is computed with them.

Accepted are vectors ``(N, P)``, grey images ``(N, H, W)``, and images with channels, ``(N, C, H, W)`` or
``(N, H, W, C)``: C is 1 or 3, and the axis of that size holds the channels. Where both the first and the last axis have
such a size, or neither has, the array is refused. Channels come first in what is read. An ``.npz`` has the keys
``train`` and, if wanted, ``test`` (or ``x_train`` and ``x_test``), or a single array of any name. Without a test array
a tenth of the rows becomes one.
``uint8`` are grey values up to 255 (or bits, if none is above 1); everything else becomes ``float32``.
A file of Python objects is refused, never run; so is one that claims more than it holds.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from amortized_bayes.numpy_files import read_numpy
from amortized_bayes.plain_files import open_plain
from amortized_bayes.seeding import numpy_generator
from amortized_bayes.types import Dataset, Images

__all__ = ["read_numpy_file", "read_user_arrays", "split_off_test"]

CHANNELS = (1, 3)
"""Numbers of channels that an image may have."""


def read_user_arrays(path: Path) -> Dataset:
    """Read a user's file; ``pixels`` is ``(N, P)``, ``uint8`` or ``float32``, and there are no labels.

    The tenth that becomes the test split depends on the file's name and length only, not on the run's seed, so that
    results over seeds are about the same held-out points.

    Raises ``ValueError`` if the file is missing, no numpy file, or its arrays are not as this module's docstring says.
    """
    arrays, sha256 = read_numpy_file(path)
    chosen = {key: _as_numbers(f"{path}, {key}", array) for key, array in _choose_arrays(path, arrays).items()}
    images = {key: _channels_first(f"{path}, {key}", array) for key, array in chosen.items()}
    train, test = images["train"], images.get("test")
    if test is None:
        train, test = split_off_test(path, train)
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        expected, got = (f"{a.dtype} rows of shape {a.shape[1:]}" for a in (train, test))
        raise ValueError(f"{path}: expected test rows like the training rows, {expected}, got {got}")
    is_grey = train.dtype == np.uint8 and max(train.max(), test.max()) > 1
    return Dataset(
        name=path.name,
        train=Images(train.reshape(len(train), -1), None),
        test=Images(test.reshape(len(test), -1), None),
        image_shape=None if train.ndim == 2 else (train.shape[1], train.shape[2], train.shape[3]),
        grey_levels=255 if is_grey else 1,
        sha256={path.name: sha256},
        source=str(path),
    )


def read_numpy_file(path: Path, keys: Collection[str] | None = None) -> tuple[dict[str, np.ndarray], str]:
    """Read an ``.npz`` (the arrays named in ``keys``, or all) or an ``.npy`` (as ``array``), with the file's sha256.

    Raises ``ValueError`` if the file is missing, damaged, no numpy file, or holds Python objects.
    """
    try:
        with open(open_plain(path, os.O_RDONLY, links=True), "rb") as file:
            arrays = read_numpy(file, keys)
            file.seek(0)
            return arrays, hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ValueError(f"expected a numpy file, got {str(path)!r}: no such file") from None
    except Exception as error:  # flipped bits were seen to give TokenError, SyntaxError, RuntimeError, zlib.error, ...
        raise ValueError(f"{path} cannot be read: {_explain(error)}") from None


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text.startswith("expected") else f"expected a sound numpy file, got {type(error).__name__}: {text}"


def _choose_arrays(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pick the training and, where there is one, the test array by their names."""
    for train, test in (("train", "test"), ("x_train", "x_test")):
        if train in arrays:
            return {"train": arrays[train]} | ({"test": arrays[test]} if test in arrays else {})
    if len(arrays) == 1:
        return {"train": next(iter(arrays.values()))}
    found = ", ".join(arrays) or "none"
    raise ValueError(f"{path}: expected an array named train or x_train, or a single array, got {found}")


def _as_numbers(where: str, array: np.ndarray) -> np.ndarray:
    """Check shape, type and values; give ``uint8`` as it is and all else as ``float32``."""
    if array.dtype.kind not in "buif":
        raise ValueError(f"{where}: expected real numbers, got an array of type {array.dtype}")
    if not 2 <= array.ndim <= 4:
        raise ValueError(f"{where}: expected shape (N, P), (N, H, W), (N, C, H, W) or (N, H, W, C), got {array.shape}")
    if len(array) < 2 or array.size == 0:
        raise ValueError(f"{where}: expected at least 2 rows and 1 column, got shape {array.shape}")
    if array.dtype.kind == "b" or array.dtype == np.uint8:
        return np.ascontiguousarray(array, dtype=np.uint8)
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(array, dtype=np.float32)
    bad = ~np.isfinite(numbers)
    if bad.any():
        first = tuple(int(i) for i in np.unravel_index(bad.argmax(), bad.shape))
        value = array[first]
        raise ValueError(
            f"{where}: expected finite float32 values, got {bad.sum()} others, the first {value} at {first}"
        )
    return numbers


def _channels_first(where: str, array: np.ndarray) -> np.ndarray:
    """Images as ``(N, C, H, W)``, vectors as they are."""
    if array.ndim == 2:
        return array
    if array.ndim == 3:
        return array[:, None]
    first, last = (size in CHANNELS for size in (array.shape[1], array.shape[3]))
    if first == last:
        which = "both" if first else "neither"
        raise ValueError(
            f"{where}: expected shape (N, C, H, W) or (N, H, W, C) with C of 1 or 3 on one side, got {array.shape}, "
            f"where {which} could be the channels"
        )
    return array if first else array.transpose(0, 3, 1, 2)


def split_off_test(path: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training rows and a tenth for tests, which depends on the name of ``path`` and the number of rows alone."""
    order = numpy_generator(0, "split", path.name).permutation(len(rows))
    num_test = max(1, len(rows) // 10)
    return rows[np.sort(order[num_test:])], rows[np.sort(order[:num_test])]
