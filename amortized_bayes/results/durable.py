"""Bytes that survive a kill, a full disk and a power cut.

A file is replaced in four steps, in this order::

    write beside  ->  fsync the file  ->  rename over the old one  ->  fsync the folder

so that at any moment the name stands for the old bytes or for the new ones, never for a part of either. A line is
appended by one ``os.write``, so a kill or a power cut can tear the last line only: a kill where the line crosses a page
of memory, and seldom. Such a line has no newline, and is cut off before the next append.

A flipped bit in a checkpoint loads silently, so checkpoints come in generations::

    name.safetensors   name.previous.safetensors   name.sha256

where the last lists the checksum of every generation that may be there. It is written *before* the file that it
speaks of, with the checksum of the file it replaces still in it: whichever step is the last one taken, the current
file matches one of the lines.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

from amortized_bayes.plain_files import AS_THEY_ARE, open_plain, read_plain

__all__ = [
    "append_line",
    "check_generations",
    "cut_torn_line",
    "load_generation",
    "open_for_append",
    "release_lock",
    "remove_leftovers",
    "save_generation",
    "sha256",
    "sync_folder",
    "take_lock",
    "write_atomically",
    "writing",
]

_LEFTOVERS = ".*.tmp"
MOST_CHECKSUMS = 10_000
"""Bytes of a file of checksums."""
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES}
"""Errors of file systems that cannot sync a folder, or will not open it: nothing can be done about these."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn every ``OSError`` of the block into a ``ValueError`` of one line: cannot write to ``path``, and why."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot write to {path}: {error.strerror or error}") from error


def sha256(data: bytes) -> str:
    """Return the checksum of ``data`` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file at ``path`` by ``data``, durably.

    Raises ``ValueError`` where that fails; the old file is then as it was, and nothing is left beside it.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path):
        try:
            _write_synced(beside, data)
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable, if its file system can. Raises ``OSError``."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in _CANNOT_SYNC:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed ``write_atomically`` left beside the files of ``folder``."""
    for leftover in folder.glob(_LEFTOVERS):
        with suppress(OSError):
            os.unlink(leftover)


def open_for_append(path: Path) -> int:
    """Open a file of lines, creating it if needed, and return its descriptor. Raises ``ValueError``."""
    with writing(path):
        return open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, alone=True)


def append_line(descriptor: int, line: str) -> None:
    """Append ``line`` and a newline by one write. Raises ``OSError``, and leaves the file as it was before."""
    data = line.encode() + b"\n"
    size = os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def cut_torn_line(path: Path) -> bytes:
    """Cut off a last line that has no newline, and return its bytes (empty: nothing was torn)."""
    data = read_plain(path) if os.path.lexists(path) else b""
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with writing(path):
            descriptor = open_plain(path, os.O_WRONLY, alone=True)
            try:
                os.ftruncate(descriptor, whole)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    return data[whole:]


def take_lock(path: Path) -> int:
    """Lock the file at ``path`` for this process alone and return its descriptor.

    The lock goes with the process, however it ends. Raises ``ValueError`` that names the process which holds it.
    """
    with writing(path):
        descriptor = open_plain(path, os.O_RDWR | os.O_CREAT, alone=True)
    try:
        if not lock_descriptor(descriptor, blocking=False):
            raise ValueError(f"{path.parent} is in use by process {_holder(descriptor)}: wait for it, or end it")
    except OSError as error:
        os.close(descriptor)
        raise ValueError(f"cannot lock {path}: {error.strerror or error}") from error
    except BaseException:
        os.close(descriptor)
        raise
    with suppress(OSError):  # on a full disk the lock holds all the same, only without a name
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"\n%d\n" % os.getpid())
    return descriptor


def _holder(descriptor: int) -> str:
    """The id of the process that holds a lock, which it has written to the file."""
    for start in (0, 1):  # on Windows nobody else reads the first byte, which is what is locked
        with suppress(OSError):
            os.lseek(descriptor, start, os.SEEK_SET)
            number = os.read(descriptor, 32).decode("ascii", "replace").strip()
            return number if number.isdigit() else "unknown"
    return "unknown"


def release_lock(descriptor: int) -> None:
    """Release a lock of ``take_lock``. The file stays: removing it would let two processes lock two files."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
    unlock_descriptor(descriptor)  # closing is not enough where a forked child holds a copy
    os.close(descriptor)


def save_generation(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` and keep the previous generation, if it is intact. Raises ``ValueError``."""
    known, previous = _known(path), _previous(path)
    kept = _whole(path, known)
    if kept is not None:
        write_atomically(previous, kept)
    else:
        kept = _whole(previous, known)
    lines = [f"{sha256(data)}  {path.name}"]
    if kept is not None:
        lines.append(f"{sha256(kept)}  {previous.name}")
    write_atomically(path.with_suffix(".sha256"), "".join(f"{line}\n" for line in lines).encode())
    write_atomically(path, data)


def load_generation(path: Path) -> bytes:
    """Return the bytes of ``path`` if they match their checksum, else those of the previous generation, with a warning.

    Raises ``ValueError`` where neither is whole.
    """
    known = _known(path)
    data = _whole(path, known)
    if data is not None:
        return data
    data = _whole(_previous(path), known)
    if data is None:
        raise ValueError(f"{path} does not match its checksum, and neither does the previous generation")
    message = f"{path} does not match its checksum: using the previous generation"
    warnings.warn(message, stacklevel=4)  # the line that called ``RunFolder.load_...``
    return data


def check_generations(path: Path) -> list[str]:
    """Return a line for each generation of ``path`` that is missing or does not match its checksum."""
    known, previous = _known(path), _previous(path)
    expected = [path, previous] if previous.exists() else [path]
    return [f"checkpoints/{file.name}: missing or changed" for file in expected if _whole(file, known) is None]


def _previous(path: Path) -> Path:
    return path.with_suffix(f".previous{path.suffix}")


def _known(path: Path) -> set[str]:
    """Checksums of every generation of ``path`` that may be on disk."""
    try:
        text = read_plain(path.with_suffix(".sha256"), most=MOST_CHECKSUMS).decode("ascii", "replace")
    except (OSError, ValueError):
        return set()
    return {line.split()[0] for line in text.splitlines() if line.strip()}


def _whole(path: Path, known: set[str]) -> bytes | None:
    """Bytes of ``path`` if their checksum is among ``known``."""
    try:
        data = read_plain(path)
    except (OSError, ValueError):
        return None
    return data if sha256(data) in known else None


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | AS_THEY_ARE, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            written = os.write(descriptor, rest)
            if written == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            rest = rest[written:]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
