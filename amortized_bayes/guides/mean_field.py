"""A factorized Gaussian over the latent sites that all data points share, such as decoder weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyro
import torch
from torch import Tensor, nn

from amortized_bayes.guides.local import gaussian_site, unconstrained_shape
from amortized_bayes.types import LatentSite

__all__ = ["MeanField"]


class MeanField(nn.Module):
    """Guide of the shared sites, one Gaussian factor for each unconstrained coordinate.

    Args:
        sites: latent sites outside the plate.
        locs: start of the locations, on the unconstrained space, by site; sites that are left out start at 0.
        log_scale: start of all log scales. A small q(theta) lets the latents be learnt first.
    """

    def __init__(
        self, sites: Sequence[LatentSite], *, locs: Mapping[str, Tensor] | None = None, log_scale: float = -4.5
    ) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.locs = nn.ParameterDict()
        self.log_scales = nn.ParameterDict()
        for site in self.sites:
            shape = unconstrained_shape(site)
            start = (locs or {}).get(site.name, torch.zeros(shape))
            self.locs[_key(site)] = nn.Parameter(start.detach().clone())
            self.log_scales[_key(site)] = nn.Parameter(torch.full(shape, log_scale))

    def forward(self) -> None:
        """Sample every shared site."""
        for site in self.sites:
            loc, log_scale = self.locs[_key(site)], self.log_scales[_key(site)]
            pyro.sample(site.name, gaussian_site(site, loc.reshape(-1), log_scale.reshape(-1)))


def _key(site: LatentSite) -> str:
    # nn.ParameterDict refuses the dots of names such as decoder.0.weight
    return site.name.replace(".", "__")
