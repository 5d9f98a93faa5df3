"""What fits into memory: what does not is refused before it is made. No torch, unless a GPU is asked about."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "TRAINED",
    "Memory",
    "check_memory",
    "check_network",
    "in_words",
    "is_out_of_memory",
    "memory_of",
    "total_memory",
]

TRAINED = 4
"""A parameter that is fitted is there with its gradient and two moments of Adam."""
NUMBER = 4
"""Bytes of a float32."""
SMALL = 64e6
"""Bytes that nobody has to ask for."""
LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""What a container may take and takes, in both versions of Linux's control groups."""


class Memory(NamedTuple):
    """Bytes of a machine or a GPU: ``free``, those that caches could give back among them, and ``total``."""

    free: float
    total: float


def memory_of(device: Any = "cpu") -> Memory:
    """What a device has; of a container, what it may take. Infinite where the system does not say."""
    if str(device).startswith("cuda"):
        import torch

        return Memory(*torch.cuda.mem_get_info(device))
    total = total_memory()
    free = min(total, _available(total))
    for limit, usage in LIMITS:
        most = _read(limit)
        if most < total:
            total, free = most, min(free, most - (taken if (taken := _read(usage)) < math.inf else 0))
    return Memory(max(0.0, free), total)


def check_memory(needed: float, what: str, device: Any = "cpu") -> None:
    """Refuse what needs more bytes than are free.

    Args:
        needed: bytes.
        what: what needs them, in words.
        device: where they are needed.

    Raises:
        ValueError: there are fewer.

    Example:
        >>> check_memory(1e18, "a table of 10^16 rows")
        Traceback (most recent call last):
        ValueError: expected sizes that fit into memory, got a table of 10^16 rows, which needs 1,000,000 TB: ... free
    """
    if needed <= SMALL:
        return
    free, total = memory_of(device)
    if needed > free:
        raise ValueError(
            f"expected sizes that fit into memory, got {what}, which needs {in_words(needed)}: "
            f"{device} has {in_words(total)}, of which {in_words(free)} are free"
        )


def check_network(sizes: Sequence[int], copies: int = TRAINED) -> None:
    """Refuse a dense network ``sizes[0] -> ... -> sizes[-1]`` that does not fit into memory when it is fitted.

    Raises:
        ValueError: it does not.
    """
    count = sum((before + 1) * after for before, after in pairwise(sizes))
    shape = " x ".join(f"{size:,}" for size in sizes)
    check_memory(copies * NUMBER * count, f"a network of {shape} units with {count:,} weights to fit")


def in_words(count: float) -> str:
    """Bytes in words.

    Example:
        >>> in_words(1.3e11), in_words(64e6)
        ('130 GB', '64 MB')
    """
    unit, name = next(((u, n) for u, n in ((1e12, "TB"), (1e9, "GB")) if count >= u), (1e6, "MB"))
    scaled = count / unit
    return f"{scaled:,.1f} {name}" if scaled < 10 and scaled % 1 else f"{scaled:,.0f} {name}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's own, or one of torch's."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def total_memory() -> float:
    """Bytes of memory of this machine; infinite where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return math.inf


def _available(total: float) -> float:
    """What Linux says could be given out without swapping; elsewhere all there is."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, IndexError, StopIteration):
        return total


def _read(path: Path) -> float:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf
