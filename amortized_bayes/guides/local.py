r"""What all guides with a Gaussian for each data point have in common.

A guide is a map from a data point to the location and log scale of a factorized Gaussian on the unconstrained space,

.. math::
    q(z \mid x_n) = T_\# N(\mu_n, \operatorname{diag}\, \sigma_n^2), \qquad (\mu_n, \log \sigma_n) = f(x_n, n),

where T maps to each site's support. Constant, factorized and amortized guides differ in f alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import biject_to, constraints

from amortized_bayes.guides.seen import Seen, first_and_index
from amortized_bayes.limits import Natural, limited
from amortized_bayes.registration import Registered
from amortized_bayes.types import LatentSite

__all__ = [
    "INITIAL_LOG_SCALE",
    "LocalGuide",
    "checked_start",
    "each_in_its_plates",
    "gaussian_site",
    "initial_parameters",
    "is_real",
    "placed",
    "unconstrained_shape",
]

INITIAL_LOG_SCALE = -1.0
"""Every family starts from the same q(z): location 0 and this log scale, for every data point."""


class LocalGuide(Registered, ABC):
    """A factorized Gaussian for the local sites of each data point, beside an optional guide of the shared sites.

    Fitted by :func:`~amortized_bayes.fit`, or by ``pyro.infer.SVI`` directly.

    Args:
        sites: local latent sites of the model; D is their total size on the unconstrained space.
        num_data: N, the size of the plate when a batch is given by ``index``.
        encoder_input: called with the model's arguments, gives what :meth:`locate` sees, ``(B, ...)``; by default that
            is the first argument. A network is fitted too.
        shared: guide of the sites outside the plate, called without arguments.
        plate: name of the plate over data points.

    Raises:
        ValueError: no sites, or N below 1.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> class Standard(ab.LocalGuide):
        ...     def locate(self, x, index):
        ...         return torch.zeros(len(x), 2 * self.latent_dim)
        >>> ab.elbo(model, Standard(sites, num_data=4), x).kl
        tensor([0., 0., 0., 0.])
    """

    @limited
    def __init__(
        self,
        sites: Sequence[LatentSite],
        num_data: Natural,
        *,
        encoder_input: Callable[..., Tensor] | None = None,
        shared: nn.Module | None = None,
        plate: str = "data",
    ) -> None:
        super().__init__()
        if not sites:
            raise ValueError(f"expected a model with a latent site in plate {plate!r}, got none")
        if len({site.dim for site in sites}) > 1:
            raise ValueError(
                f"expected plate {plate!r} at one dim, got {', '.join(f'{s.name!r}: {s.dim}' for s in sites)}"
            )
        self.sites = tuple(sites)
        self.num_data = num_data
        self.encoder_input = encoder_input
        self.shared = shared
        self.plate = plate
        self.seen: Seen | None = None
        self.sizes = [math.prod(unconstrained_shape(site)) for site in self.sites]
        self.latent_dim = sum(self.sizes)
        self.starts = [0, *accumulate(self.sizes)][:-1]

    looks = True
    """Whether :meth:`locate` depends on the data, and not on the indices of the points alone."""

    @abstractmethod
    def locate(self, x: Tensor, index: Tensor) -> Tensor:
        """Locations and log scales, concatenated, ``(B, 2 D)``, of data ``x`` (B, ...) with indices ``index`` (B,)."""

    def forward(self, *args: Any, index: Tensor | None = None, **kwargs: Any) -> None:
        """Sample every latent site, called as the model is: with data ``(B, ...)`` and perhaps their places ``(B,)``.

        Further arguments of the model are ignored, unless ``seen`` reads them.
        """
        x, index = self.read(*args, **kwargs, **({} if index is None else {"index": index}))
        if self.shared is not None:
            self.shared()
        with self.plate_over(x, index) as places:
            assert places is not None
            self.sample(x, places)

    def plate_over(self, x: Tensor, index: Tensor | None) -> pyro.plate:
        """The plate over data points, of the data ``x`` (B, ...) with indices ``index`` (B,) where these are given."""
        dim = self.sites[0].dim
        size = len(x) if index is None else self.num_data
        return pyro.plate(self.plate, size, subsample=index, dim=None if dim == -1 else dim)

    def read(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """What :meth:`locate` gets of the arguments of a call; places of the points only where they are given."""
        if self.seen is not None:
            return self.seen(*args, **kwargs)
        if self.encoder_input is not None:
            index = kwargs.pop("index", None)
            return self.encoder_input(*args, **kwargs), index
        x, index = first_and_index(*args, **kwargs)
        if not isinstance(x, Tensor) and (self.looks or index is None):
            raise TypeError(
                f"expected data as a tensor (B, ...), got {type(x).__name__}; say by encoder_input= what to see"
            )
        return x, index

    def answer(self, data: Any, index: Tensor) -> Tensor:
        """What :meth:`locate` says of data as it is called with, ``(B, 2 D)``."""
        return self.locate(self.read(data, index)[0], index)

    def sample(self, x: Tensor, index: Tensor) -> None:
        """Sample every local site, inside the plate: a Gaussian of what :meth:`locate` gives."""
        self.sample_at(self.locate(x, index))

    def sample_at(self, rows: Tensor) -> None:
        """Sample every local site, inside the plate, from locations and log scales ``(B, 2 D)``."""
        loc, log_scale = rows.chunk(2, -1)
        for site, start, size in zip(each_in_its_plates(self.sites), self.starts, self.sizes, strict=True):
            part = slice(start, start + size)
            pyro.sample(site.name, gaussian_site(site, loc[:, part], log_scale[:, part]))


def each_in_its_plates(sites: Sequence[LatentSite]) -> Iterator[LatentSite]:
    """The sites in their order, each inside the further plates that it lies in."""
    plates = {p: pyro.plate(p.name, p.size, dim=p.dim) for p in dict.fromkeys(p for s in sites for p in s.plates)}
    for site in sites:
        with ExitStack() as stack:
            for plate in site.plates:
                stack.enter_context(plates[plate])
            yield site


def unconstrained_shape(site: LatentSite) -> Size:
    """Shape of a site for one data point on the unconstrained space: its other batch dimensions, and its event."""
    return Size((*site.around, *biject_to(site.support).inverse_shape(site.event_shape)))


def gaussian_site(site: LatentSite, loc: Tensor, log_scale: Tensor) -> dist.TorchDistribution:
    """Distribution of a site from its flat location and log scale ``(..., size)``, on the site's own support."""
    transform = biject_to(site.support)
    base = dist.Normal(placed(site, loc), placed(site, log_scale.exp()))
    if is_real(site.support):
        return base.to_event(len(site.event_shape))
    moved = dist.TransformedDistribution(base, [transform])  # batch shape (B,) and what the support leaves
    return moved.to_event(len(site.event_shape) - transform.codomain.event_dim)


def placed(site: LatentSite, flat: Tensor) -> Tensor:
    """Unconstrained values of a site ``(B, size)`` with the plate over data points at its dimension."""
    values = flat.reshape((*flat.shape[:-1], *unconstrained_shape(site)))
    left = len(site.around) + 1 + site.dim  # batch dimensions to the left of the plate
    return values.movedim(0, left) if left else values


def checked_start(start: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Parameters at the start.

    Raises:
        ValueError: they are of another shape, or not finite.
    """
    if tuple(start.shape) != shape:
        raise ValueError(f"expected start of shape {shape}, got {tuple(start.shape)}")
    if not start.isfinite().all():
        raise ValueError(f"expected start with finite values, got {int((~start.isfinite()).sum())} that are not")
    return start.detach().clone()


def initial_parameters(latent_dim: int) -> Tensor:
    """Location 0 and the common log scale of every latent, ``(2 D,)``."""
    return torch.cat([torch.zeros(latent_dim), torch.full((latent_dim,), INITIAL_LOG_SCALE)])


def is_real(support: constraints.Constraint) -> bool:
    """Whether a site needs no transform."""
    base = support
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    return type(base) is type(constraints.real)  # not `is`: a deep copy of a guide copies its sites' supports
