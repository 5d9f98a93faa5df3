"""Factorized VI of bits: per-point log odds."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortized_bayes.registration import Registered

__all__ = ["FactorizedBits"]


class FactorizedBits(Registered):
    """a product of Bernoullis per point, on one site that holds a vector.

    Args:
        site: name of the model's bits.
        start: log odds at which to start, (N, b).
        plate: name of the plate over data points.
    """

    def __init__(self, site: str, start: Tensor, plate: str = "data") -> None:
        super().__init__()
        self.site, self.plate = site, plate
        self.table = nn.Parameter(start.detach().clone())

    def logits(self, index: Tensor) -> Tensor:
        """Log odds of the bits of the points ``index``, (B, b)."""
        return self.table.index_select(0, index)

    def forward(self, x: Any, index: Tensor | None = None) -> None:
        """Sample the bits of data ``x`` of B rows, which are those at ``index``, by default the first."""
        logits = self.logits(torch.arange(len(x)) if index is None else index)
        with pyro.plate(self.plate, len(x)):
            pyro.sample(self.site, dist.Bernoulli(logits=logits).to_event(1))
