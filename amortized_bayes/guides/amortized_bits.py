"""Amortized VI of bits: a network gives each point's log odds, and every bit is enumerated."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from amortized_bayes.registration import Registered

__all__ = ["AmortizedBits"]


class AmortizedBits(Registered):
    """A product of Bernoullis for each point, whose ELBO is summed over all values and needs no draws.

    Args:
        sites: names of the model's bits, in the order of the network's outputs.
        encoder: a network ``(B, ...) -> (B, len(sites))``, called with the model's first argument.
        plate: name of the plate over data points.

    Raises:
        ValueError: no site, or one twice; when called, outputs of another shape.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> from amortized_bayes.models import TwoBitMixture
        >>> model = TwoBitMixture(torch.randn(2, 2, 3), 1.0)
        >>> guide = AmortizedBits(("first", "second"), nn.Linear(3, 2))
        >>> float(ab.elbo(model, guide, torch.randn(5, 3)).standard_error.max())
        0.0
    """

    def __init__(self, sites: Sequence[str], encoder: nn.Module, plate: str = "data") -> None:
        super().__init__()
        if not sites or len(set(sites)) < len(sites):
            raise ValueError(f"expected names of bits, each once, got {list(sites)}")
        self.sites, self.encoder, self.plate = tuple(sites), encoder, plate

    def logits(self, x: Tensor) -> Tensor:
        """Log odds of each point's bits, (B, len(sites))."""
        found = self.encoder(x)
        if found.shape != (len(x), len(self.sites)):
            wanted = (len(x), len(self.sites))
            raise ValueError(f"expected an encoder that gives {wanted} for {len(x)} points, got {tuple(found.shape)}")
        return found

    def forward(self, x: Tensor, index: Tensor | None = None) -> None:
        """Sample the bits of data ``x`` of shape (B, ...)."""
        del index
        logits = self.logits(x)
        with pyro.plate(self.plate, len(x)):
            for place, name in enumerate(self.sites):
                pyro.sample(name, dist.Bernoulli(logits=logits[:, place]), infer={"enumerate": "parallel"})
