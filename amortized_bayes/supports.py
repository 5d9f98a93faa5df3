"""The support of a latent site, in the form that torch maps to all reals."""

from __future__ import annotations

import copy
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint
from torch.fx.experimental.proxy_tensor import get_proxy_mode

__all__ = ["same_for_all", "support_of"]

CIRCULAR = (dist.VonMises, dist.VonMises3D, dist.SineBivariateVonMises)
"""Distributions on circles and spheres, whose supports are all reals in name."""


def support_of(site: Any) -> Constraint:
    """Support of a site's distribution; that of a mixture is its components'.

    Raises:
        ValueError: components with supports of their own, or a support that has no bijection from all reals.
    """
    support = _of_components(site["name"], site["fn"].support)
    if isinstance(_kind(site["fn"]), CIRCULAR):
        raise ValueError(
            f"expected continuous latents on an interval or all reals, got {site['name']!r} of "
            f"{type(_kind(site['fn'])).__name__}: its density repeats itself along the reals and has no integral there"
        )
    try:
        biject_to(support)
    except NotImplementedError:
        raise ValueError(
            f"expected continuous latents on a support that maps to all reals, got {site['name']!r} of "
            f"{type(site['fn']).__name__} on {support}: draw it from a distribution on such a support, and transform it"
        ) from None
    return support


def same_for_all(name: str, support: Any, dim: int, events: int = 0) -> Constraint:
    """A support whose bounds are the same for each point, with one of them; the plate is at ``dim`` of the batch.

    Raises:
        ValueError: points with bounds of their own.
    """
    if isinstance(support, constraints.independent):
        levels = support.reinterpreted_batch_ndims
        return constraints.independent(same_for_all(name, support.base_constraint, dim, events + levels), levels)
    whole = support
    for key, bound in vars(support).items():
        if not isinstance(bound, Tensor) or bound.dim() < events - dim:
            continue
        one = bound.narrow(dim - events, 0, 1)
        if not torch.equal(bound, one.expand_as(bound)):
            raise ValueError(
                f"expected the support of latent {name!r} to be the same for all points, got a {key} of each point's "
                "own: draw it on one support, such as (0, 1), and move it from there"
            )
        whole = copy.copy(whole) if whole is support else whole
        setattr(whole, key, one.reshape(()) if one.numel() == 1 else one)
    return whole


def _kind(fn: Any) -> Any:
    """A distribution without what wraps it; of a mixture a component's."""
    while True:
        inner = getattr(fn, "base_dist", None) if isinstance(fn, dist.Independent | dist.MaskedDistribution) else None
        inner = fn.component_distribution if isinstance(fn, dist.MixtureSameFamily) else inner
        if inner is None:
            return fn
        fn = inner


def _of_components(name: str, support: Any) -> Constraint:
    if isinstance(support, constraints.independent):
        inner = _of_components(name, support.base_constraint)
        same = inner is support.base_constraint
        return support if same else constraints.independent(inner, support.reinterpreted_batch_ndims)
    if not isinstance(support, MixtureSameFamilyConstraint):
        return support
    return _of_first(name, support.base_constraint, 0)


def _of_first(name: str, support: Any, events: int) -> Constraint:
    """Support of the first component, where all share it; they lie in the last dimension left of the event's."""
    if isinstance(support, constraints.independent):
        levels = support.reinterpreted_batch_ndims
        return constraints.independent(_of_first(name, support.base_constraint, events + levels), levels)
    first = support
    for key, bound in vars(support).items():
        if not isinstance(bound, Tensor) or bound.dim() <= events:
            continue
        of_first = bound.select(-1 - events, 0)
        if get_proxy_mode() is None and not torch.equal(bound, of_first.unsqueeze(-1 - events).expand_as(bound)):
            raise ValueError(
                f"expected the components of latent {name!r} to share one support, got {key}s that differ: log p(z) is "
                "then zero in places that gradients do not see"
            )
        first = copy.copy(first) if first is support else first
        setattr(first, key, of_first)
    return first
