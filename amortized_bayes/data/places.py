"""Where data may lie: the folder the user names, the environment's, the project's own cache.

A data set is a ``FileSet``: files under one folder, each known by one or more names (``x`` or ``x.gz``). The first of
the search folders that holds all of them is read. Only the cache folder is ever written to.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "DataUnavailable",
    "FileSet",
    "RemoteFile",
    "cache_folder",
    "describe_search",
    "find_files",
    "list_search_folders",
]

ENVIRONMENT_VARIABLE = "AMORTIZED_BAYES_DATA"


class DataUnavailable(FileNotFoundError, ValueError):
    """A known data set that is neither on disk nor to be downloaded; the message says what to put where."""


class FileSet(NamedTuple):
    """The files of a data set: for each, the names it may have under ``folder``, the preferred one first.

    ``hint`` names the files to a reader.
    """

    folder: str
    files: tuple[tuple[str, ...], ...]
    hint: str


class RemoteFile(NamedTuple):
    """A published file: where it is, its name on disk, its bytes and their sha256."""

    url: str
    name: str
    size: int
    sha256: str


def cache_folder() -> Path:
    """Give the project's own cache folder; ``XDG_CACHE_HOME`` counts if absolute, as the XDG standard asks."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "amortized_bayes"


def list_search_folders(data_dir: Path | str | None) -> list[Path]:
    """List the folders to search, in order: ``data_dir``, the environment variable's, the cache.

    Raises ``ValueError`` if ``data_dir`` is given and is no folder.
    """
    folders = []
    if data_dir is not None:
        folders.append(Path(data_dir).expanduser())
        if not os.path.isdir(folders[0]):
            found = "a file" if os.path.exists(folders[0]) else "nothing there"
            raise ValueError(f"expected a folder as data directory, got {str(data_dir)!r}: {found}")
    if from_environment := os.environ.get(ENVIRONMENT_VARIABLE):
        folders.append(Path(from_environment).expanduser())
    return [*folders, cache_folder()]


def find_files(wanted: FileSet, folders: list[Path]) -> list[Path] | None:
    """Find every file of a set in the first folder that has them all; ``None`` where none has."""
    for folder in folders:
        paths = [_find_file(folder / wanted.folder, names) for names in wanted.files]
        complete = [path for path in paths if path is not None]
        if len(complete) == len(paths):
            return complete
    return None


def describe_search(wanted: FileSet, folders: list[Path]) -> str:
    """Say, for each folder searched, what of the set was missing there."""
    return ", ".join(f"{folder} ({_describe_folder(wanted, folder)})" for folder in folders)


def _find_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if os.path.isfile(folder / name)), None)


def _describe_folder(wanted: FileSet, folder: Path) -> str:
    if not os.path.isdir(folder):
        return "does not exist"
    if not os.path.isdir(folder / wanted.folder):
        return f"no folder {wanted.folder}"
    missing = [names[0] for names in wanted.files if _find_file(folder / wanted.folder, names) is None]
    return f"{wanted.folder} lacks {' '.join(dict.fromkeys(missing))}"
