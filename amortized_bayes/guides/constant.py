r"""Constant VI: all data points share one Gaussian, :math:`f(x_n, n) = \nu`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from amortized_bayes.guides.local import LocalGuide, checked_start, initial_parameters
from amortized_bayes.limits import Natural, limited
from amortized_bayes.types import LatentSite

__all__ = ["Constant"]


class Constant(LocalGuide):
    """One Gaussian for all points.

    Args:
        sites: local latent sites of the model.
        num_data: N.
        start: location and log scale at the start, ``(2 D,)``.
        shared: guide of the shared sites.
        plate: name of the plate over data points.

    Raises:
        TypeError: an option that does not exist, or of another type.
        ValueError: ``start`` of another shape, or not finite.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> ab.Constant(sites, num_data=4).locate(x, torch.arange(4)).shape
        torch.Size([4, 4])
    """

    @limited
    def __init__(
        self,
        sites: Sequence[LatentSite],
        num_data: Natural,
        *,
        start: Tensor | None = None,
        shared: nn.Module | None = None,
        plate: str = "data",
    ) -> None:
        super().__init__(sites, num_data, shared=shared, plate=plate)
        chosen = initial_parameters(self.latent_dim) if start is None else start
        self.parameters_of_all = nn.Parameter(checked_start(chosen, (2 * self.latent_dim,)))

    looks = False

    def locate(self, x: Tensor, index: Tensor) -> Tensor:
        """Repeat the one answer for each point."""
        return self.parameters_of_all.expand(len(index), -1)
