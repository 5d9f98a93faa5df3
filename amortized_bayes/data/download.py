"""MNIST and Fashion-MNIST fetched by torchvision into the project's cache folder, whole or not at all.

torchvision writes in place and fetches Fashion-MNIST over plain http. So it works in a temporary folder inside the
cache; the files are read and compared with their sha256 there, then renamed into place one by one. Whatever happens,
the temporary folder goes.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

from amortized_bayes.data.idx import read_idx
from amortized_bayes.data.mnist import IDX_SETS
from amortized_bayes.data.torchvision_bridge import import_torchvision_datasets

__all__ = ["DOWNLOAD_ERRORS", "download_idx_set", "fetch_with_torchvision"]

DOWNLOAD_ERRORS = (OSError, RuntimeError, ValueError, ImportError, HTTPException)
"""What a failed download may raise (``URLError`` and timeouts are ``OSError``)."""

TIMEOUT_SECONDS = 10.0


def download_idx_set(name: str, cache: Path) -> None:
    """Download ``name``, ``"mnist"`` or ``"fashion-mnist"``, into ``cache/<class>/raw`` as four ``.gz`` files.

    Raises one of ``DOWNLOAD_ERRORS`` if it cannot be had, is not what it should be, or cannot be written.
    """
    wanted = IDX_SETS[name]
    print(f"downloading {name} into {cache}", file=sys.stderr, flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache, ignore_cleanup_errors=True) as scratch:
        with _short_timeout(TIMEOUT_SECONDS), _quiet():
            fetch_with_torchvision(wanted.torchvision_class, Path(scratch))
        fetched = Path(scratch) / wanted.torchvision_class / "raw"
        for file in wanted.files:
            read_idx(fetched / f"{file.name}.gz", file)
        target = cache / wanted.torchvision_class / "raw"
        target.mkdir(parents=True, exist_ok=True)
        for file in wanted.files:
            os.replace(fetched / f"{file.name}.gz", target / f"{file.name}.gz")


def fetch_with_torchvision(torchvision_class: str, folder: Path) -> None:
    """Let ``torchvision.datasets.<torchvision_class>`` download into ``folder``."""
    getattr(import_torchvision_datasets(), torchvision_class)(str(folder), download=True)


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
