r"""Amortized flows: a Gaussian from an encoder, moved by a flow.

.. math::
    z_0 \sim N(\mu(x), \operatorname{diag}\, \sigma(x)^2), \quad z = f(z_0; c(x)), \qquad
    \log q(z \mid x) = \log N(z_0) - \log \left| \det \partial f / \partial z_0 \right|

(Rezende & Mohamed, 2015). Draw and density are made together: planar and Sylvester flows have no inverse, and can
score a draw only while it is known where it came from. Pyro's transforms remember that for the very tensor they made,
and every call of the guide makes transforms of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import ReshapeTransform, biject_to

from amortized_bayes.guides.flow_family import Flow, FlowSettings
from amortized_bayes.guides.local import (
    INITIAL_LOG_SCALE,
    LocalGuide,
    gaussian_site,
    initial_parameters,
    is_real,
    unconstrained_shape,
)
from amortized_bayes.guides.transforms import softclip
from amortized_bayes.networks import MLP, start_at
from amortized_bayes.types import LatentSite

__all__ = ["AUXILIARY", "Encoded", "EncodedGuide", "FlowGuide", "pass_on"]

LATENT_NAME = "_latent"
"""Auxiliary site of the whole unconstrained vector, where that is not a site of the model itself."""
LOG_SCALE_RANGE = 8.0
"""How far, in nats, the base Gaussian's log scale may go from its start: scales from 1e-4 to 1e3."""
AUXILIARY = "auxiliary"
"""Families with auxiliary variables, which are another guide's."""


class Encoded(NamedTuple):
    """What an encoder gives for B points: ``loc`` and ``log_scale``, ``(B, D)``, ``context``, ``(B, C)`` or None.

    Example:
        >>> Encoded(torch.zeros(4, 2), torch.zeros(4, 2), None).loc.shape
        torch.Size([4, 2])
    """

    loc: Tensor
    log_scale: Tensor
    context: Tensor | None


class EncodedGuide(LocalGuide):
    """A base Gaussian, and a context where the flow wants one, for each point from an encoder; what is made of them
    is the subclass's.

    Args:
        sites: local latent sites of the model; D is their total size on the unconstrained space.
        num_data: N.
        observed: size P of one data point, flattened.
        settings: which flow.
        width: k, width of each hidden layer of the encoder.
        depth: number of its hidden layers; 0 makes it linear.
        encoder: a network ``(B, ...) -> (B, 2 D + C)`` to use instead, for locations, log scales and context.
        shared: guide of the shared sites.
        plate: name of the plate over data points.

    Raises:
        ValueError: sizes below 1, or no sites.

    Example:
        >>> from torch.distributions import constraints
        >>> site = LatentSite("z", Size([2]), constraints.real_vector)
        >>> class Centre(EncodedGuide):
        ...     def sample(self, x, encoded):
        ...         pass_on(self.sites, self.sizes, encoded.loc)
        >>> guide = Centre([site], 4, 3, FlowSettings("planar"), 8, 1, None, None, "data")
        >>> guide.encode(torch.zeros(4, 3)).loc.tolist()[0]
        [0.0, 0.0]
    """

    def __init__(
        self,
        sites: Sequence[LatentSite],
        num_data: int,
        observed: int,
        settings: FlowSettings,
        width: int,
        depth: int,
        encoder: nn.Module | None,
        shared: nn.Module | None,
        plate: str,
    ) -> None:
        super().__init__(sites, num_data, shared=shared, plate=plate)
        if width < 1 or depth < 0:
            raise ValueError(f"expected width of 1 or more and depth of 0 or more, got {width} and {depth}")
        self.settings = settings
        self.encoder = encoder or _encoder([observed, *[width] * depth], self.latent_dim, settings.context_dim)

    def encode(self, x: Tensor) -> Encoded:
        """Base Gaussian and context of data ``x`` (B, ...).

        Log scales and contexts are bounded, smoothly and out of the way of training data: a point unlike any of those
        would otherwise get a scale of e^100 or a flow with parameters to match, and one such point ruins a mean.
        """
        out = self.encoder(x)
        sizes = [self.latent_dim, self.latent_dim, self.settings.context_dim]
        if out.shape != (len(x), sum(sizes)):
            raise ValueError(f"expected an encoder that gives {(len(x), sum(sizes))}, got {tuple(out.shape)}")
        loc, log_scale, context = out.split(sizes, -1)
        log_scale = INITIAL_LOG_SCALE + softclip(log_scale - INITIAL_LOG_SCALE, LOG_SCALE_RANGE)
        return Encoded(loc, log_scale, torch.tanh(context) if self.settings.context_dim else None)

    def locate(self, x: Tensor, index: Tensor) -> Tensor:
        """Locations and log scales of the base Gaussian, ``(B, 2 D)``."""
        encoded = self.encode(x)
        return torch.cat([encoded.loc, encoded.log_scale], -1)

    def forward(self, x: Tensor, index: Tensor | None = None, *args: Any, **kwargs: Any) -> None:
        """Sample every latent site; further arguments of the model are ignored."""
        if self.shared is not None:
            self.shared()
        size = len(x) if index is None else self.num_data
        with pyro.plate(self.plate, size, subsample=index):
            self.sample(x, self.encode(x))

    @abstractmethod
    def sample(self, x: Tensor, encoded: Encoded) -> None:
        """Sample every local site, inside the plate."""


class FlowGuide(EncodedGuide):
    """A flow for the local sites of each data point, after the Gaussian of an encoder P -> k -> ... -> k -> 2 D + C.

    At the start it is the Gaussian of every other guide. Several sites share one flow over all their dimensions; a
    site with constraints gets the flow's value through the transform to its support. Both go through an auxiliary site
    that holds the whole vector.

    Args:
        sites: local latent sites of the model.
        num_data: N.
        observed: size P of one data point, flattened.
        settings: which flow; ``family="gaussian"`` is none.
        width: k, width of each hidden layer of the encoder.
        depth: number of its hidden layers; 0 makes it linear.
        encoder: a network ``(B, ...) -> (B, 2 D + C)`` to use instead, C being ``settings.context_dim``; ``observed``,
            ``width`` and ``depth`` are then ignored.
        shared: guide of the shared sites.
        plate: name of the plate over data points.

    Raises:
        ValueError: an auxiliary family, or sizes out of their range.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = FlowGuide(sites, num_data=4, observed=3, settings=FlowSettings("spline-contextual"), width=8)
        >>> ab.log_weights(model, guide, x, num_particles=5).local.shape
        torch.Size([1, 5, 4])
    """

    def __init__(
        self,
        sites: Sequence[LatentSite],
        num_data: int,
        observed: int,
        settings: FlowSettings | None = None,
        width: int = 64,
        depth: int = 1,
        *,
        encoder: nn.Module | None = None,
        shared: nn.Module | None = None,
        plate: str = "data",
    ) -> None:
        settings = settings or FlowSettings()
        if settings.layer == AUXILIARY:
            raise ValueError(
                f"expected a family without auxiliary variables, got {settings.family!r}: see AuxiliaryFlow"
            )
        super().__init__(sites, num_data, observed, settings, width, depth, encoder, shared, plate)
        self.flow = Flow(self.latent_dim, settings)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """q(z|x) on the unconstrained space, batch shape (B,), event shape (D,); score its own last draw only."""
        return self._moved(self.encode(x), Size([self.latent_dim]))

    def sample(self, x: Tensor, encoded: Encoded) -> None:
        """Sample every local site, inside the plate."""
        only = self.sites[0] if len(self.sites) == 1 else None
        if not self.flow.layers:
            for site, size, end in zip(self.sites, self.sizes, accumulate(self.sizes), strict=True):
                part = slice(end - size, end)
                pyro.sample(site.name, gaussian_site(site, encoded.loc[:, part], encoded.log_scale[:, part]))
        elif only and is_real(only.support):
            pyro.sample(only.name, self._moved(encoded, only.event_shape))
        else:
            joint = self._moved(encoded, Size([self.latent_dim]))
            pass_on(self.sites, self.sizes, pyro.sample(LATENT_NAME, joint, infer={"is_auxiliary": True}))

    def _moved(self, encoded: Encoded, shape: Size) -> dist.TorchDistribution:
        base = dist.Normal(encoded.loc, encoded.log_scale.exp()).to_event(1)
        transforms = self.flow(encoded.context)
        if len(shape) != 1:
            transforms.append(ReshapeTransform(Size([self.latent_dim]), shape, cache_size=1))
        return dist.TransformedDistribution(base, transforms) if transforms else base


def pass_on(sites: Sequence[LatentSite], sizes: Sequence[int], flat: Tensor) -> None:
    """Give each site its part of a vector ``(B, D)`` that has been drawn and scored, on the site's own support.

    The sites are point masses whose log density is that of the move to the support alone, so that together with what
    the vector itself counts they have the log density of the values.

    Example:
        >>> from torch.distributions import constraints
        >>> site = LatentSite("z", Size([]), constraints.positive)
        >>> with pyro.poutine.trace() as tracer:
        ...     pass_on([site], [1], torch.zeros(4, 1))
        >>> tracer.trace.nodes["z"]["value"]
        tensor([1., 1., 1., 1.])
    """
    for site, part in zip(sites, flat.split(list(sizes), -1), strict=True):
        transform = biject_to(site.support)
        unconstrained = part.reshape(len(part), *unconstrained_shape(site))
        value = transform(unconstrained)
        moved = transform.log_abs_det_jacobian(unconstrained, value).reshape(len(part), -1).sum(-1)
        pyro.sample(site.name, dist.Delta(value, log_density=-moved, event_dim=len(site.event_shape)))


def _encoder(sizes: list[int], latent_dim: int, context_dim: int) -> nn.Module:
    """Network to locations and log scales, constant at the start, and to a context, which is not."""
    network = MLP([*sizes, 2 * latent_dim + context_dim])
    last = network[-1]
    assert isinstance(last, nn.Linear)
    start_at(last, initial_parameters(latent_dim))
    return nn.Sequential(nn.Flatten(), network)
