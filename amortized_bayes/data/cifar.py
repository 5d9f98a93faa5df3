"""CIFAR-10: 50,000 training and 10,000 test images of 3 x 32 x 32 colour values, ten classes.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html. Read are its *binary* version, as the archive ``cifar-10-binary.tar.gz`` or
unpacked, or ``cifar10_subset.npz`` with the first 2,000 training and 1,000 test images, in their order, for where the
whole is unavailable. A row of the binary version is a label and 1,024 red, green and blue values each. The version of
Python objects is never opened. Members of the archive are read in memory, and nothing is unpacked to disk.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from amortized_bayes.data.arrays import read_numpy_file
from amortized_bayes.data.places import FileSet, RemoteFile
from amortized_bayes.types import Dataset, Images

__all__ = ["ARCHIVE", "CIFAR_FILES", "read_cifar10"]

SHAPE = (3, 32, 32)
ROW = 1 + 3 * 32 * 32
"""Bytes of an image with its label."""
ROWS = 10_000
"""Images of each file of the binary version."""
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"
FOLDER = "cifar-10-batches-bin"
SUBSET = "cifar10_subset.npz"
MOST_MEMBERS = 50
"""Of the archive; the published one has nine."""


ARCHIVE = RemoteFile(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",  # as tensorflow/datasets lists it
)
SUBSET_SHA256 = {
    "train_images": (2_000, "8ca13b4bad29e1e1f16d4141feeeb34ba22d919470415cefd75b9118d23160e7"),
    "train_labels": (2_000, "be1c28c816d430be791ef07694742adff327158d0ef082fb990dfadc30a427f0"),
    "test_images": (1_000, "f167149948fc8fe0b9a76ba86421e987817f98b63761ba9415c5d42664d51f03"),
    "test_labels": (1_000, "636a087e604331a0b9dafc94b6e9ade0c9cec72c4400d12473ccdb3e264474c1"),
}
"""How many of the first images are in the subset, and the sha256 of each array in C order."""
CIFAR_FILES = FileSet(
    "CIFAR10",
    tuple((ARCHIVE.name, f"{FOLDER}/{name}", name, SUBSET) for name in (*TRAIN, TEST)),
    f"{ARCHIVE.name} (from {ARCHIVE.url}), or its six .bin files, or {SUBSET},",
)


def read_cifar10(paths: list[Path]) -> Dataset:
    """Read the six files of the binary version, all of which may be the archive or the subset.

    ``pixels`` is ``(N, 3072)``, ``uint8``. The archive is compared with its published sha256. Unpacked files have none:
    the first images of the first and of the test file are compared with those of the subset.

    Raises ``ValueError`` if a file cannot be read or is not what it should be.
    """
    names = {path.name for path in paths}
    if names == {SUBSET}:
        return _read_subset(paths[0])
    if names == {ARCHIVE.name}:
        contents = _read_archive(paths[0])
        sha256 = {ARCHIVE.name: ARCHIVE.sha256}
    elif SUBSET not in names:
        contents = {path.name: _read_bytes(path) for path in paths}
        sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    else:
        lacking = [name for name in (*TRAIN, TEST) if name not in names]
        raise ValueError(
            f"{paths[0].parent}: expected all six .bin files of CIFAR-10, or none of them beside {SUBSET}, "
            f"but {', '.join(lacking)} is missing"
        )
    where = str(paths[0].parent)
    train = [_images(f"{where}, {name}", contents[name]) for name in TRAIN]
    test = _images(f"{where}, {TEST}", contents[TEST])
    if names != {ARCHIVE.name}:
        for split, images in (("train", train[0]), ("test", test)):
            _check_first(where, split, images.pixels, images.labels)
    pixels, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return _dataset(Images(pixels, labels), test, sha256, where)


def _dataset(train: Images, test: Images, sha256: dict[str, str], source: str, note: str = "") -> Dataset:
    return Dataset("cifar10", train, test, SHAPE, 255, sha256, source, note)


def _read_subset(path: Path) -> Dataset:
    arrays, _ = read_numpy_file(path, keys=tuple(SUBSET_SHA256))
    missing = [key for key in SUBSET_SHA256 if key not in arrays]
    if missing:
        raise ValueError(f"{path}: expected an array named {missing[0]!r}, got none of that name")
    splits = {}
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        count = SUBSET_SHA256[f"{split}_images"][0]
        for array, shape in ((images, (count, *SHAPE)), (labels, (count,))):
            if array.dtype != np.uint8 or array.shape != shape:
                raise ValueError(f"{path}, {split}: expected uint8 {shape}, got {array.dtype} {array.shape}")
        _check_first(str(path), split, images, labels)
        splits[split] = Images(images.reshape(count, -1), labels)
    train, test = splits["train"], splits["test"]
    note = f"only the first {len(train.pixels):,} training and {len(test.pixels):,} test images of CIFAR-10"
    sha256 = {f"{path.name} {key}": expected for key, (_, expected) in SUBSET_SHA256.items()}
    return _dataset(train, test, sha256, str(path.parent), note)


def _check_first(where: str, split: str, images: np.ndarray, labels: np.ndarray | None) -> None:
    """Compare the first images of a split, and their labels, with those of the subset."""
    assert labels is not None
    for what, array in (("images", images), ("labels", labels)):
        count, expected = SUBSET_SHA256[f"{split}_{what}"]
        sha256 = hashlib.sha256(np.ascontiguousarray(array[:count]).tobytes()).hexdigest()
        if sha256 != expected:
            raise ValueError(
                f"{where} has changed content: expected sha256 {expected} of the first {count:,} {split} {what}, got "
                f"{sha256}"
            )


def _images(where: str, content: bytes) -> Images:
    """Images and labels of a file of the binary version."""
    if len(content) != ROWS * ROW:
        raise ValueError(f"{where} has the wrong size: expected {ROWS * ROW} bytes, got {len(content)}")
    rows = np.frombuffer(content, np.uint8).reshape(ROWS, ROW)
    if rows[:, 0].max() > 9:
        raise ValueError(f"{where}: expected labels from 0 to 9, got {rows[:, 0].max()}")
    return Images(rows[:, 1:], rows[:, 0])


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(ROWS * ROW + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: expected a file of CIFAR-10, got {error}") from None


def _read_archive(path: Path) -> Mapping[str, bytes]:
    """The six files, by name, from an archive that has the published sha256 and no member that it should not have."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size != ARCHIVE.size:
                raise ValueError(f"{path} has the wrong size: expected {ARCHIVE.size} bytes, got {size}")
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 != ARCHIVE.sha256:
                raise ValueError(f"{path} has changed content: expected sha256 {ARCHIVE.sha256}, got {sha256}")
            file.seek(0)
            return _read_members(path, file)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: expected a sound .tar.gz file, got {error}") from None


def _read_members(path: Path, file: IO[bytes]) -> dict[str, bytes]:
    wanted = {f"{FOLDER}/{name}": name for name in (*TRAIN, TEST)}
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=file, mode="r|gz") as archive:
        for count, member in enumerate(archive, start=1):
            if count > MOST_MEMBERS:
                raise ValueError(f"{path}: expected {MOST_MEMBERS} members at most, got more")
            parts = Path(member.name).parts
            if not (member.isfile() or member.isdir()) or parts[:1] != (FOLDER,) or ".." in parts:
                kind = "a link or device" if not (member.isfile() or member.isdir()) else "a file elsewhere"
                raise ValueError(f"{path}: expected plain files in {FOLDER}, got {kind}, {member.name!r}")
            if member.size > ROWS * ROW:
                raise ValueError(
                    f"{path}: expected files of {ROWS * ROW} bytes at most, got {member.size} in {member.name!r}"
                )
            name = wanted.get(member.name)
            if name in found:
                raise ValueError(f"{path}: expected {name} once, got it twice")
            content = archive.extractfile(member) if name is not None else None
            if name is not None and content is not None:
                found[name] = content.read(ROWS * ROW + 1)
    missing = [name for name in (*TRAIN, TEST) if name not in found]
    if missing:
        raise ValueError(f"{path}: expected {FOLDER}/{missing[0]} in it, got none")
    return found
