r"""Amortized VI: one network answers for every data point, :math:`f(x_n, n) = f_\phi(x_n)` (Kingma & Welling, 2014)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from amortized_bayes.guides.local import LocalGuide, initial_parameters
from amortized_bayes.limits import Depth, Natural, limited
from amortized_bayes.networks import MLP, FlatPoints
from amortized_bayes.types import LatentSite

__all__ = ["Amortized"]


class Amortized(LocalGuide):
    """Gaussian of each point from an encoder P -> k -> ... -> k -> 2 D, fully connected unless another is given.

    Args:
        sites: local latent sites of the model.
        num_data: N.
        observed: size P of one data point, flattened.
        width: k, width of each hidden layer.
        depth: number of hidden layers; 0 makes the encoder linear.
        encoder: a network ``(B, ...) -> (B, 2 D)`` to use instead; the sizes are then ignored.
        encoder_input: called with the model's arguments, gives what the encoder sees, ``(B, ...)``; by default that is
            the first argument. A network is fitted too.
        shared: guide of the shared sites.
        plate: name of the plate over data points.

    Raises:
        TypeError: an option that does not exist, or of another type.
        ValueError: a width below 1, a depth below 0 or above 100, or a network that does not fit into memory.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> guide.locate(x, torch.arange(4)).shape
        torch.Size([4, 4])
    """

    @limited
    def __init__(
        self,
        sites: Sequence[LatentSite],
        num_data: Natural,
        observed: Natural,
        width: Natural = 64,
        depth: Depth = 1,
        *,
        encoder: nn.Module | None = None,
        encoder_input: Callable[..., Tensor] | None = None,
        shared: nn.Module | None = None,
        plate: str = "data",
    ) -> None:
        super().__init__(sites, num_data, encoder_input=encoder_input, shared=shared, plate=plate)
        sizes = [observed, *[width] * depth, 2 * self.latent_dim]
        self.encoder = encoder or nn.Sequential(FlatPoints(observed), MLP(sizes, initial_parameters(self.latent_dim)))

    def locate(self, x: Tensor, index: Tensor) -> Tensor:
        """Encode the data; the indices of the points do not matter."""
        return self.encoder(x)
