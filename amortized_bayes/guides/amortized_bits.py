"""Amortized VI of bits: a network gives each point's log odds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from amortized_bayes.registration import Registered

__all__ = ["AmortizedBits"]


class AmortizedBits(Registered):
    """A product of Bernoullis for each point.

    Bits on sites of their own are marked for enumeration: the ELBO is summed over all their values and needs no draws.

    Args:
        sites: names of the model's bits, in the order of the network's outputs; or the name of one site that holds all
            of them, a vector for each point, which is drawn.
        encoder: a network ``(B, ...) -> (B, number of bits)``, called with the model's first argument.
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

    def __init__(self, sites: Sequence[str] | str, encoder: nn.Module, plate: str = "data") -> None:
        super().__init__()
        if not sites or (not isinstance(sites, str) and len(set(sites)) < len(sites)):
            raise ValueError(f"expected names of bits, each once, got {sites if isinstance(sites, str) else [*sites]}")
        self.sites = sites if isinstance(sites, str) else tuple(sites)
        self.encoder, self.plate = encoder, plate

    def logits(self, x: Any) -> Tensor:
        """Log odds of each point's bits, (B, number of bits)."""
        found = self.encoder(x)
        size = "b" if isinstance(self.sites, str) else len(self.sites)
        if found.dim() != 2 or len(found) != len(x) or size not in ("b", found.shape[1]):
            wanted = f"({len(x)}, {size})"
            raise ValueError(f"expected an encoder that gives {wanted} for {len(x)} points, got {tuple(found.shape)}")
        return found

    def forward(self, x: Any, index: Tensor | None = None) -> None:
        """Sample the bits of data ``x`` of B rows."""
        del index
        logits = self.logits(x)
        with pyro.plate(self.plate, len(x)):
            if isinstance(self.sites, str):
                pyro.sample(self.sites, dist.Bernoulli(logits=logits).to_event(1))
                return
            for place, name in enumerate(self.sites):
                pyro.sample(name, dist.Bernoulli(logits=logits[:, place]), infer={"enumerate": "parallel"})
