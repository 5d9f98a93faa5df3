"""Factors of their own for new data points, fitted with everything else held fixed."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pyro
import torch
from torch import Tensor, nn

from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.guides.factorized import Factorized
from amortized_bayes.inference.options import FitOptions, cosine
from amortized_bayes.inference.streams import batch_length, cuda_devices
from amortized_bayes.inference.svi import Training
from amortized_bayes.keeping import kept
from amortized_bayes.per_point import mean_over_points
from amortized_bayes.points import PointRows
from amortized_bayes.sparse_rows import SparseRows
from amortized_bayes.types import LatentSite

__all__ = ["Fresh", "fresh_factors"]


RATE = 0.1
"""First step of the rows, enough to cross the prior within the visits, whatever rate training uses."""
TOLERANCE = 0.1
"""Nats per point that doubling the visits may still gain when factors count as settled.

On MNIST (a Bayesian decoder, D = 16) 200, 400 and 800 visits gained 0.5, 0.13 and 0.08 over half as many: what is then
missing is about the last gain.
"""
DRAWS = 8
"""Draws of an evaluation, the same for all, so that most of their noise drops out of a gain."""
ROWS = 2_000
"""Points evaluated at once."""


@dataclass(frozen=True)
class Fresh:
    """A frozen model, and a guide with frozen q(theta) and a fitted row for each point.

    Args:
        model: the model, frozen.
        guide: with a row for each point.
        visits: visits of each point.
        gain: what the last doubling of the visits gained, nats per point; nan where they were never doubled.
        gain_error: its standard error over points.
    """

    model: nn.Module
    guide: Factorized
    visits: int
    gain: float
    gain_error: float

    @property
    def settled(self) -> bool:
        """Whether doubling the visits gained nothing that counts: 0.1 nats at most, or no more than its error."""
        return self.gain <= max(TOLERANCE, self.gain_error)

    @property
    def note(self) -> str:
        """Empty, or that more visits would have helped."""
        if self.settled:
            return ""
        if math.isnan(self.gain):
            return f"fresh factors not settled: {self.visits} visits, never doubled"
        return f"fresh factors not settled: {self.visits} visits gain {self.gain:.2f} nats over half as many"


def fresh_factors(
    model: nn.Module,
    shared: nn.Module | None,
    sites: Sequence[LatentSite],
    data: Tensor,
    options: FitOptions,
    *,
    visits: tuple[int, int] = (50, 800),
    seed: int = 0,
    plate: str = "data",
) -> Fresh:
    """Fit a factor for each point of ``data`` with the model and q(theta) frozen, until more visits gain nothing.

    This is what factorized VI has to say about points that it was not trained on; latents of training points say
    nothing about them. After the first number of ``visits`` the points get as many again, and so on, until that gains
    0.1 nats per point at most or no more than its error, or until the next doubling would exceed the second. In each
    part steps fall as a cosine, from 1/√2 of where they fell from before. Model and ``shared`` are copied, and stay as
    they are.

    Args:
        model: Pyro program called as ``model(x, index)``.
        shared: guide of the shared sites.
        sites: local latent sites.
        data: (B, ...), on the device.
        options: how to fit, but for the rate of the rows and annealing, of which there is none.
        visits: visits of each point: before it is asked for the first time what as many again gain, and in all.
        seed: random seed for batches and draws.
        plate: name of the plate over data points.

    Raises:
        Divergence: the loss is not finite.
        ValueError: fewer than one visit.
    """
    if visits[0] < 1:
        raise ValueError(f"expected visits of 1 or more, got {visits[0]}")
    with _frozen_store():
        return _fit_rows(model, shared, sites, data, options, visits, seed, plate)


def _fit_rows(
    model: nn.Module,
    shared: nn.Module | None,
    sites: Sequence[LatentSite],
    data: Tensor,
    options: FitOptions,
    visits: tuple[int, int],
    seed: int,
    plate: str,
) -> Fresh:
    frozen_model, frozen_shared = copy.deepcopy(model), copy.deepcopy(shared)
    for module in (frozen_model, frozen_shared):
        if module is not None:
            module.requires_grad_(False)
    guide = Factorized(sites, len(data), shared=frozen_shared, plate=plate).to(data.device)
    for parameter in guide.parameters():
        parameter.requires_grad_(parameter is guide.table.weight)
    height = 1.0

    def schedule(done: float) -> float:
        return height * cosine(done)

    options = replace(
        options,
        batch_size=batch_length(len(data), options.batch_size),
        row_learning_rate=RATE,
        schedule=schedule,
        kl_weight=None,
        entropy_weight=None,
        shared_kl_weight=None,
    )
    training = Training(frozen_model, guide, data, options, seed, plate=plate)
    per_epoch = training.batches.per_epoch
    training.prepare(visits[1] * per_epoch)
    done, before, gain = 0, None, (math.nan, math.nan)
    with kept("fresh factors", lambda: [training.state(), done, height, before, gain]) as loop:
        if loop.found is not None:
            state, done, height, before, gain = loop.found
            training.load_state(state)
        while True:
            fresh = Fresh(frozen_model, guide, done, *gain)
            if done and (fresh.settled or 2 * done > visits[1]):
                return fresh
            more = done or visits[0]
            begin, stop = done * per_epoch, (done + more) * per_epoch
            for _ in training.run(stop - training.steps, begin=begin, due=lambda: loop.due):
                loop.offer()
            done, height = done + more, height / math.sqrt(2)
            values = _local_bound(training)
            gain = (math.nan, math.nan) if before is None else mean_over_points(values - before)
            before = values


@contextmanager
def _frozen_store() -> Iterator[None]:
    """Hold what model and guide keep in Pyro's param store fixed: it is not copied with them."""
    trained = [p for p in pyro.get_param_store()._params.values() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def _local_bound(training: Training) -> Tensor:
    """What each point is fitted by without the part of theta, ``(B,)`` in nats, from draws that are always the same."""
    found = []
    with torch.random.fork_rng(devices=cuda_devices(training.data)):
        torch.manual_seed(training.seed)
        for index in torch.arange(len(training.data), device=training.data.device).split(ROWS):
            x = training.data[index].to(training.dtype)
            draws = [_draw(training, x, index) for _ in range(DRAWS)]
            found.append(torch.stack(draws).mean(0))
    return torch.cat(found)


def _draw(training: Training, x: Tensor | PointRows | SparseRows, index: Tensor) -> Tensor:
    options = training.options
    if training.importance is not None:
        with torch.enable_grad():  # its draws are cut off from what made them, which nothing else asks for
            return training.importance.bound((x, index), index).local.detach()
    return expected_log_weights(
        training.model,
        training.guide,
        x,
        index,
        plate=training.plate,
        num_data=len(training.data),
        analytic_kl=options.expected_kl,
        local_reparametrization=options.local_reparametrization,
    ).local[0, 0]
