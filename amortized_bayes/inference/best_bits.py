r"""The best product of Bernoullis of each point, and the ELBO of any, from log p(x, z) of all codes: no draws.

Given the other bits, the best log odds of bit d are the difference of two means under their q,

.. math:: \alpha_d = E_{q}[\log p(x, z) \mid z_d = 1] - E_{q}[\log p(x, z) \mid z_d = 0] ,

so that a sweep over the bits never lowers the ELBO (coordinate ascent, mean field). It ends in a local optimum; several
starts make a better one likely, and no more. The codes of a point are halved bit by bit, so that a
sweep looks at each about three times, however many bits there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BestBits", "best_bits", "bits_elbo"]

TOLERANCE = 1e-9
"""Nats that a sweep gains a point at its end."""
MOST_SWEEPS = 1_000


class BestBits(NamedTuple):
    """The best product of Bernoullis of each point that was found.

    Args:
        logits: log odds of each bit, (B, b).
        elbo: (B,), in nats.
    """

    logits: Tensor
    elbo: Tensor


def bits_elbo(log_joint: Tensor, logits: Tensor) -> Tensor:
    """ELBO of products of Bernoullis, (B,), summed over all codes.

    Args:
        log_joint: log p(x, z) of all codes, (B, 2^b), the first bit changing last.
        logits: log odds of each bit, (B, b).
    """
    mean = log_joint
    for q in logits.sigmoid().unbind(1):
        mean = _halved(mean, q)
    return mean[:, 0] + _entropy(logits)


def best_bits(log_joint: Tensor, starts: Sequence[Tensor]) -> BestBits:
    """Climb from each start, (B, b) log odds, and take the best of what is found.

    Args:
        log_joint: log p(x, z) of all codes, (B, 2^b), the first bit changing last.
        starts: one at least, finite.

    Raises:
        ValueError: no start, or shapes that do not fit.
    """
    if not starts or any(2 ** s.shape[1] != log_joint.shape[1] or len(s) != len(log_joint) for s in starts):
        shapes = ", ".join(str(tuple(s.shape)) for s in starts)
        raise ValueError(f"expected log odds of each bit for {tuple(log_joint.shape)} codes, got {shapes or 'none'}")
    found = [_climb(log_joint, start.to(log_joint)) for start in starts]
    elbos = torch.stack([one.elbo for one in found])
    best = elbos.argmax(0)
    logits = torch.stack([one.logits for one in found])
    return BestBits(logits[best, torch.arange(len(best))], elbos.amax(0))


def _climb(log_joint: Tensor, start: Tensor) -> BestBits:
    """Sweep until no point gains any more; points that do not leave."""
    found, elbo = start.clone(), bits_elbo(log_joint, start)
    left = torch.arange(len(start))
    for _ in range(MOST_SWEEPS):
        moved, now = _sweep(log_joint, found[left])
        gained = now - elbo[left]
        found[left], elbo[left] = moved, now
        going = gained > TOLERANCE * (1 + now.abs())
        left, log_joint = left[going], log_joint[going]
        if not len(left):
            break
    return BestBits(found, elbo)


def _sweep(log_joint: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each bit's best log odds given the others, one after the other, and the ELBO at the end."""
    old, new, left = logits.sigmoid(), [], log_joint
    for d in range(logits.shape[1]):
        half = left.shape[1] // 2
        right = left[:, half:] - left[:, :half]
        for q in old[:, d + 1 :].unbind(1):
            right = _halved(right, q)
        new.append(right[:, 0])
        left = _halved(left, new[-1].sigmoid())
    moved = torch.stack(new, 1)
    return moved, left[:, 0] + _entropy(moved)


def _halved(values: Tensor, q: Tensor) -> Tensor:
    """Means over the first bit that is left, whose probabilities of 1 are (B,): of (B, 2 C) values (B, C)."""
    half = values.shape[1] // 2
    return values[:, :half].lerp(values[:, half:], q[:, None])


def _entropy(logits: Tensor) -> Tensor:
    return (F.softplus(logits) - logits * torch.sigmoid(logits)).sum(1)
