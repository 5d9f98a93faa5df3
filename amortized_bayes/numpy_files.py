"""``.npy`` and ``.npz`` files of anybody's: what they say of themselves is checked before memory is taken for it.

A header may claim any shape, and a few kilobytes of an archive may unpack to gigabytes. So the bytes that a shape takes
must be those that are there, and an archive may not grow without bound. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Collection
from typing import IO, TYPE_CHECKING

from amortized_bayes.memory import in_words, total_memory

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MOST_GROWTH", "SMALL", "read_numpy"]

SMALL = 256_000_000
"""Bytes to which any archive may unpack."""
MOST_GROWTH = 100
"""How many times its own size a larger one may unpack to; bits in bytes are packed to a thirtieth, seldom further."""
_PIECE = 1 << 20
"""Bytes that are read of an array at once."""
_SMALL_PIECE = 1 << 12
"""The same, compressed in a way whose bytes grow further, and are unpacked as many at once."""


def read_numpy(file: IO[bytes], keys: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file, those in ``keys`` or all, or that of an ``.npy`` file as ``array``.

    Raises:
        ValueError: it is none of these, holds Python objects, or claims more than is there.
        Exception: what ``zipfile``, ``zlib`` and numpy raise for damaged files, of many types.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(6)
    file.seek(0)
    if start == b"\x93NUMPY":
        return {"array": _read_array(file, size)}
    if start[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
        raise ValueError(f"expected .npy or .npz content, got the first bytes {start.hex(' ') or 'of nothing'}")
    with zipfile.ZipFile(file) as archive:
        members = _members(archive, size)
        chosen = members if keys is None else {key: members[key] for key in keys if key in members}
        return {key: _read_member(archive, member) for key, member in chosen.items()}


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by the names of their arrays."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            raise ValueError(f"expected arrays alone, got {member.filename!r}, which does not end in .npy")
        if name in members:
            raise ValueError(f"expected arrays of different names, got {name!r} twice")
        members[name] = member
    total = sum(member.file_size for member in members.values())
    if total > max(SMALL, MOST_GROWTH * size):
        raise ValueError(f"expected arrays of at most {max(SMALL, MOST_GROWTH * size):,} bytes, got {total:,}")
    return members


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    grows_little = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    with archive.open(member) as file:
        return _read_array(file, member.file_size, _PIECE if grows_little else _SMALL_PIECE)


def _read_array(file: IO[bytes], size: int, piece: int = _PIECE) -> np.ndarray:
    """The array in a file of so many bytes, which are read piece by piece."""
    import numpy as np

    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"expected an .npy file of version 1 or 2, got {version[0]}.{version[1]}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, in_fortran_order, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("expected numbers, got Python objects, and those are never unpickled")
    expected, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if any(length < 0 for length in shape) or expected != left:
        raise ValueError(f"expected {expected:,} bytes for shape {shape} of {dtype}, got {left:,}")
    if expected > total_memory():
        raise ValueError(f"expected an array that fits into memory, got one of {in_words(expected)}")
    data = bytearray()
    while len(data) < expected and (more := file.read(min(piece, expected - len(data)))):
        data += more
    if len(data) != expected:
        raise ValueError(f"expected {expected:,} bytes for shape {shape} of {dtype}, got {len(data):,}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if in_fortran_order else "C")
