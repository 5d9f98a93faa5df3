r"""The best product of Bernoullis of points whose :math:`2^D` codes have been summed: mean field by coordinate ascent.

With f(z) = log p(x, z), the best log odds of one bit given those of the others are

.. math:: \alpha_d = \mathbb{E}_{q(z_{-d})}[f(z_{-d}, 1) - f(z_{-d}, 0)] ,

so that updates of one bit after the other raise the ELBO. It has several optima, and which one is found depends on
where a search begins: each point has several starts. A sweep over all bits takes about as long as reading the table
twice: codes are halves, of first and last bits, and one half is averaged out before the other is updated, likewise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from amortized_bayes.joint import Bernoullis, code_values

__all__ = ["MeanField", "best_product", "elbo_of_codes", "residual_of"]

MOST_SWEEPS = 500
TOLERANCE = 1e-10
"""ELBO in nats that a sweep gains, at most, where a search has come to its end."""
DRAWN = 8
"""Starts at codes drawn from the posterior, for points with more codes than these."""
FIRM = 1e4
"""Log odds of a start at a code: it has all mass, none of it at codes that cannot be."""
IMPOSSIBLE = -1e300
"""Log p(x, z) of codes that cannot be: products that have any of them are left, however little."""


class MeanField(NamedTuple):
    """The best product that was found.

    Args:
        logits: its log odds, ``(B, D)``.
        elbo: ``(B,)``, in nats.
        residual: what a natural gradient step from there would gain, ``(B,)``.
        spread: standard deviation of the ELBO over starts, ``(B,)``.
    """

    logits: Tensor
    elbo: Tensor
    residual: Tensor
    spread: Tensor


@torch.no_grad()
def best_product(table: Tensor, starts: Tensor, generator: torch.Generator) -> MeanField:
    """Climb from each start, and from the posterior's marginals and codes, to the best product of each point.

    Args:
        table: log p(x, z) of all codes, ``(B, 2^D)``, float64.
        starts: log odds, ``(R, B, D)``, such as the guide's.
        generator: random generator for the codes that are drawn.
    """
    table = table.clamp(min=IMPOSSIBLE)
    alpha = torch.cat([starts.double(), _own_starts(table, starts.shape[-1], generator)]).movedim(0, 1)  # (B, R, D)
    begun = alpha[:, : len(starts)]
    elbo = _elbo(table, alpha)
    for _ in range(MOST_SWEEPS):
        alpha = _sweep(table[:, None], alpha, follow=True)
        before, elbo = elbo, _elbo(table, alpha)
        if not bool((elbo - before > TOLERANCE * (1 + elbo.abs())).any()):
            break
    ends = torch.cat([alpha, begun], 1)  # what is begun with is never left for worse, by rounding either
    values = torch.cat([elbo, _elbo(table, begun)], 1)
    at = torch.arange(len(table), device=table.device), values.argmax(1)
    found = ends[at]
    residual = residual_of(found, _sweep(table[:, None], found[:, None], follow=False)[:, 0])
    return MeanField(found, _possible(values[at]), residual, elbo.std(1, correction=0))


def elbo_of_codes(table: Tensor, logits: Tensor) -> Tensor:
    """ELBO of products with log odds ``(B, D)``, summed over all codes ``(B, 2^D)``: ``(B,)`` in nats."""
    return _possible(_elbo(table.clamp(min=IMPOSSIBLE), logits.double()[:, None])[:, 0])


def residual_of(logits: Tensor, best: Tensor) -> Tensor:
    r"""What a natural gradient step gains, to second order, ``(..., D)`` twice to ``(...)``.

    :math:`\frac12 \sum_d \sigma'(\alpha_d) (\hat\alpha_d - \alpha_d)^2`, with the best log odds of each bit given the
    others: the gradient is :math:`\sigma'(\alpha_d) (\hat\alpha_d - \alpha_d)`, and the information
    :math:`\sigma'(\alpha_d)`.
    """
    return 0.5 * (logits.sigmoid() * (-logits).sigmoid() * (best - logits).square()).nan_to_num(nan=0.0).sum(-1)


def _own_starts(table: Tensor, num_bits: int, generator: torch.Generator) -> Tensor:
    """Log odds ``(R, B, D)``: even, those of each bit in the posterior, and codes: all, or the best and some drawn."""
    posterior = table.softmax(-1)
    codes = torch.arange(table.shape[1], device=table.device)
    values = code_values(codes, num_bits).double()
    marginal = (posterior @ values).clamp(0, 1)
    if len(codes) > DRAWN:
        drawn = torch.multinomial(posterior, DRAWN - 1, replacement=True, generator=generator)
        codes = torch.cat([table.argmax(1, keepdim=True), drawn], 1)
    else:
        codes = codes.expand(len(table), -1)
    at_codes = FIRM * (2.0 * code_values(codes, num_bits) - 1)
    return torch.cat([torch.zeros_like(marginal)[None], torch.logit(marginal)[None], at_codes.movedim(1, 0)])


def _sweep(table: Tensor, alpha: Tensor, *, follow: bool) -> Tensor:
    """The best log odds of each bit given the others', ``(B, R, D)``; ``follow`` takes those found for the next ones.

    ``table`` is ``(B, R, 2^D)``, or ``(B, 1, 2^D)`` of all starts.
    """
    num_bits = alpha.shape[-1]
    if num_bits == 1:
        return (table[..., 1:] - table[..., :1]).expand_as(alpha)
    half = num_bits // 2
    first, last = alpha[..., :half], alpha[..., half:]
    square = table.unflatten(-1, (2**half, 2 ** (num_bits - half)))
    found = _sweep(_average(square, last), first, follow=follow)
    rest = _sweep(_average(square.mT, found if follow else first), last, follow=follow)
    return torch.cat([found, rest], -1)


def _average(square: Tensor, alpha: Tensor) -> Tensor:
    """Means over the second codes, whose log odds are these: ``(B, R or 1, I, J)`` to ``(B, R, I)``."""
    weights = _probabilities(alpha)
    if square.shape[1] == 1:  # one table of all starts is not copied for each
        return (square[:, 0] @ weights.mT).mT
    return (square @ weights[..., None])[..., 0]


def _probabilities(alpha: Tensor) -> Tensor:
    """Of all codes, ``(..., D)`` log odds to ``(..., 2^D)``."""
    found = alpha.new_ones(*alpha.shape[:-1], 1)
    for one in alpha.unbind(-1):
        found = (found[..., None] * torch.stack([(-one).sigmoid(), one.sigmoid()], -1)[..., None, :]).flatten(-2)
    return found


def _elbo(table: Tensor, alpha: Tensor) -> Tensor:
    """``(B, R)`` of ``(B, 2^D)`` and ``(B, R, D)``."""
    half = alpha.shape[-1] // 2
    first, last = alpha[..., :half], alpha[..., half:]
    square = table[:, None].unflatten(-1, (2**half, -1))
    expected = (_average(square, last) * _probabilities(first)).sum(-1)
    return expected + Bernoullis(alpha).entropy


def _possible(elbo: Tensor) -> Tensor:
    return elbo.masked_fill(elbo < IMPOSSIBLE / 1e100, -math.inf)
