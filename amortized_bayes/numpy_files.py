"""``.npy`` and ``.npz`` files of anybody's: what they say of themselves is checked before memory is taken for it.

A header may claim any shape, and a few kilobytes of an archive may unpack to gigabytes. So the bytes that a shape takes
must be those that are there, and an archive may not grow without bound. Nothing is ever unpickled.

``zipfile`` unpacks bzip2 and LZMA without a bound on what it is given at once, and takes the dictionary that an LZMA
stream asks for; so these are unpacked here, as far as they are read.
"""

from __future__ import annotations

import bz2
import copy
import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Collection
from typing import IO, TYPE_CHECKING, Protocol

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
_PACKED_PIECE = 1 << 12
"""Bytes that are read of what is packed by bzip2 or LZMA at once."""
_LEAST_DICTIONARY = 1 << 12
"""Bytes that a dictionary of LZMA has at least."""


class _Readable(Protocol):
    """What an array is read from."""

    def read(self, size: int = ..., /) -> bytes: ...

    def tell(self) -> int: ...


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
    if member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with archive.open(member) as file:
            return _read_array(file, member.file_size)
    with archive.open(_as_it_is(member)) as file:
        return _read_array(_Unpacked(file, member), member.file_size)


def _as_it_is(member: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """The member as if its packed bytes were its contents, without the checksum, which is of others."""
    found = copy.copy(member)
    found.compress_type, found.file_size = zipfile.ZIP_STORED, member.compress_size
    del found.CRC
    return found


class _Unpacked:
    """A member packed by bzip2 or LZMA: no more of it is unpacked than is read.

    Args:
        packed: its bytes.
        member: what the archive says of it.

    Raises:
        ValueError: packed in another way; later, bytes that do not have their checksum.
    """

    def __init__(self, packed: IO[bytes], member: zipfile.ZipInfo) -> None:
        self.packed, self.member = packed, member
        self.place = self.checksum = 0
        self.unpacker: bz2.BZ2Decompressor | lzma.LZMADecompressor
        if member.compress_type == zipfile.ZIP_BZIP2:
            self.unpacker = bz2.BZ2Decompressor()
        elif member.compress_type == zipfile.ZIP_LZMA:
            self.unpacker = _lzma_unpacker(packed, member.file_size)
        else:
            raise ValueError(f"expected arrays packed by deflate, bzip2 or LZMA, got method {member.compress_type}")

    def tell(self) -> int:
        """How many bytes were read."""
        return self.place

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes; fewer at the end, and all that are left where no number is given."""
        left = self.member.file_size - self.place
        found, size = bytearray(), left if size < 0 else min(size, left)
        while len(found) < size and not self.unpacker.eof:
            starved = self.unpacker.needs_input
            more = self.packed.read(_PACKED_PIECE) if starved else b""
            if starved and not more:
                break
            found += self.unpacker.decompress(more, size - len(found))
        self.place += len(found)
        self.checksum = zlib.crc32(found, self.checksum)
        if self.place == self.member.file_size and self.checksum != self.member.CRC:
            raise ValueError(f"expected bytes with the checksum {self.member.CRC:08x}, got {self.checksum:08x}")
        return bytes(found)


def _lzma_unpacker(packed: IO[bytes], size: int) -> lzma.LZMADecompressor:
    """What unpacks so many bytes of LZMA: its dictionary need not hold more than these, whatever it asks for.

    A member begins with a version, the length of the properties, and these: a byte for three numbers and the size of
    the dictionary (PKWARE, *.ZIP File Format Specification*, 5.8.8).
    """
    _, length = struct.unpack("<HH", packed.read(4))
    properties = packed.read(length)
    if length != 5 or len(properties) != 5:
        raise ValueError(f"expected 5 bytes of LZMA properties, got {length:,}")
    packed_numbers, dictionary = struct.unpack("<BI", properties)
    rest, lc = divmod(packed_numbers, 9)
    pb, lp = divmod(rest, 5)
    numbers = {"lc": lc, "lp": lp, "pb": pb, "dict_size": max(_LEAST_DICTIONARY, min(dictionary, size))}
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1, **numbers}])


def _read_array(file: _Readable, size: int) -> np.ndarray:
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
    while len(data) < expected and (more := file.read(min(_PIECE, expected - len(data)))):
        data += more
    if len(data) != expected:
        raise ValueError(f"expected {expected:,} bytes for shape {shape} of {dtype}, got {len(data):,}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if in_fortran_order else "C")
