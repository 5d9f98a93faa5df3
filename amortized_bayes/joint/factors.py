"""What family a guide's q of a point belongs to: a product over the local sites, each of a named kind, or unnamed.

A factor is Gaussian on the unconstrained space, of full covariance or factorized, or a distribution on the site's own
support that torch draws with gradients and whose parameters may be anything within elementwise constraints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    biject_to,
    constraints,
)

from amortized_bayes.joint.density import LocalSite, plate_to_front
from amortized_bayes.traces import PairedTraces

__all__ = ["NATURAL", "Factor", "read_factors"]

NATURAL: tuple[type[Distribution], ...] = (
    dist.AsymmetricLaplace,
    dist.Beta,
    dist.Cauchy,
    dist.Chi2,
    dist.Dirichlet,
    dist.Exponential,
    dist.FisherSnedecor,
    dist.Gamma,
    dist.Gumbel,
    dist.HalfCauchy,
    dist.HalfNormal,
    dist.InverseGamma,
    dist.Kumaraswamy,
    dist.Laplace,
    dist.Logistic,
    dist.SkewLogistic,
    dist.SoftLaplace,
    dist.StudentT,
    dist.Weibull,
)
"""Distributions that are searched by their own parameters, whatever the support of the site."""


class Factor(NamedTuple):
    """q of one local site: for each point a product of E distributions of one kind.

    Args:
        site: the site.
        kind: ``Normal`` or ``MultivariateNormal`` on the unconstrained space, else one of :data:`NATURAL` on the
            site's support.
        parameters: by name, ``(B, E, ...)``; ``loc`` ``(B, E, k)`` and ``scale_tril`` ``(B, E, k, k)`` of a Gaussian.
        contains: whether the kind is richer than the guide's, which is of low rank.
    """

    site: LocalSite
    kind: type[Distribution]
    parameters: dict[str, Tensor]
    contains: bool = False

    @property
    def gaussian(self) -> bool:
        """Whether it is Gaussian on the unconstrained space."""
        return self.kind in (Normal, MultivariateNormal)

    def equals(self, other: Factor) -> bool:
        """Whether another reading of the same site found the same distribution."""
        if self.kind is not other.kind:
            return False
        return all(torch.equal(value, other.parameters[name]) for name, value in self.parameters.items())

    @staticmethod
    def join(parts: Sequence[Factor], dtype: torch.dtype) -> Factor:
        """One factor of the points of several, which are of one kind."""
        names = parts[0].parameters
        joined = {name: torch.cat([p.parameters[name] for p in parts]).to(dtype) for name in names}
        return parts[0]._replace(parameters=joined)


def read_factors(sites: tuple[LocalSite, ...], traces: PairedTraces) -> list[Factor] | None:
    """The factors of a guide's q, in the order of ``sites``; ``None`` where one has no name."""
    auxiliary = {s["name"]: s for s in traces.local_sites(traces.guide, observed=False)}
    if any(True for _ in traces.local_sites(traces.guide, observed=True)):
        return None  # its log q has terms beside those of the sites
    found = []
    for site in sites:
        node = auxiliary.pop(site.name)
        if isinstance(_unwrapped(node["fn"]), dist.Delta):
            source = next((s for s in auxiliary.values() if _is_moved(s, node, site)), None)
            if source is None:
                return None
            factor = _read_gaussian(site, auxiliary.pop(source["name"]), constraints.real, traces.plate)
        else:
            factor = _read_gaussian(site, node, site.support, traces.plate) or _read_natural(site, node, traces.plate)
        if factor is None:
            return None
        found.append(factor)
    return None if auxiliary else found


def _is_moved(source: Any, node: Any, site: LocalSite) -> bool:
    """Whether a point mass is the value of an auxiliary site, moved by the support's bijection, as in autoguides."""
    bijection, free = biject_to(site.support), source["value"]
    value = bijection(free)
    if value.shape != node["value"].shape or not torch.equal(value, node["value"]):
        return False
    volume, own = bijection.log_abs_det_jacobian(free, value), -_unwrapped(node["fn"]).log_density
    extra = volume.dim() - len(node["fn"].batch_shape)
    volume = volume.flatten(-extra).sum(-1) if extra > 0 else volume
    return torch.allclose(volume, torch.as_tensor(own).to(volume).expand(volume.shape), rtol=1e-4, atol=1e-5)


def _read_gaussian(site: LocalSite, node: Any, support: Any, plate: str) -> Factor | None:
    """The Gaussian on the unconstrained space that a site's distribution is, moved by the support's bijection."""
    fn = _free_gaussian(node["fn"], support)
    free = node["value"] if support is constraints.real else biject_to(support).inv(node["value"])
    if fn is None or plate_to_front(node, plate, free).shape[1:].numel() != site.free_shape.numel():
        return None
    loc = plate_to_front(node, plate, fn.loc.expand(free.shape))
    if isinstance(fn, Normal):
        scale = plate_to_front(node, plate, fn.scale.expand(free.shape))
        parameters = {"loc": loc.reshape(len(loc), -1, 1), "scale_tril": scale.reshape(len(loc), -1, 1, 1)}
        return Factor(site, Normal, parameters)
    size = loc.shape[-1]
    tril = plate_to_front(node, plate, fn.scale_tril.expand(*free.shape, size))
    parameters = {"loc": loc.reshape(len(loc), -1, size), "scale_tril": tril.reshape(len(loc), -1, size, size)}
    # Any covariance is one of rank size - 1 and its least eigenvalue on the diagonal.
    low_rank = isinstance(fn, LowRankMultivariateNormal) and fn.cov_factor.shape[-1] < size - 1
    return Factor(site, MultivariateNormal, parameters, contains=low_rank)


def _free_gaussian(fn: Any, support: Any) -> Any:
    fn = _unwrapped(fn)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(fn, TransformedDistribution):
        base, bijection = _unwrapped(fn.base_dist), biject_to(support)
        free = base.sample()
        moved: Any = free
        for transform in fn.transforms:  # which may be written otherwise and be the same
            moved = transform(moved)
        if moved.shape != (same := bijection(free)).shape or not torch.allclose(moved, same):
            return None
        fn = base
    elif support is not constraints.real:
        return None
    return fn if isinstance(fn, Normal | MultivariateNormal | LowRankMultivariateNormal) else None


def _read_natural(site: LocalSite, node: Any, plate: str) -> Factor | None:
    """A site's distribution by the parameters of each point, where it is one of :data:`NATURAL`."""
    fn = _unwrapped(node["fn"])
    if type(fn) not in NATURAL or _has_own_bounds(site.support):
        return None
    parameters = {}
    for name, constraint in fn.arg_constraints.items():
        event = constraint.event_dim
        value = getattr(fn, name)
        shape = value.shape[value.dim() - event :]
        front = plate_to_front(node, plate, value.expand(fn.batch_shape + shape))
        parameters[name] = front.reshape(len(front), -1, *shape)
    return Factor(site, type(fn), parameters)


def _has_own_bounds(support: Any) -> bool:
    """Whether the bounds of a support may differ from point to point."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return any(isinstance(bound, Tensor) and bound.numel() > 1 for bound in vars(support).values())


def _unwrapped(fn: Any) -> Any:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn
