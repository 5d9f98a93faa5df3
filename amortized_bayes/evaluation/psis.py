r"""How far importance weights can be trusted: Pareto k̂ and the effective sample size.

The largest log weights of S draws are fitted by a generalized Pareto distribution; its shape k̂ says how many moments
the weights have. Estimates are good for

.. math:: \hat k < \min(1 - 1 / \log_{10} S, \; 0.7)

and biased above, whatever S (Vehtari, Simpson, Gelman, Yao & Gabry, *Pareto smoothed importance sampling*, JMLR 2024).
Near 0.7 the standard deviation of k̂ is 0.15 at 1,000 draws and 0.085 at 10,000.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from amortized_bayes.limits import limited

__all__ = ["MIN_DRAWS", "ess", "heaviest", "khat_threshold", "psis_khat", "tail_khat"]

MIN_DRAWS = 25
"""Fewer draws leave no tail to fit."""

MIN_TAIL = 5
"""Fewer draws above the rest have no fit."""

EXACT_RANGE = 1e-3
"""A tail within this range (nats) is level: weights are bounded, and sums of them as good as exact.

Float32 rounds log weights of hundreds of nats by some 1e-5, so that those of an exact guide differ by as much.
"""


@limited
def psis_khat(log_weights: Tensor) -> Tensor:
    """Pareto k̂ of each point: ``(..., S)`` log weights in nats, ``(...)`` out, float64 on the weights' device.

    Weights of which the heaviest fifth are equal to 0.001 nats give ``-inf``, as those of an exact guide do, and so do
    those of which all above the rest are, five or more, as of discrete draws. Weights
    with NaN or ``+inf`` give NaN; weights of which fewer than ``MIN_DRAWS`` are above zero, or fewer than five above a
    level rest, give ``+inf``. Other weights of zero (``-inf``) are the lightest of the draws.

    Raises:
        ValueError: fewer than 25 draws.

    Example:
        >>> import torch
        >>> from amortized_bayes import psis_khat
        >>> generator = torch.Generator().manual_seed(0)
        >>> wide = 0.1 * torch.randn(2, 1000, generator=generator)
        >>> bool((psis_khat(wide) < 0.7).all())
        True
    """
    num_draws = log_weights.shape[-1] if log_weights.dim() else 0
    if num_draws < MIN_DRAWS:
        raise ValueError(f"expected at least {MIN_DRAWS} draws along the last dimension, got {num_draws}")
    flat = log_weights.detach().reshape(-1, num_draws)
    khat = tail_khat(heaviest(flat, num_draws), (flat != -math.inf).sum(-1))
    return khat.reshape(log_weights.shape[:-1]).to(log_weights.device)


def heaviest(log_weights: Tensor, num_draws: int) -> Tensor:
    """What k̂ of ``num_draws`` needs of them, rising: the tail and the next draw, ``(B, S) -> (B, M + 1)``.

    It can be taken of parts, and again of what was kept of each. NaN counts as the heaviest.
    """
    most = min(math.floor(min(num_draws / 5, 3 * math.sqrt(num_draws))) + 1, log_weights.shape[-1])
    return log_weights.double().topk(most, -1).values.flip(-1)


def tail_khat(top: Tensor, num_positive: Tensor) -> Tensor:
    """Pareto k̂ as :func:`psis_khat`, ``(B,)`` on the CPU, from :func:`heaviest` ``(B, M + 1)`` and weights above 0."""
    top, num_positive = top.cpu(), num_positive.cpu()
    khat = torch.full((len(top),), math.nan, dtype=torch.float64)
    broken = ~(top[:, -1] < math.inf)
    hopeless = ~broken & (num_positive < MIN_DRAWS)
    khat[hopeless] = math.inf
    fit = ~(broken | hopeless)
    if fit.any():
        khat[fit] = _fit(top[fit])
    return khat


def khat_threshold(num_draws: int) -> float:
    """Largest k̂ at which estimates from ``num_draws`` draws can be trusted.

    Raises:
        ValueError: fewer than 25 draws.
    """
    if num_draws < MIN_DRAWS:
        raise ValueError(f"expected at least {MIN_DRAWS} draws, got {num_draws}")
    return min(1 - 1 / math.log10(num_draws), 0.7)


def ess(log_weights: Tensor) -> Tensor:
    """Effective sample size (Σw)²/Σw² of each point (Kong 1992): ``(..., S)`` in nats to ``(...)`` in [1, S].

    Points with NaN or ``+inf`` give NaN; a point whose weights are all zero gives 0.
    """
    values = log_weights.double()
    size = (2 * values.logsumexp(-1) - (2 * values).logsumexp(-1)).exp()
    broken = values.isnan().any(-1) | (values == math.inf).any(-1)
    empty = ~broken & (values == -math.inf).all(-1)
    return size.masked_fill(broken, math.nan).masked_fill(empty, 0.0)


def _fit(top: Tensor) -> Tensor:
    """Pareto k̂ of weights, ``(R, M + 1) -> (R,)``: ``-inf`` for a level tail, ``inf`` for too short a one.

    The tail is what lies above the largest weight outside the heaviest min(S/5, 3√S) draws. Draws that tie with that
    weight are no tail: in float32 many weights are equal, and exceedances of 0 have no generalized Pareto fit.
    """
    count = (top > top[:, :1]).sum(-1)
    khat = torch.full_like(top[:, 0], math.inf)
    level = top[:, -1] - top[:, 0] < EXACT_RANGE
    first = top.gather(1, (-count).clamp(max=-1)[:, None] + top.shape[1])[:, 0]  # of the tail
    level |= (count >= MIN_TAIL) & (top[:, -1] - first < EXACT_RANGE)  # as of discrete draws: the largest weight is met
    khat[level] = -math.inf
    fit = ~level & (count >= MIN_TAIL)
    for size in count[fit].unique().tolist():
        rows = fit & (count == size)
        khat[rows] = _shape(top[rows, -size:], top[rows, :1])
    return khat


def _shape(tail: Tensor, cutoff: Tensor) -> Tensor:
    """Shape of a generalized Pareto distribution fitted to ``tail - cutoff``, ``(R, M)`` and ``(R, 1)`` to ``(R,)``."""
    from arviz_stats.base.array import array_stats  # here: it loads scipy, which nothing else of this folder needs

    # arviz_stats takes MINUS the log weights, which its documentation does not say, and of few effective draws the
    # heaviest fifth: with the cutoff four times as often as there are draws in the tail, that is the tail.
    size = tail.shape[-1]
    draws = torch.cat([cutoff.expand(-1, 4 * size), tail], -1)
    effective: Any = 1 / draws.shape[-1]
    return torch.as_tensor(array_stats.psislw(-draws.numpy(), r_eff=effective, axis=-1)[1])
