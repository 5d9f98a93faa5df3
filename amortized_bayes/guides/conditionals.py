"""A Gaussian of many latents, read by blocks: what it says of some of them given others, as distributions of sites."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import ReshapeTransform

from amortized_bayes.guides.local import gaussian_site, is_real
from amortized_bayes.types import LatentSite

__all__ = ["SAID", "Conditional", "JointGaussian", "free_value"]


SAID = "joint_gaussian"
"""Key of a site's ``infer``, of a function that gives the Gaussian of all sites of a point together.

It returns their names in its order, ``loc`` ``(B, k)``, ``scale_tril`` ``(B, k, k)``, and whether its family is smaller
than all Gaussians.
"""


class Conditional(NamedTuple):
    """A Gaussian of some latents given others: ``loc`` ``(..., k)``, ``scale_tril``, and what values of others add.

    ``gain`` ``(..., k, m)`` and ``center`` ``(..., m)`` are ``None`` where it is independent of all others.
    """

    loc: Tensor
    scale_tril: Tensor
    gain: Tensor | None
    center: Tensor | None
    factorizes: bool

    def at(self, index: Tensor) -> Conditional:
        """Of the points at these places."""
        gain = None if self.gain is None else self.gain[index]
        center = None if self.center is None else self.center[index]
        return Conditional(self.loc[index], self.scale_tril[index], gain, center, self.factorizes)

    def mean(self, values: Tensor | None) -> Tensor:
        """Location, given values of the others, ``(..., k)``."""
        if self.gain is None or self.center is None or values is None:
            return self.loc
        return self.loc + (self.gain @ (values - self.center)[..., None])[..., 0]

    def distribution(self, site: LatentSite, values: Tensor | None, between: int = 0) -> Any:
        """Of a site, given values of the others; ``between`` dimensions lie between the plate and the event."""
        loc, tril = self.mean(values), self.scale_tril
        for _ in range(between):
            loc, tril = loc.unsqueeze(1), tril.unsqueeze(1)
        if self.factorizes or loc.shape[-1] == 1:
            return gaussian_site(site, loc, tril.diagonal(dim1=-2, dim2=-1).log())
        transform = biject_to(site.support)
        shape = transform.inverse_shape(site.event_shape)
        moves = [] if len(shape) == 1 else [ReshapeTransform(loc.shape[-1:], shape)]
        moves += [] if is_real(site.support) else [transform]
        base = dist.MultivariateNormal(loc, scale_tril=tril)
        return dist.TransformedDistribution(base, moves) if moves else base


class JointGaussian(NamedTuple):
    """A Gaussian of all latents, whose covariance ``diag(variance) + rows rows^T`` is read by blocks."""

    loc: Tensor
    variance: Tensor
    rows: Tensor | None

    def covariance(self, a: Tensor, b: Tensor) -> Tensor:
        """Of latents at places ``(..., i)`` and ``(..., j)``: ``(..., i, j)``, in float64."""
        same = (a[..., :, None] == b[..., None, :]) * self.variance[a].double()[..., :, None]
        return same if self.rows is None else same + self.rows[a].double() @ self.rows[b].double().mT

    def given(self, places: Tensor, others: Tensor | None) -> Conditional:
        """Latents at ``places`` ``(..., k)`` given those at ``others`` ``(..., m)``."""
        loc, own = self.loc[places], self.covariance(places, places)
        if self.rows is None:
            return Conditional(loc, own.sqrt().to(loc.dtype), None, None, True)
        if others is None:
            return Conditional(loc, torch.linalg.cholesky(own).to(loc.dtype), None, None, False)
        cross = self.covariance(places, others)
        gain = torch.cholesky_solve(cross.mT, torch.linalg.cholesky(self.covariance(others, others))).mT
        tril = torch.linalg.cholesky(own - gain @ cross.mT)
        return Conditional(loc, tril.to(loc.dtype), gain.to(loc.dtype), self.loc[others], False)


def free_value(site: LatentSite, value: Tensor) -> Tensor:
    """The flat unconstrained value of a site, ``(..., k)``."""
    free = biject_to(site.support).inv(value)
    events = len(biject_to(site.support).inverse_shape(site.event_shape))
    return free.reshape(*free.shape[: free.dim() - events], -1)
