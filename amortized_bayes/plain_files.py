"""Files opened as what they are taken for: plain files, no links, pipes or devices.

A link would have another file read or written than is named, a pipe without a writer is waited for without end, and a
device may never end. Nothing that is refused here was opened for reading or writing before.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from amortized_bayes.memory import total_memory

__all__ = ["AS_THEY_ARE", "check_folder", "open_plain", "read_plain"]

AS_THEY_ARE = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Flags of ``os.open``: bytes as they are, not for other processes; each system has one of the two."""
_NONBLOCK, _NOFOLLOW = getattr(os, "O_NONBLOCK", 0), getattr(os, "O_NOFOLLOW", 0)  # Windows has neither

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_plain(path: Path, flags: int, *, links: bool = False, alone: bool = False) -> int:
    """Open the plain file at ``path`` and return its descriptor; ``flags`` are those of ``os.open``.

    Args:
        path: the file.
        flags: how to open it.
        links: whether ``path`` may be a symbolic link to it: one that the user named.
        alone: whether it must have this name only: what is written under one name would change the other file too.

    Raises:
        ValueError: something else than a plain file is there.
        OSError: it cannot be opened.
    """
    try:
        _check(path, (os.stat if links else os.lstat)(path), alone)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    try:
        descriptor = os.open(path, flags | AS_THEY_ARE | _NONBLOCK | (0 if links else _NOFOLLOW), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and not links:
            raise ValueError(_refusal(path, stat.S_IFLNK)) from None
        raise
    try:
        _check(path, os.fstat(descriptor), alone)  # what was opened, should another have come in between
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_plain(path: Path, *, links: bool = False, most: int | None = None) -> bytes:
    """The bytes of the plain file at ``path``; see :func:`open_plain`.

    Raises:
        ValueError: something else than a plain file is there, or it has more than ``most`` bytes, or than memory has.
        OSError: it cannot be read.
    """
    with open(open_plain(path, os.O_RDONLY, links=links), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        longest = total_memory() if most is None else most  # a file with holes may say that it is longer than memory
        if size > longest:
            raise ValueError(f"{path}: expected a file of at most {longest:,.0f} bytes, got {size:,}")
        return file.read()


def check_folder(path: Path) -> None:
    """Refuse what is no folder, or a link to one. Where nothing is there, nothing is refused.

    Raises:
        ValueError: it is another file, or a link.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise ValueError(f"expected a folder, got {path}: {_KINDS.get(stat.S_IFMT(found.st_mode), 'a file')}")


def _check(path: Path, found: os.stat_result, alone: bool) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(_refusal(path, stat.S_IFMT(found.st_mode)))
    if alone and found.st_nlink > 1:
        raise ValueError(f"expected a plain file of one name, got {path}: a hard link; make a copy of it first")


def _refusal(path: Path, kind: int) -> str:
    return f"expected a plain file, got {path}: {_KINDS.get(kind, 'something else')}"
