r"""Importance weights in blocks: any number of particles in bounded memory.

Sums are kept as logarithms,

.. math:: \ell_1 = \log \sum_s w_s, \qquad \ell_2 = \log \sum_s w_s^2,

from which the log mean and its standard error by the delta method follow. Where the guide's q is a factorized
Gaussian or a product of Bernoullis, it is read off once and particles are drawn from it directly: the encoder is not
run again for each, and log p(x, z) is replayed from a captured graph. Draws of all other guides are weighted by the
seam.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pyro.poutine as poutine
import torch
from torch import Tensor

from amortized_bayes.evaluation.chunking import PointChunk
from amortized_bayes.evaluation.psis import MIN_DRAWS, heaviest, khat_threshold, tail_khat
from amortized_bayes.guides.autoguides import as_per_point
from amortized_bayes.joint import LogJoint, NoWalk, captured_or_plain, joint_density, read_start
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.traces import sample_sites
from amortized_bayes.types import Guide, Model
from amortized_bayes.weights import draw_weights

__all__ = ["ROWS_AT_ONCE", "LogMeanExp", "blocks", "streamed_mean", "weight_blocks"]

ROWS_AT_ONCE = 2_000
"""Particles times points at once: what a cache holds goes fastest."""
PARTICLES_AT_ONCE = 1_000
"""Of a model that closes over its points, whose number is not known."""


class LogMeanExp:
    """Running log of a mean of weights, from blocks of log weights ``(s, B)`` in nats.

    Args:
        num_draws: how many will come, at least 25, for the k̂ of weights of one distribution; ``None`` for none.
    """

    def __init__(self, num_draws: int | None = None) -> None:
        self.num_draws = num_draws if num_draws is not None and num_draws >= MIN_DRAWS else None
        self.top = self.positive = torch.zeros(0)
        self.count = 0
        self.first = self.second = torch.tensor(-math.inf, dtype=torch.float64)

    def add(self, block: Tensor) -> None:
        """Take in more particles."""
        values = block.double()
        self.count += len(values)
        if self.num_draws is not None:
            kept = torch.cat([self.top, values.T], -1) if len(self.top) else values.T
            self.top = heaviest(kept, self.num_draws)
            self.positive = (values != -math.inf).sum(0) + (self.positive if len(self.positive) else 0)
        self.first = torch.logaddexp(self.first.to(values.device), values.logsumexp(0))
        self.second = torch.logaddexp(self.second.to(values.device), (2 * values).logsumexp(0))

    @property
    def value(self) -> Tensor:
        """Log of the mean weight, ``(B,)``."""
        return self.first - math.log(self.count)

    @property
    def standard_error(self) -> Tensor:
        """Of :attr:`value`, by the delta method, ``(B,)``; NaN for a single particle, and where k̂ says it fails."""
        if self.count < 2:
            return torch.full_like(self.first, math.nan)
        relative = (self.second - 2 * self.first).exp() * self.count - 1  # variance over squared mean
        error = (relative.clamp(min=0) / (self.count - 1)).sqrt()
        if self.num_draws is None:
            return error
        holds = tail_khat(self.top, self.positive) <= khat_threshold(self.num_draws)
        return error.where(holds.to(error.device), math.nan)


def streamed_mean(
    chunk: PointChunk, model: Model, guide: Guide, num_particles: int, max_rows: int
) -> tuple[Tensor, Tensor]:
    """Log of the mean weight of some points given the shared latents, and its error, with particles in blocks."""
    mean, joint = LogMeanExp(num_particles), _joint_of(chunk, model, guide)
    if joint is None:
        size = max_rows // len(chunk.places) if chunk.places else PARTICLES_AT_ONCE
        for block in blocks(num_particles, size):
            mean.add(chunk.weights(draw_weights, model, guide, num_particles=block).local[0])
    else:
        for block in weight_blocks(joint, guide, num_particles, max_rows):
            mean.add(block)
    return mean.value, mean.standard_error


def _joint_of(chunk: PointChunk, model: Model, guide: Guide) -> LogJoint | None:
    """Log p(x, z) of some points, at a draw of the shared latents; ``None`` where chains could not walk there.

    Weights need less: latents may be discrete or masked, and data closed over. What is wrong for both is said.
    """
    with chunk:
        guide = as_per_point(guide, chunk.plate)
        sites = list(sample_sites(poutine.trace(guide).get_trace(*chunk.args, **chunk.kwargs)))
        shared = [s for s in sites if plate_frame(s, chunk.plate) is None and not s["is_observed"]]
        local = {s["name"] for s in sites if plate_frame(s, chunk.plate) is not None}
        fixed = {s["name"]: s["value"] for s in shared if not s["infer"].get("is_auxiliary")}
        try:
            joint = joint_density(model, *chunk.args, plate=chunk.plate, fixed=fixed, bits=True, **chunk.kwargs)
        except NoWalk:
            return None
        marked_too = joint.is_bits and local != {site.name for site in joint.sites}  # and drawn all the same
        return None if marked_too else joint


@torch.no_grad()
def weight_blocks(joint: LogJoint, guide: Guide, num_particles: int, max_rows: int) -> Iterator[Tensor]:
    """Log weights of draws from the guide, ``(s, B)`` in nats each, S in all, by torch's global generator."""
    q = read_start(joint, guide)
    if q is None:
        args, kwargs = joint.arguments
        model, program = (poutine.condition(p, data=joint.fixed) if joint.fixed else p for p in (joint.model, guide))
        for block in blocks(num_particles, max_rows // joint.num_points):
            with joint.indexed():
                yield draw_weights(model, program, *args, num_particles=block, plate=joint.plate, **kwargs).local[0]
        return
    size = min(num_particles, max(1, min(max_rows, ROWS_AT_ONCE) // joint.num_points))
    inputs = joint.inputs(size)

    def density(rows: Tensor, index: Tensor, *data: Tensor) -> tuple[Tensor]:
        prior, likelihood = joint.terms(rows, index, *data)
        return (prior + likelihood,)

    program = None
    for block in blocks(num_particles, size):
        z, log_q = q.sample(size)
        tensors = (z.flatten(0, 1), *inputs)
        if program is None:
            program = captured_or_plain(density, tensors, [t.flip(0) for t in tensors], math.ceil(num_particles / size))
        yield (program(*tensors)[0].reshape(size, -1) - log_q)[:block]


def blocks(count: int, size: int) -> Iterator[int]:
    """``count`` cut into blocks of ``size`` and a rest."""
    size = max(1, size)
    for start in range(0, count, size):
        yield min(size, count - start)
