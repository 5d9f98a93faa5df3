"""``rows.jsonl.gz`` in place of ``rows.jsonl``: the rows of a finished run, compressed to a tenth of the bytes.

Checksums are of the rows themselves, so a run stays what it was. A run that is being written has its rows plain: lines
are appended to them.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

__all__ = ["MOST_BYTES", "PACKED", "is_there", "pack", "packed_file", "unpack"]

PACKED = "rows.jsonl.gz"
MOST_BYTES = 50_000_000
"""Largest size of unpacked rows: a few kilobytes of gzip may unpack to gigabytes."""
_GZIP = 16 + zlib.MAX_WBITS


def pack(rows: bytes) -> bytes:
    """Return ``rows`` as gzip, without a time in it: equal rows give equal bytes.

    Raises:
        ValueError: they are more than :func:`unpack` takes.
    """
    if len(rows) > MOST_BYTES:
        raise ValueError(f"expected rows of at most {MOST_BYTES:,} bytes to pack, got {len(rows):,}")
    return gzip.compress(rows, mtime=0)


def unpack(data: bytes, path: Path) -> bytes:
    """Return the rows that ``data`` packs; ``path`` is named in errors.

    Raises:
        ValueError: it is no gzip, ends too early, has something behind its end, or unpacks to more than
            ``MOST_BYTES``.
    """
    reader = zlib.decompressobj(_GZIP)
    try:
        rows = reader.decompress(data, MOST_BYTES + 1)
    except zlib.error as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if len(rows) > MOST_BYTES:
        raise ValueError(f"{path}: expected a file that unpacks to at most {MOST_BYTES:,} bytes, got more")
    if not reader.eof or reader.unused_data:
        raise ValueError(f"{path} cannot be read: {'more than one stream' if reader.eof else 'its end is missing'}")
    return rows


def packed_file(run: Path, file: str) -> Path | None:
    """Return the path of the packed form in which a finished run has ``file``; ``None`` where it has none."""
    path = run / PACKED
    stands_in = file == "rows.jsonl" and not os.path.lexists(run / file) and os.path.lexists(run / "FINISHED")
    return path if stands_in and os.path.lexists(path) else None


def is_there(run: Path, file: str) -> bool:
    """Whether a run has a file, packed or not."""
    return os.path.lexists(run / file) or packed_file(run, file) is not None
