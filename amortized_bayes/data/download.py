"""Data sets fetched into the project's cache folder, whole or not at all: MNIST and Fashion-MNIST by torchvision.

torchvision writes in place, and some files come over plain http. So all are fetched into a temporary folder inside the
cache, compared with their sha256 there, and then renamed into place one by one. Whatever happens, the temporary folder
goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path

from amortized_bayes.data.idx import read_idx
from amortized_bayes.data.mnist import IDX_SETS
from amortized_bayes.data.places import RemoteFile
from amortized_bayes.data.torchvision_bridge import import_torchvision_datasets

__all__ = ["DOWNLOAD_ERRORS", "download_files", "download_idx_set", "fetch", "fetch_with_torchvision"]

DOWNLOAD_ERRORS = (OSError, RuntimeError, ValueError, ImportError, HTTPException)
"""What a failed download may raise (``URLError`` and timeouts are ``OSError``)."""

TIMEOUT_SECONDS = 10.0
CHUNK_BYTES = 1 << 20


def download_idx_set(name: str, cache: Path) -> None:
    """Download ``name``, ``"mnist"`` or ``"fashion-mnist"``, into ``cache/<class>/raw`` as four ``.gz`` files.

    Raises one of ``DOWNLOAD_ERRORS`` if it cannot be had, is not what it should be, or cannot be written.
    """
    wanted = IDX_SETS[name]
    place = f"{wanted.torchvision_class}/raw"

    def fetch_all(scratch: Path) -> None:
        with _short_timeout(TIMEOUT_SECONDS), _quiet():
            fetch_with_torchvision(wanted.torchvision_class, scratch)
        for file in wanted.files:
            read_idx(scratch / place / f"{file.name}.gz", file)

    _download(name, cache, place, [f"{file.name}.gz" for file in wanted.files], fetch_all)


def download_files(name: str, folder: str, files: Sequence[RemoteFile], cache: Path) -> None:
    """Download published files of a data set into ``cache/<folder>``.

    Raises one of ``DOWNLOAD_ERRORS`` if one cannot be had, is not what it should be, or cannot be written.
    """

    def fetch_all(scratch: Path) -> None:
        (scratch / folder).mkdir(parents=True)
        for file in files:
            fetch(file, scratch / folder / file.name)

    _download(name, cache, folder, [file.name for file in files], fetch_all)


def fetch(file: RemoteFile, path: Path) -> None:
    """Write a published file to ``path``.

    Raises one of ``DOWNLOAD_ERRORS`` if it cannot be had, or has other bytes than were published.
    """
    sha256, size = hashlib.sha256(), 0
    with urllib.request.urlopen(file.url, timeout=TIMEOUT_SECONDS) as response, path.open("wb") as target:
        while size <= file.size and (chunk := response.read(CHUNK_BYTES)):
            target.write(chunk)
            sha256.update(chunk)
            size += len(chunk)
    if size != file.size or sha256.hexdigest() != file.sha256:
        got = f"{size if size <= file.size else 'more'} and {sha256.hexdigest()}"
        raise ValueError(f"{file.url}: expected {file.size} bytes of sha256 {file.sha256}, got {got}")


def fetch_with_torchvision(torchvision_class: str, folder: Path) -> None:
    """Let ``torchvision.datasets.<torchvision_class>`` download into ``folder``."""
    getattr(import_torchvision_datasets(), torchvision_class)(str(folder), download=True)


def _download(name: str, cache: Path, folder: str, files: Sequence[str], fetch_all: Callable[[Path], None]) -> None:
    """Fetch and check files in a scratch folder, then move them to ``cache/<folder>``."""
    print(f"downloading {name} into {cache}", file=sys.stderr, flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache, ignore_cleanup_errors=True) as scratch:
        fetch_all(Path(scratch))
        target = cache / folder
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            os.replace(Path(scratch) / folder / file, target / file)


@contextlib.contextmanager
def _short_timeout(seconds: float) -> Iterator[None]:
    """Give up on silent hosts after ``seconds``; torchvision sets no timeout of its own and would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Swallow torchvision's progress bars, one a file."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
