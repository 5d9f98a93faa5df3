"""Folders of image files, CelebA's among them, as arrays of one size.

All images of a folder have one size; the largest square around the centre is cut out and resized. Pillow decodes them,
and nothing is unpickled. Source of CelebA: Z. Liu, P. Luo, X. Wang and X. Tang, "Deep Learning Face Attributes in the
Wild", ICCV 2015, in the layout of torchvision: ``img_align_celeba/*.jpg``, ``list_attr_celeba.txt`` and
``list_eval_partition.txt`` in one folder ``celeba``.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from amortized_bayes.data.arrays import split_off_test
from amortized_bayes.data.places import FileSet
from amortized_bayes.memory import check_memory
from amortized_bayes.types import Dataset, Images

__all__ = ["CELEBA_FILES", "SIDE", "SUFFIXES", "holds_images", "read_celeba", "read_image_folder"]

SIDE = 64
"""Pixels on each side of what is read."""
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""How names of images end, in small letters; other files of a folder are passed over."""
FEWEST = 2
"""One image to train on, and one to test on."""
GREY, MODES = ("1", "L", "LA"), ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's modes of grey images, and of all that have 8 bits a channel: of others, values would be clipped."""
TEST_PART = 2
"""CelebA's partition: 0 for training, 1 for validation, 2 for test."""
CELEBA_FILES = FileSet(
    "celeba",
    (("list_attr_celeba.txt",), ("list_eval_partition.txt",)),
    "the folder img_align_celeba with the images, list_attr_celeba.txt and list_eval_partition.txt",
)


def holds_images(folder: Path) -> bool:
    """Whether there is an image in a folder, or in those within it."""
    return any(path.suffix.lower() in SUFFIXES for path in folder.expanduser().rglob("*"))


def read_image_folder(folder: Path, side: int = SIDE) -> Dataset:
    """Read the images of a folder and of those within it; ``pixels`` is ``(N, C side side)``, ``uint8``, no labels.

    C is 1 where all images are grey, else 3. A tenth becomes the test split, the same for all seeds.

    Raises ``ValueError`` if there is no such folder, it has fewer than 2 images, they differ in size, or one cannot be
    read; the file is named.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise ValueError(f"expected a folder of images, got {str(folder)!r}: {found}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(paths) < FEWEST:
        kinds = " ".join(SUFFIXES)
        raise ValueError(f"{folder}: expected {FEWEST} or more images ({kinds}), got {len(paths) or 'none'}")
    pixels, sha256 = _read_images(paths, side)
    train, test = split_off_test(folder, pixels)
    return Dataset(
        name=folder.name,
        train=Images(train.reshape(len(train), -1), None),
        test=Images(test.reshape(len(test), -1), None),
        image_shape=(pixels.shape[1], side, side),
        grey_levels=255,
        sha256={folder.name: sha256},
        source=str(folder),
    )


def read_celeba(paths: Sequence[Path], side: int = SIDE) -> Dataset:
    """Read CelebA from its attributes and its partition; labels are the attributes, ``(N, 40)`` of 0 and 1.

    Images of the partition's test part are the test split, all others the training split.

    Raises ``ValueError`` if a list is not what it should be, or an image that it names is missing or damaged.
    """
    names, attributes = _read_attributes(paths[0])
    parts = _read_partition(paths[1], names)
    folder = paths[0].parent / "img_align_celeba"
    files = [folder / name for name in names]
    if missing := next((file for file in files if not file.is_file()), None):
        raise ValueError(f"celeba: expected every image that {paths[0].name} names, got no {missing}")
    pixels, sha256 = _read_images(files, side)
    flat, is_test = pixels.reshape(len(pixels), -1), parts == TEST_PART
    if is_test.all() or not is_test.any():
        raise ValueError(f"{paths[1]}: expected images for training and for test, got one part alone")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return Dataset(
        name="celeba",
        train=Images(flat[~is_test], attributes[~is_test]),
        test=Images(flat[is_test], attributes[is_test]),
        image_shape=(pixels.shape[1], side, side),
        grey_levels=255,
        sha256={**sums, folder.name: sha256},
        source=str(folder.parent),
    )


def _read_images(paths: Sequence[Path], side: int) -> tuple[np.ndarray, str]:
    """``(N, C, side, side)``, and one sha256 over names and contents."""
    check_memory(3.0 * side * side * len(paths), f"{len(paths):,} images of {side} x {side}")
    whole = hashlib.sha256()
    images: list[np.ndarray] = []
    size: tuple[int, int] | None = None
    for path in paths:
        data = path.read_bytes()
        whole.update(f"{path.name}\0{len(data)}\0".encode())
        whole.update(data)
        own, image = _decode(path, data, side)
        size = size or own
        if own != size:
            expected, got = (f"{width} x {height}" for width, height in (size, own))
            raise ValueError(f"{path}: expected images of one size, {expected} as {paths[0].name}, got {got}")
        images.append(image)
    grey = all(image.ndim == 2 for image in images)
    if not grey:
        images = [np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image for image in images]
    stacked = np.stack(images)
    return stacked[:, None] if grey else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)), whole.hexdigest()


def _decode(path: Path, data: bytes, side: int) -> tuple[tuple[int, int], np.ndarray]:
    """Width and height of an image, and its centre, ``(side, side)`` if it is grey, else ``(side, side, 3)``."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as file:
            mode = file.mode
            image = file.convert("L" if mode in GREY else "RGB") if mode in MODES else file
    except Exception as error:  # damaged files were seen to give OSError, SyntaxError, ValueError, struct.error, ...
        words = " ".join(str(error).split()).replace(repr(data), "")
        why = type(error).__name__ if not words or "BytesIO" in words else f"{type(error).__name__}: {words}"
        raise ValueError(f"{path} cannot be read: expected a sound image, got {why}") from None
    if mode not in MODES:
        raise ValueError(f"{path}: expected an image of 8 bits a channel ({', '.join(MODES)}), got mode {mode}")
    return image.size, np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR))


def _read_attributes(path: Path) -> tuple[list[str], np.ndarray]:
    """Names of the images, and their attributes ``(N, A)``: the first line counts, the second names the attributes."""
    lines = path.read_text().splitlines()
    count = len(lines[1].split()) if len(lines) > 2 else 0
    rows = [line.split() for line in lines[2:] if line.strip()]
    for row in rows:
        if len(row) != count + 1 or not set(row[1:]) <= {"1", "-1"} or "/" in row[0]:
            raise ValueError(
                f"{path}: expected a name and {count} attributes of 1 or -1, got {' '.join(row[:4])!r} ..."
            )
    if not rows or not count or lines[0].strip() != str(len(rows)):
        raise ValueError(f"{path}: expected the number of images, names of attributes, and a line for each image")
    return [row[0] for row in rows], np.array([[value == "1" for value in row[1:]] for row in rows], np.uint8)


def _read_partition(path: Path, names: Sequence[str]) -> np.ndarray:
    """The part of each image, ``(N,)``."""
    known = dict(line.split() for line in path.read_text().splitlines() if len(line.split()) == 2)
    if missing := next((name for name in names if known.get(name) not in ("0", "1", "2")), None):
        raise ValueError(
            f"{path}: expected 0, 1 or 2 for each image, got {known.get(missing, 'nothing')} for {missing}"
        )
    return np.array([int(known[name]) for name in names])
