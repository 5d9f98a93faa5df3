r"""Factorized VI: every data point has parameters of its own, :math:`f(x_n, n) = \nu_n`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from amortized_bayes.guides.local import LocalGuide, checked_start, initial_parameters
from amortized_bayes.limits import Natural, limited
from amortized_bayes.memory import TRAINED, check_memory
from amortized_bayes.networks import RowTable
from amortized_bayes.types import LatentSite

__all__ = ["Factorized"]


class Factorized(LocalGuide):
    """Gaussian of each point from its own row of a table ``(N, 2 D)``.

    Args:
        sites: local latent sites of the model.
        num_data: N, the number of rows.
        start: rows at the start, ``(N, 2 D)``: for example the answers of an encoder. By default all are equal.
        shared: guide of the shared sites.
        plate: name of the plate over data points.

    Raises:
        TypeError: an option that does not exist, or of another type.
        ValueError: ``start`` of another shape or not finite, or a table that does not fit into memory.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> ab.Factorized(sites, num_data=4).locate(x, torch.tensor([3, 1])).shape
        torch.Size([2, 4])
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
        shape = (num_data, 2 * self.latent_dim)
        check_memory(TRAINED * 4 * shape[0] * shape[1], f"a table of {shape[0]:,} rows of {shape[1]:,} parameters")
        rows = initial_parameters(self.latent_dim).expand(shape) if start is None else start
        self.table = RowTable(checked_start(rows, shape))

    looks = False

    def locate(self, x: Tensor, index: Tensor) -> Tensor:
        """Look up the rows of the points; the data do not matter."""
        return self.table(index)
