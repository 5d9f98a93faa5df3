"""MNIST and Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 grey values, ten classes.

Sources: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", 1998; H. Xiao, K. Rasul and
R. Vollgraf, "Fashion-MNIST", 2017, https://arxiv.org/abs/1708.07747. The checksums are those of the unpacked files that
torchvision downloads (whose gzipped forms have the md5 sums it lists).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from amortized_bayes.data.idx import IdxFile, read_idx
from amortized_bayes.data.places import FileSet
from amortized_bayes.types import Dataset, Images

__all__ = ["IDX_SETS", "IdxSet", "list_idx_files", "read_idx_set"]


class IdxSet(NamedTuple):
    """Four idx files under ``<torchvision_class>/raw``: training images and labels, test images and labels."""

    torchvision_class: str
    files: tuple[IdxFile, IdxFile, IdxFile, IdxFile]


IDX_SETS = {
    "mnist": IdxSet(
        "MNIST",
        (
            IdxFile(
                "train-images-idx3-ubyte",
                (60000, 28, 28),
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            IdxFile(
                "train-labels-idx1-ubyte",
                (60000,),
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            IdxFile(
                "t10k-images-idx3-ubyte",
                (10000, 28, 28),
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            IdxFile(
                "t10k-labels-idx1-ubyte",
                (10000,),
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
    ),
    "fashion-mnist": IdxSet(
        "FashionMNIST",
        (
            IdxFile(
                "train-images-idx3-ubyte",
                (60000, 28, 28),
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            IdxFile(
                "train-labels-idx1-ubyte",
                (60000,),
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            IdxFile(
                "t10k-images-idx3-ubyte",
                (10000, 28, 28),
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
            IdxFile(
                "t10k-labels-idx1-ubyte",
                (10000,),
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
    ),
}


def list_idx_files(name: str) -> FileSet:
    """List the files of ``name``, each unpacked or gzipped; unpacked is preferred, being faster to read."""
    wanted = IDX_SETS[name]
    names = [file.name for file in wanted.files]
    hint = f"{', '.join(f'{name}.gz' for name in names)} (or the same unpacked)"
    return FileSet(f"{wanted.torchvision_class}/raw", tuple((name, f"{name}.gz") for name in names), hint)


def read_idx_set(name: str, paths: list[Path]) -> Dataset:
    """Read the four files of ``name``, in the order of ``IDX_SETS``; ``pixels`` is ``(N, height * width)``.

    Raises ``ValueError`` if a file is not what it should be (see ``read_idx``).
    """
    files = IDX_SETS[name].files
    train, train_labels, test, test_labels = (read_idx(path, file) for path, file in zip(paths, files, strict=True))
    return Dataset(
        name=name,
        train=Images(train.reshape(len(train), -1), train_labels),
        test=Images(test.reshape(len(test), -1), test_labels),
        image_shape=(1, train.shape[1], train.shape[2]),
        grey_levels=255,
        sha256={file.name: file.sha256 for file in files},
        source=str(paths[0].parent),
    )
