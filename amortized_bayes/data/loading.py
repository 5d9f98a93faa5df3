"""The one way to a data set: by name, or by the path of a numpy file or of a folder of images.

Rows come in an order drawn from the seed, so the first n of a split are a fair subset, and those of a smaller n are
among those of a larger one.
"""

from __future__ import annotations

from pathlib import Path

from amortized_bayes.data.arrays import read_user_arrays
from amortized_bayes.data.catalogue import DATASETS, check_name, is_file, is_folder
from amortized_bayes.data.download import DOWNLOAD_ERRORS
from amortized_bayes.data.image_folders import read_image_folder
from amortized_bayes.data.places import (
    ENVIRONMENT_VARIABLE,
    DataUnavailable,
    FileSet,
    cache_folder,
    describe_search,
    find_files,
    list_search_folders,
)
from amortized_bayes.limits import Count, Seed, limited
from amortized_bayes.seeding import numpy_generator
from amortized_bayes.types import Dataset, Images

__all__ = ["load_dataset", "read_dataset", "shuffle", "where_to_put"]


@limited
def load_dataset(
    name_or_path: str | Path,
    *,
    data_dir: Path | str | None = None,
    num_train: Count | None = None,
    num_test: Count | None = None,
    seed: Seed = 0,
    download: bool = True,
) -> Dataset:
    """Load a data set, shuffled by ``seed`` and cut to ``num_train`` and ``num_test`` rows (``None`` for all).

    A named set is searched for in ``data_dir``, the folder that ``AMORTIZED_BAYES_DATA`` names, and the cache folder
    (``~/.cache/amortized_bayes``); then, unless ``download`` is off, it is downloaded into the cache, the only folder
    ever written to. A path that ends in ``.npy`` or ``.npz`` is the user's own data (see ``data/arrays.py``), another
    path with a ``/`` a folder of images (see ``data/image_folders.py``). The ``pixels`` of a split are
    ``(num rows, P)``.

    Raises ``DataUnavailable``, a ``ValueError`` that says where to put which files, if a known data set is
    unavailable; ``ValueError`` for an unknown name, a file that is not what it should be, a path that is not a folder,
    or more rows than there are.

    Example:
        >>> from amortized_bayes import load_dataset
        >>> load_dataset("digits", num_train=100).train.pixels.shape
        (100, 64)
    """
    return shuffle(read_dataset(name_or_path, data_dir=data_dir, download=download), seed, num_train, num_test)


def read_dataset(name_or_path: str | Path, *, data_dir: Path | str | None = None, download: bool = True) -> Dataset:
    """Find, read and verify a data set, its rows in the order of its files; see :func:`load_dataset`.

    Raises ``DataUnavailable`` and ``ValueError`` as ``load_dataset`` does.
    """
    name, folders = str(name_or_path), list_search_folders(data_dir)
    check_name(name)
    if is_file(name):
        return read_user_arrays(Path(name).expanduser())
    if is_folder(name):
        return read_image_folder(Path(name))
    known = DATASETS[name]
    return known.read(_find_or_download(name, known.files(), folders, download) if known.files else [])


def shuffle(dataset: Dataset, seed: int, num_train: int | None = None, num_test: int | None = None) -> Dataset:
    """The rows of a data set in an order drawn from ``seed``, cut to ``num_train`` and ``num_test`` (``None`` for all).

    Raises ``ValueError`` for more rows than there are.
    """
    return dataset._replace(
        train=_take_rows(dataset, "train", num_train, seed), test=_take_rows(dataset, "test", num_test, seed)
    )


def where_to_put(name: str) -> str:
    """Say in one line which files of the data set ``name`` go where.

    Raises ``ValueError`` if ``name`` is not one of ``DATASETS``.
    """
    check_name(name)
    known = DATASETS.get(name)
    if known is None or known.files is None:
        what = "is a file of yours" if known is None else "comes with an installed package"
        return f"{name} {what}: there is nothing to put anywhere"
    wanted = known.files()
    roots = f"the folder given by --data-dir or {ENVIRONMENT_VARIABLE}, or {cache_folder()}"
    return f"put {wanted.hint} into {wanted.folder} under {roots}"


def _find_or_download(name: str, wanted: FileSet, folders: list[Path], download: bool) -> list[Path]:
    paths = find_files(wanted, folders)
    if paths is not None:
        return paths
    searched = describe_search(wanted, folders)
    failure = _try_download(name) if download else "download is off"
    paths = find_files(wanted, folders) if failure is None else None
    if paths is None:
        reason = failure or "the download left files missing"
        raise DataUnavailable(f"{name} is unavailable: searched {searched}; {reason}; {where_to_put(name)}")
    return paths


def _try_download(name: str) -> str | None:
    """Download into the cache; give the reason of a failure, in one line, or ``None``."""
    download = DATASETS[name].download
    if download is None:
        return "there is no download for it"
    try:
        download(cache_folder())
    except DOWNLOAD_ERRORS as error:
        return f"the download failed ({type(error).__name__}: {' '.join(str(error).split())})"
    return None


def _take_rows(whole: Dataset, split: str, num_rows: int | None, seed: int) -> Images:
    images: Images = getattr(whole, split)
    available = len(images.pixels)
    if num_rows is not None and not 1 <= num_rows <= available:
        raise ValueError(
            f"{whole.name}: expected num_{split} from 1 to {available}, the rows there are, got {num_rows}"
        )
    rows = numpy_generator(seed, "subset", whole.name, split).permutation(available)[:num_rows]
    return Images(images.pixels[rows], None if images.labels is None else images.labels[rows])
