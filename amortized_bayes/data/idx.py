"""MNIST's idx format, read in memory and checked at every read.

An idx file is two zero bytes, the type (8 is ``uint8``), the number of dimensions, each dimension as a big-endian
32-bit integer, then the values. Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits",
1998, http://yann.lecun.com/exdb/mnist/. torchvision checks a checksum at download only; here the sha256 of
the unpacked content is compared each time.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["IdxFile", "read_idx"]


class IdxFile(NamedTuple):
    """What an idx file must hold: its name without ``.gz``, its shape, the sha256 of its unpacked bytes."""

    name: str
    shape: tuple[int, ...]
    sha256: str


def read_idx(path: Path, expected: IdxFile) -> np.ndarray:
    """Read an idx file, gzipped if its name ends in ``.gz``, into a ``uint8`` array of ``expected.shape``.

    Raises ``ValueError`` if the file cannot be read or is not, to the last bit, what is expected.
    """
    header = struct.pack(f">BBBB{len(expected.shape)}I", 0, 0, 8, len(expected.shape), *expected.shape)
    size = len(header) + math.prod(expected.shape)
    content = _read_unpacked(path, limit=size + 1)  # a file that unpacks to gigabytes is not followed to its end
    if content[:4] != header[:4]:
        raise ValueError(f"{path} is no idx file: expected the first bytes {_show(header)}, got {_show(content)}")
    if len(content) != size:
        got = f"{len(content)}" if len(content) < size else "more"
        raise ValueError(f"{path} has the wrong size: expected {size} bytes unpacked, got {got}")
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != expected.sha256:
        raise ValueError(f"{path} has changed content: expected sha256 {expected.sha256}, got {sha256}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(expected.shape)


def _read_unpacked(path: Path, limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            if path.suffix != ".gz":
                return file.read(limit)
            start = file.read(4)
            if start[:2] != b"\x1f\x8b":
                raise ValueError(f"{path} is no gzip file: expected the first bytes 1f 8b, got {_show(start)}")
            file.seek(0)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return unpacked.read(limit)
    except EOFError:
        raise ValueError(f"{path} is cut short: expected a whole gzip file, got {path.stat().st_size} bytes") from None
    except (OSError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise ValueError(f"{path} cannot be read: expected a sound file, got {error}") from None


def _show(content: bytes) -> str:
    return content[:4].hex(" ") or "an empty file"
