r"""The best product of Bernoullis of points with any number of bits: mean field by sampled differences.

The best log odds of a bit given those of the others are the mean over :math:`z \sim q` of the difference that it makes,

.. math:: \hat\alpha_d = \mathbb{E}_q\,[(2 z_d - 1) (f(z) - f(z^{(d)}))], \qquad f(z) = \log p(x, z),

where :math:`z^{(d)}` is z with bit d flipped: given the other bits both values of d give the same. So each draw is
looked at with every bit flipped, which leaves only the noise of the other bits (local expectation gradients: Titsias &
Lázaro-Gredilla, 2015). Bits are updated in groups, at first by the whole step, later by the running mean of all steps
since then, in which noise averages out. Where a point's codes are few they are summed instead:
:mod:`~amortized_bayes.inference.mean_field`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from amortized_bayes.calls import PerPointNames
from amortized_bayes.entrance import enter
from amortized_bayes.inference.mean_field import MeanField, best_product, residual_of
from amortized_bayes.inference.settings import LocalSettings, NumBits
from amortized_bayes.joint import (
    Bernoullis,
    LogJoint,
    check_start,
    code_tables,
    global_seed,
    guide_start,
    joint_density,
    rows_at_once,
)
from amortized_bayes.limits import Seed, limited
from amortized_bayes.seeding import torch_generator
from amortized_bayes.signatures import own_options
from amortized_bayes.types import Guide, Model

__all__ = ["BitOptimum", "bits_start", "optimize_bits", "rounding", "search_bits"]

GROUPS = 4
"""Groups of bits, those of one of which move together: all at once would swing about."""
SCOUTS = 3
"""Starts beside the guide's: even log odds, and draws of the prior."""
SCOUTED, CLIMBED = 8, 16
"""Sweeps from each start, and from the best of them."""
SCOUT_SAMPLES = 2
FIRM = 3.0
"""Log odds of a start at a draw."""
STEEPEST = 1e4
"""Largest difference in nats, as to codes that cannot be."""


class BitOptimum(NamedTuple):
    """The best product of Bernoullis of B points, ``(B,)`` each unless said otherwise, in nats.

    It is the best of several starts: the true optimum may be higher, so that the family costs at most what it seems to.

    Args:
        elbo_star: its ELBO: exact where codes were summed, else on fresh draws.
        standard_error: Monte Carlo error of ``elbo_star``; that of rounding where codes were summed.
        residual: what a natural gradient step would still gain; its estimate is unbiased and may lie below zero.
        residual_error: its standard error, by the jackknife over draws.
        logits: its log odds, ``(B, D)``.
        spread: standard deviation of the ELBO over starts.
    """

    elbo_star: Tensor
    standard_error: Tensor
    residual: Tensor
    residual_error: Tensor
    logits: Tensor
    spread: Tensor


@own_options
@limited
def optimize_bits(
    model: Model,
    guide: Guide | Bernoullis | None,
    *args: Any,
    settings: LocalSettings | None = None,
    sum_up_to: NumBits = 16,
    plate: str | None = None,
    per_point: PerPointNames = None,
    fixed: Mapping[str, Tensor] | None = None,
    seed: Seed = 0,
    **kwargs: Any,
) -> BitOptimum:
    """Find the best product of Bernoullis of each point, given the model and the latents outside the plate.

    Args:
        model: Pyro program whose latents in the plate over data points are all Bernoulli.
        guide: one of the starts: a Pyro program, products of one's own, or ``None``.
        args: arguments of both programs, as of :func:`~amortized_bayes.inference.optimize.optimize_local`.
        settings: settings of the search: draws of each q, and those that score it.
        sum_up_to: bits of a point whose codes are all summed, so that nothing is drawn.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        fixed: values of the latents outside the plate.
        seed: random seed for all draws; torch's global generator is left as it was.
        kwargs: keyword arguments of both programs.

    Raises:
        ValueError: as :func:`amortized_bayes.joint.log_joint`, or latents that are no bits.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from amortized_bayes.inference.bit_search import optimize_bits
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(len(x), 2)).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> found = optimize_bits(model, None, torch.tensor([[1.5, -0.5], [0.5, 0.5]]))
        >>> torch.allclose(found.logits.float(), torch.tensor([[1.0, -1.0], [0.0, 0.0]]), atol=1e-5)
        True
    """
    entered = enter(optimize_bits, model, guide, args, kwargs, plate=plate, per_point=per_point)
    joint = joint_density(entered.model, *entered.args, plate=entered.plate, fixed=fixed, bits=True, **entered.kwargs)
    if not joint.is_bits:
        raise ValueError("expected latents that are bits, got continuous ones: `optimize_local` finds their best q")
    chosen = settings or LocalSettings()
    start = entered.guide
    if isinstance(start, Bernoullis):
        check_start(joint, start)
    elif start is not None:
        start = bits_start(joint, start, chosen.num_fit, seed)
    if joint.dim <= sum_up_to:
        return _summed(joint, start, seed)
    return search_bits(joint, start, chosen, seed)


def bits_start(joint: LogJoint, guide: Guide, num_fit: int, seed: int) -> Bernoullis:
    """The guide's product of Bernoullis, or the frequencies of so many draws."""
    with global_seed(seed, "start"):
        start = guide_start(joint, guide, num_fit)
    assert isinstance(start, Bernoullis)
    return start


def _summed(joint: LogJoint, start: Bernoullis | None, seed: int) -> BitOptimum:
    generator, found = torch_generator(seed, "q*", device=joint.device), list[MeanField]()
    for points, table in code_tables(joint):
        starts = table.new_zeros(0, len(points), joint.dim) if start is None else start.logits[None, points].double()
        found.append(best_product(table, starts, generator))
    logits, elbo, residual, spread = (torch.cat(part) for part in zip(*found, strict=True))
    return BitOptimum(elbo, rounding(elbo, joint.dtype), residual, torch.zeros_like(residual), logits, spread)


def rounding(log_p: Tensor, dtype: torch.dtype) -> Tensor:
    """What numbers of this size and type are rounded by, nothing of those that are not finite."""
    return (16 * torch.finfo(dtype).eps * log_p.abs()).nan_to_num(nan=0.0, posinf=0.0)


@torch.no_grad()
def search_bits(
    joint: LogJoint,
    start: Bernoullis | None,
    settings: LocalSettings,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> BitOptimum:
    """Search by sampled differences, from one start more where one is given.

    Args:
        joint: density of B points, whose latents are bits.
        start: such as the guide's q.
        settings: ``num_samples`` draws of each q per update, ``num_kept`` that choose among starts, ``num_score`` for
            the final ELBO, ``num_residual`` for what is left to gain; ``num_restarts`` starts, or 4 if that is more.
        seed: random seed for all draws.
        progress: called with points done and points in all.
    """
    found, done = list[BitOptimum](), 0
    rows = rows_at_once(joint, settings.memory_budget)
    for number, points in enumerate(torch.arange(joint.num_points, device=joint.device).split(max(1, rows // 64))):
        part = joint.select(points)
        own = None if start is None else start.logits[points]
        with global_seed(seed, "prior", number):
            starts = _starts(part, own, settings)
        found.append(_search(part, starts, settings, torch_generator(seed, "q*", number, device=joint.device), rows))
        done += len(points)
        if progress is not None:
            progress(done, joint.num_points)
    return BitOptimum(*(torch.cat(part) for part in zip(*found, strict=True)))


def _starts(joint: LogJoint, own: Tensor | None, settings: LocalSettings) -> Tensor:
    """Log odds ``(R, B, D)``: the guide's first, where there are any."""
    even = torch.zeros(joint.num_points, joint.dim, dtype=joint.dtype, device=joint.device)
    num = max(SCOUTS, settings.num_restarts - 1)
    drawn = FIRM * (2 * joint.sample_prior(num - 1) - 1)
    first = [] if own is None else [own.to(even)]
    return torch.cat([*(one[None] for one in first), even[None], drawn])


def _search(joint: LogJoint, starts: Tensor, settings: LocalSettings, generator: Generator, rows: int) -> BitOptimum:
    per_eval = max(1, rows // joint.num_points)

    def log_p(z: Tensor) -> Tensor:
        """Log p(x, z), ``(..., B, D)`` to ``(..., B)``, in float64, so many rows at a time."""
        flat = z.reshape(-1, *z.shape[-2:])
        return torch.cat([joint(some).double() for some in flat.split(per_eval)]).reshape(z.shape[:-1])

    def scored(alpha: Tensor, num: int) -> Tensor:
        """Log weights of draws of each product, ``(S, R, B)``, of ``(R, B, D)``."""
        z, log_q = Bernoullis(alpha.flatten(0, 1)).sample(num, generator)
        return log_p(z.unflatten(1, alpha.shape[:2])) - log_q.double().unflatten(1, alpha.shape[:2])

    alpha = _climb(log_p, starts, (SCOUTED, SCOUT_SAMPLES), generator)
    spread = (values := scored(alpha, settings.num_kept).mean(0)).std(0, correction=0)
    at = values.argmax(0), torch.arange(joint.num_points, device=starts.device)
    best = _climb(log_p, alpha[at][None], (CLIMBED, settings.num_samples), generator)
    both = torch.stack([best[0], starts[0]])  # the guide's own product is left only for a better one
    log_w = scored(both, settings.num_score)
    stays = log_w[:, 0].mean(0) >= log_w[:, 1].mean(0)
    chosen = torch.where(stays[:, None], *both)
    fresh = scored(chosen[None], settings.num_score)[:, 0]
    error = fresh.std(0) / math.sqrt(len(fresh))
    every = torch.arange(joint.dim, device=chosen.device)
    steps = _differences(log_p, chosen[None], every, settings.num_residual, generator)[:, 0]
    return BitOptimum(fresh.mean(0), error, *_residual(chosen.double(), steps), chosen, spread)


def _climb(log_p: Callable[[Tensor], Tensor], alpha: Tensor, lengths: tuple[int, int], generator: Generator) -> Tensor:
    """Log odds ``(R, B, D)`` after so many sweeps over all bits, with so many draws of each product."""
    num_sweeps, num_samples = lengths
    for sweep in range(num_sweeps):
        share = 1 / max(1, sweep - num_sweeps // 2 + 1)
        order = torch.randperm(alpha.shape[-1], generator=generator, device=alpha.device)
        for bits in order.chunk(GROUPS):
            found = _differences(log_p, alpha, bits, num_samples, generator).mean(0)
            alpha = alpha.clone()
            alpha[..., bits] = torch.lerp(alpha[..., bits], found.to(alpha), share)
    return alpha


def _differences(
    log_p: Callable[[Tensor], Tensor], alpha: Tensor, bits: Tensor, num_samples: int, generator: Generator
) -> Tensor:
    """What each of these bits makes in log p(x, z), 1 against 0, at draws of each product: ``(S, R, B, g)``."""
    z, _ = Bernoullis(alpha.flatten(0, 1)).sample(num_samples, generator)
    z = z.unflatten(1, alpha.shape[:2])
    flips = torch.zeros(len(bits), alpha.shape[-1], dtype=torch.bool, device=alpha.device)
    flips[torch.arange(len(bits)), bits] = True
    base = log_p(z)
    moved = log_p(torch.where(flips[:, None, None, None], 1 - z, z))  # (g, S, R, B)
    made = (2 * z[..., bits] - 1) * (base - moved).movedim(0, -1)
    return made.nan_to_num(nan=0.0).clamp(-STEEPEST, STEEPEST)


def _residual(alpha: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """What a natural gradient step gains at ``(B, D)``, of differences ``(M, B, D)``, and its error by the jackknife.

    It is unbiased: the square of a mean of M is too large by its variance.
    """
    num = len(steps)
    total, squares = steps.sum(0), steps.square().sum(0)

    def gain(mean: Tensor, second: Tensor, count: int) -> Tensor:
        variance = (second - count * mean.square()).clamp(min=0) / (count - 1)
        weight = 0.5 * alpha.sigmoid() * (-alpha).sigmoid()
        return residual_of(alpha, mean) - (weight * variance / count).sum(-1)

    left_out = gain((total - steps) / (num - 1), squares - steps.square(), num - 1)
    error = ((num - 1) / num * (left_out - left_out.mean(0)).square().sum(0)).sqrt()
    return gain(total / num, squares, num), error
