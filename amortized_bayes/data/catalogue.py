"""The data sets known by name: one entry each, read by loading, by the flags' help, and by whoever labels results.

To add one, write a function that reads its files into a ``Dataset`` and add its entry to ``DATASETS``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from amortized_bayes.data.binarized import BINARIZED_FILES, BINARIZED_REMOTE, read_binarized
from amortized_bayes.data.cifar import ARCHIVE, CIFAR_FILES, read_cifar10
from amortized_bayes.data.digits import read_digits
from amortized_bayes.data.download import download_files, download_idx_set
from amortized_bayes.data.image_folders import CELEBA_FILES, read_celeba
from amortized_bayes.data.mnist import list_idx_files, read_idx_set
from amortized_bayes.data.places import FileSet
from amortized_bayes.types import Dataset

__all__ = ["DATASETS", "KnownDataset", "check_name", "display_name", "is_file", "is_folder", "label_of", "short_name"]


class KnownDataset(NamedTuple):
    """A data set known by name.

    Args:
        label: its name in titles and captions.
        short: its name in the names of figure files.
        read: reads its files, which are given in the order of ``files``.
        files: lists its files; ``None`` where it comes with an installed package.
        download: downloads its files into a folder; ``None`` where that is impossible.
        grey: its pixels have grey values; else they are binary.
        binarization: what ``auto`` means for it, ``fixed`` (drawn once, by seed) or ``threshold`` (above one half).
        network: what ``auto`` means for the networks of a VAE.
        labels_from: the data set whose grey images its binary ones were drawn from, and which lends them its labels.
        classes: names of its classes, in the order of their labels; digits need none.
    """

    label: str
    short: str
    read: Callable[[list[Path]], Dataset]
    files: Callable[[], FileSet] | None = None
    download: Callable[[Path], None] | None = None
    grey: bool = True
    binarization: Literal["fixed", "threshold"] = "fixed"
    network: Literal["dense", "deep-convolutional"] = "dense"
    labels_from: str = ""
    classes: tuple[str, ...] = ()


DATASETS: dict[str, KnownDataset] = {
    "mnist": KnownDataset(
        "MNIST",
        "mnist",
        partial(read_idx_set, "mnist"),
        partial(list_idx_files, "mnist"),
        partial(download_idx_set, "mnist"),
    ),
    "fashion-mnist": KnownDataset(
        "FashionMNIST",
        "fmnist",
        partial(read_idx_set, "fashion-mnist"),
        partial(list_idx_files, "fashion-mnist"),
        partial(download_idx_set, "fashion-mnist"),
        binarization="threshold",  # as Cremer, Li & Duvenaud (2018) do
        classes=(
            *("T-shirt", "trouser", "pullover", "dress", "coat"),
            *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
        ),
    ),
    "binarized-mnist": KnownDataset(
        "binarized MNIST",
        "binarized-mnist",
        read_binarized,
        lambda: BINARIZED_FILES,
        partial(download_files, "binarized-mnist", BINARIZED_FILES.folder, BINARIZED_REMOTE),
        grey=False,
        labels_from="mnist",
    ),
    "cifar10": KnownDataset(
        "CIFAR-10",
        "cifar10",
        read_cifar10,
        lambda: CIFAR_FILES,
        partial(download_files, "cifar10", CIFAR_FILES.folder, (ARCHIVE,)),
        network="deep-convolutional",
        binarization="threshold",  # each colour channel, as Cremer, Li & Duvenaud (2018) do
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "digits": KnownDataset("digits", "digits", lambda _: read_digits()),
    "celeba": KnownDataset(
        "CelebA", "celeba", read_celeba, lambda: CELEBA_FILES, network="deep-convolutional", binarization="threshold"
    ),
}
"""The data sets known by name."""


def is_file(dataset: str) -> bool:
    """Whether a data set is the path of a user's file, and no name."""
    return dataset.endswith((".npy", ".npz"))


def is_folder(dataset: str) -> bool:
    """Whether a data set is the path of a folder of images, ``./faces`` or ``/data/faces``, and no name."""
    return "/" in dataset and not is_file(dataset)


def check_name(dataset: str) -> None:
    """Refuse what is neither a known name nor the path of a numpy file or of a folder.

    Raises:
        ValueError: an unknown name.
    """
    if dataset in DATASETS or is_file(dataset) or is_folder(dataset):
        return
    close = difflib.get_close_matches(dataset.lower().replace("_", "-"), DATASETS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    expected = f"expected a data set ({', '.join(DATASETS)}) or a path that ends in .npy or .npz"
    raise ValueError(f"{expected}, got {dataset!r}{hint}")


def display_name(dataset: str) -> str:
    """The name in rows, tables and figures: a known name, or that of a file or folder without what it lies in.

    Example:
        >>> display_name("fashion-mnist"), display_name("/data/mine.npz")
        ('fashion-mnist', 'mine.npz')
    """
    return Path(dataset).name if is_file(dataset) or is_folder(dataset) else dataset


def label_of(dataset: str) -> str:
    """The name in titles and captions: ``FashionMNIST``, ``mine.npz``."""
    return DATASETS[dataset].label if dataset in DATASETS else display_name(dataset)


def short_name(dataset: str) -> str:
    """The name in the names of figure files: ``fmnist``, ``mine``."""
    if dataset in DATASETS:
        return DATASETS[dataset].short
    return re.sub(r"[^\w.-]+", "-", Path(dataset).stem)[:60].strip("-.") or "data"
