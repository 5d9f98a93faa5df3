"""A factorized Gaussian over the latent sites that all data points share, such as decoder weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import biject_to

from amortized_bayes.guides.local import checked_start, gaussian_site, placed, unconstrained_shape
from amortized_bayes.limits import limited
from amortized_bayes.memory import TRAINED, check_memory
from amortized_bayes.refusals import did_you_mean
from amortized_bayes.registration import Registered
from amortized_bayes.types import LatentSite

__all__ = ["MeanField"]


class MeanField(Registered):
    """Guide of the shared sites, one Gaussian factor for each unconstrained coordinate.

    Args:
        sites: latent sites outside the plate.
        locs: start of the locations, on the unconstrained space, by site; sites that are left out start at 0.
        log_scale: start of all log scales. A small q(theta) lets the latents be learnt first.

    Raises:
        TypeError: an option that does not exist, or of another type.
        ValueError: locations of no such site, of another shape or not finite, or too many latents for the memory.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import amortized_bayes as ab
        >>> def model(x):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)
        >>> sites = ab.latent_sites(model, torch.zeros(4))
        >>> guide = ab.Constant(sites.local, num_data=4, shared=ab.MeanField(sites.shared))
        >>> ab.log_weights(model, guide, torch.zeros(4), num_shared=5).shared.shape
        torch.Size([5])
    """

    @limited
    def __init__(
        self, sites: Sequence[LatentSite], *, locs: Mapping[str, Tensor] | None = None, log_scale: float = -4.5
    ) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.locs = nn.ParameterDict()
        self.log_scales = nn.ParameterDict()
        shapes = {site.name: unconstrained_shape(site) for site in self.sites}
        if unknown := [name for name in locs or {} if name not in shapes]:
            raise ValueError(
                f"expected locs of {', '.join(shapes) or 'no site'}, got {unknown[0]!r}"
                f"{did_you_mean(unknown[0], shapes)}"
            )
        count = sum(shape.numel() for shape in shapes.values())
        check_memory(2 * TRAINED * 4 * count, f"a Gaussian over {count:,} shared latents")
        for site in self.sites:
            shape = shapes[site.name]
            start = (locs or {}).get(site.name, torch.zeros(shape))
            if start.numel() != shape.numel():
                raise ValueError(f"expected locs of {site.name!r} of shape {tuple(shape)}, got {tuple(start.shape)}")
            self.locs[_key(site)] = nn.Parameter(checked_start(start, tuple(start.shape)))
            self.log_scales[_key(site)] = nn.Parameter(torch.full(shape, log_scale))

    def forward(self) -> None:
        """Sample every shared site."""
        for site in self.sites:
            loc, log_scale = self.locs[_key(site)], self.log_scales[_key(site)]
            pyro.sample(site.name, gaussian_site(site, loc.reshape(-1), log_scale.reshape(-1)))

    @torch.no_grad()
    def median(self) -> dict[str, Tensor]:
        """The median of each coordinate where the site is real, elsewhere what that becomes on the site's support."""
        found = {}
        for site in self.sites:
            loc = placed(site, self.locs[_key(site)].reshape(-1))
            found[site.name] = biject_to(site.support)(loc)
        return found


def _key(site: LatentSite) -> str:
    # nn.ParameterDict refuses the dots of names such as decoder.0.weight
    return site.name.replace(".", "__")
