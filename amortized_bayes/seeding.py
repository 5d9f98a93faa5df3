"""One seed in, named and independent streams of random numbers out.

A stream is addressed by the run's seed and any number of names: ``numpy_generator(seed, "binarize", "train")``. The
address is hashed with sha256, so streams do not overlap, adding one leaves the others as they were, and the same
address gives the same draws in every process (Python's own ``hash`` does not: it is salted in each).
"""

from __future__ import annotations

import hashlib
import json
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["numpy_generator", "torch_generator", "torch_seed"]


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Make the numpy generator of the stream ``names`` of ``seed``.

    Raises ``ValueError`` if ``seed`` is no integer or below 0, or a name is neither text nor an integer.
    """
    return np.random.default_rng(np.random.SeedSequence(int.from_bytes(_hash_address(seed, names), "big")))


def torch_seed(seed: int, *names: str | int) -> int:
    """Give a seed in [0, 2^63) for the stream ``names`` of ``seed``; errors as in :func:`numpy_generator`."""
    return int.from_bytes(_hash_address(seed, names)[:8], "big") >> 1


def torch_generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Make the torch generator of the stream ``names`` of ``seed``; errors as in :func:`numpy_generator`."""
    import torch  # here, so that seeding numpy costs no second of import

    return torch.Generator(device=device).manual_seed(torch_seed(seed, *names))


def _hash_address(seed: int, names: tuple[str | int, ...]) -> bytes:
    """Hash to 32 bytes. JSON keeps ``("a", 1)``, ``("a", "1")`` and ``("a1",)`` apart."""
    address = [
        _checked_integer("seed", seed),
        *(n if isinstance(n, str) else _checked_integer("name", n) for n in names),
    ]
    if address[0] < 0:
        raise ValueError(f"expected a seed of 0 or more, got {seed}")
    return hashlib.sha256(json.dumps(address).encode()).digest()


def _checked_integer(what: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # numpy's integers too
    except TypeError:
        wanted = "an integer" if what == "seed" else "text or an integer"
        raise ValueError(f"expected {wanted} as {what} of a random stream, got {value!r}") from None
