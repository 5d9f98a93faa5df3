"""Factors of their own for new data points, fitted with everything else held fixed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from amortized_bayes.guides.factorized import Factorized
from amortized_bayes.inference.options import FitOptions, cosine
from amortized_bayes.inference.svi import Training
from amortized_bayes.types import LatentSite

__all__ = ["Fresh", "fresh_factors"]


RATE = 0.1
"""First step of the rows, enough to cross the prior within the visits; training may well use a smaller one."""


class Fresh(NamedTuple):
    """A frozen model, and a guide with frozen q(theta) and a fitted row for each point."""

    model: nn.Module
    guide: Factorized


def fresh_factors(
    model: nn.Module,
    shared: nn.Module | None,
    sites: Sequence[LatentSite],
    data: Tensor,
    options: FitOptions,
    *,
    visits: int = 100,
    seed: int = 0,
    plate: str = "data",
) -> Fresh:
    """Fit a factor for each point of ``data`` with the model and q(theta) frozen.

    This is what factorized VI has to say about points that it was not trained on; latents of training points say
    nothing about them. Steps fall as a cosine; model and ``shared`` are copied, and stay as they are.

    Args:
        model: Pyro program called as ``model(x, index)``.
        shared: guide of the shared sites.
        sites: local latent sites.
        data: (B, ...), on the device.
        options: how to fit, but for the rate of the rows.
        visits: times that each point is visited.
        seed: of batches and draws.
        plate: name of the plate over data points.

    Raises:
        Divergence: the loss is not finite.
    """
    frozen_model, frozen_shared = copy.deepcopy(model), copy.deepcopy(shared)
    for module in (frozen_model, frozen_shared):
        if module is not None:
            module.requires_grad_(False)
    guide = Factorized(sites, len(data), shared=frozen_shared, plate=plate).to(data.device)
    for parameter in guide.parameters():
        parameter.requires_grad_(parameter is guide.table.weight)
    options = replace(options, batch_size=min(options.batch_size, len(data)), row_learning_rate=RATE, schedule=cosine)
    training = Training(frozen_model, guide, data, options, seed, plate=plate)
    for _ in training.run(visits * training.batches.per_epoch):
        pass
    return Fresh(frozen_model, guide)
