"""What family a guide's q of a point belongs to: a product of named kinds, each of a local site or several, or unnamed.

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
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    biject_to,
    constraints,
)

from amortized_bayes.guides.conditionals import SAID
from amortized_bayes.joint.density import LocalSite, plate_to_front
from amortized_bayes.joint.tied import places_in_z, taken_from
from amortized_bayes.supports import support_of
from amortized_bayes.traces import PairedTraces, unwrapped

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
    """q of one local site, or of several together: for each point a product of E distributions of one kind.

    Args:
        sites: these sites, of which only a Gaussian's may be several.
        kind: ``Normal`` or ``MultivariateNormal`` on the unconstrained space, else one of :data:`NATURAL` on the
            site's support.
        parameters: by name, ``(B, E, ...)``; ``loc`` ``(B, E, k)`` and ``scale_tril`` ``(B, E, k, k)`` of a Gaussian.
        places: where in the vector z of a point the latents of the E distributions lie, one after the other.
        contains: whether the kind is richer than the guide's, which is of low rank.
    """

    sites: tuple[LocalSite, ...]
    kind: type[Distribution]
    parameters: dict[str, Tensor]
    places: Tensor = torch.zeros(0, dtype=torch.int64)
    contains: bool = False

    @property
    def gaussian(self) -> bool:
        """Whether it is Gaussian on the unconstrained space."""
        return self.kind in (Normal, MultivariateNormal)

    def equals(self, other: Factor) -> bool:
        """Whether another reading found the same distribution."""
        if self.kind is not other.kind or not torch.equal(self.places, other.places):
            return False
        return all(torch.equal(value, other.parameters[name]) for name, value in self.parameters.items())

    @staticmethod
    def join(parts: Sequence[Factor], dtype: torch.dtype) -> Factor:
        """One factor of the points of several, which are of one kind."""
        names = parts[0].parameters
        joined = {name: torch.cat([p.parameters[name] for p in parts]).to(dtype) for name in names}
        return parts[0]._replace(parameters=joined)


def read_factors(sites: tuple[LocalSite, ...], traces: PairedTraces) -> list[Factor] | None:
    """The factors of a guide's q; ``None`` where one has no name."""
    nodes = {s["name"]: s for s in traces.local_sites(traces.guide, observed=False)}
    if any(True for _ in traces.local_sites(traces.guide, observed=True)):
        return None  # its log q has terms beside those of the sites
    own = {site.name: nodes.pop(site.name) for site in sites}
    said = {node["infer"].get(SAID) for node in own.values()}
    if said != {None}:  # the guide says of which Gaussian its sites are
        of_all = said.pop() if len(said) == 1 and not nodes else None
        return None if of_all is None else [_said(sites, *of_all())]
    found, masses = [], [site for site in sites if isinstance(unwrapped(own[site.name]["fn"]), dist.Delta)]
    for source in nodes.values():
        places = taken_from(source, masses, traces)
        factor = None if places is None else _read_gaussian(source, constraints.real, len(places), traces.plate)
        if places is None or factor is None:
            return None
        made = [site for site in masses if (places == site.place.start).any()]
        found.append(factor._replace(sites=tuple(made), places=places))
        masses = [site for site in masses if site not in made]
    models: Any = traces.model.nodes  # of these points: bounds that a site keeps are those of all
    for site in sites:
        if site in masses:
            return None
        if not isinstance(unwrapped((node := own[site.name])["fn"]), dist.Delta):
            gaussian = _read_gaussian(node, support_of(models[site.name]), site.free_shape.numel(), traces.plate)
            factor = gaussian or _read_natural(site, node, traces.plate)
            if factor is None:
                return None
            found.append(factor._replace(sites=(site,), places=places_in_z([site])))
    return sorted(found, key=lambda f: int(f.places.min()))


def _said(sites: tuple[LocalSite, ...], names: Sequence[str], loc: Tensor, tril: Tensor, contains: bool) -> Factor:
    """The Gaussian that a guide says its sites are drawn from together."""
    order = [next(site for site in sites if site.name == name) for name in names]
    parameters = {"loc": loc[:, None], "scale_tril": tril[:, None]}
    return Factor(sites, MultivariateNormal, parameters, places_in_z(order), contains)


def _read_gaussian(node: Any, support: Any, size: int, plate: str) -> Factor | None:
    """The Gaussian of so many latents that a distribution is on the unconstrained space, moved by a bijection."""
    fn = _free_gaussian(node["fn"], support)
    free = node["value"] if support is constraints.real else biject_to(support).inv(node["value"])
    if fn is None or plate_to_front(node, plate, free).shape[1:].numel() != size:
        return None
    loc = plate_to_front(node, plate, fn.loc.expand(free.shape))
    if isinstance(fn, Normal):
        scale = plate_to_front(node, plate, fn.scale.expand(free.shape))
        parameters = {"loc": loc.reshape(len(loc), -1, 1), "scale_tril": scale.reshape(len(loc), -1, 1, 1)}
        return Factor((), Normal, parameters)
    size = loc.shape[-1]
    tril = plate_to_front(node, plate, fn.scale_tril.expand(*free.shape, size))
    parameters = {"loc": loc.reshape(len(loc), -1, size), "scale_tril": tril.reshape(len(loc), -1, size, size)}
    # Any covariance is one of rank size - 1 and its least eigenvalue on the diagonal.
    low_rank = isinstance(fn, LowRankMultivariateNormal) and fn.cov_factor.shape[-1] < size - 1
    return Factor((), MultivariateNormal, parameters, contains=low_rank)


def _free_gaussian(fn: Any, support: Any) -> Any:
    fn = unwrapped(fn)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(fn, TransformedDistribution):
        base, bijection = unwrapped(fn.base_dist), biject_to(support)
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
    fn = unwrapped(node["fn"])
    if type(fn) not in NATURAL or _has_own_bounds(site.support):
        return None
    parameters = {}
    for name, constraint in fn.arg_constraints.items():
        event = constraint.event_dim
        value = getattr(fn, name)
        shape = value.shape[value.dim() - event :]
        front = plate_to_front(node, plate, value.expand(fn.batch_shape + shape))
        parameters[name] = front.reshape(len(front), -1, *shape)
    return Factor((), type(fn), parameters)


def _has_own_bounds(support: Any) -> bool:
    """Whether the bounds of a support may differ from point to point."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return any(isinstance(bound, Tensor) and bound.numel() > 1 for bound in vars(support).values())
