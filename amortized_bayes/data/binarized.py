"""The fixed binarization of MNIST: 50,000 training and 10,000 test images of 28 x 28 bits, without labels.

Source: H. Larochelle and I. Murray, "The Neural Autoregressive Distribution Estimator", AISTATS 2011; the pixels were
drawn once, by R. Salakhutdinov and I. Murray (2008), with the grey value as probability. Read from
``binarized_mnist.npz`` (rows of 784 bits packed by ``np.packbits``) or from the original text,
``binarized_mnist_train.amat`` and ``binarized_mnist_test.amat``. The 10,000 validation images are left out. The test
rows are sorted by digit, so a subset must be taken after a shuffle.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from amortized_bayes.data.arrays import read_numpy_file
from amortized_bayes.data.places import FileSet, RemoteFile
from amortized_bayes.types import Dataset, Images

__all__ = ["BINARIZED_FILES", "BINARIZED_REMOTE", "read_binarized"]

ORIGIN = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"

BINARIZED_FILES = FileSet(
    "BinarizedMNIST",
    (("binarized_mnist.npz", "binarized_mnist_train.amat"), ("binarized_mnist.npz", "binarized_mnist_test.amat")),
    f"binarized_mnist_train.amat and binarized_mnist_test.amat (from {ORIGIN}), or binarized_mnist.npz,",
)

BINARIZED_REMOTE = tuple(
    RemoteFile(f"{ORIGIN}/binarized_mnist_{split}.amat", f"binarized_mnist_{split}.amat", rows * 1568, sha256)
    for split, rows, sha256 in (  # as tensorflow/datasets lists them
        ("train", 50_000, "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
        ("test", 10_000, "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"),
    )
)

# The sha256 of the packed bits, (N, 98) bytes in C order. Computed once, from arrays that, written as text, had the
# sha256 sums that tensorflow/datasets lists for the .amat files (train ad693b29..., test e6687bfe...): to write 94 MB
# of text at each start only to compare with those would be slow.
PACKED_SHA256 = {
    "train": (50000, "727146c35424b019f3e350e1e69faa05644a0abaf787e3f4e1a9632220a13906"),
    "test": (10000, "9fcd8da6f0fdf09b2ba30fe63a0bb784042a0de82563172530229b983e294ff2"),
}


def read_binarized(paths: list[Path]) -> Dataset:
    """Read the training and test file (both may be the same ``.npz``); ``pixels`` is ``(N, 784)`` of 0 and 1.

    Raises ``ValueError`` if a file cannot be read or its bits are not, all of them, the expected ones.
    """
    where = dict(zip(("train", "test"), paths, strict=True))
    return Dataset(
        name="binarized-mnist",
        train=Images(_read_split(where["train"], "train"), None),
        test=Images(_read_split(where["test"], "test"), None),
        image_shape=(1, 28, 28),
        grey_levels=1,
        sha256={f"{path.name} {split} bits": PACKED_SHA256[split][1] for split, path in where.items()},
        source=str(paths[0].parent),
    )


def _read_split(path: Path, split: str) -> np.ndarray:
    num_rows, expected = PACKED_SHA256[split]
    packed = _read_text(path, num_rows) if path.suffix == ".amat" else _read_packed(path, split)
    if packed.dtype != np.uint8 or packed.shape != (num_rows, 98):
        got = f"{packed.dtype} {packed.shape}"
        raise ValueError(f"{path}, {split}: expected uint8 ({num_rows}, 98), bits packed in rows, got {got}")
    sha256 = hashlib.sha256(packed.tobytes()).hexdigest()
    if sha256 != expected:
        raise ValueError(f"{path}, {split}, has changed content: expected sha256 {expected} of the bits, got {sha256}")
    return np.unpackbits(packed, axis=1)


def _read_packed(path: Path, split: str) -> np.ndarray:
    arrays, _ = read_numpy_file(path, keys=(split,))
    if split not in arrays:
        raise ValueError(f"{path}: expected an array named {split!r}, got none of that name")
    return arrays[split]


def _read_text(path: Path, num_rows: int) -> np.ndarray:
    """Pack a text of 784 digits a row, single spaces between them and a newline after: 1,568 bytes a row."""
    try:
        with open(path, "rb") as file:
            content = file.read(num_rows * 1568 + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: expected a text file, got {error}") from None
    if len(content) != num_rows * 1568:
        got = f"{len(content)}" if len(content) < num_rows * 1568 else "more"
        raise ValueError(f"{path} has the wrong size: expected {num_rows * 1568} bytes of text, got {got}")
    digits = np.frombuffer(content, np.uint8)[::2] - ord("0")
    if digits.max() > 1:
        raise ValueError(f"{path} is no text of binary digits: expected only 0 and 1, got byte {digits.max() + 48}")
    return np.packbits(digits.reshape(num_rows, 784), axis=1)
