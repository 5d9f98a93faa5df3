"""The support of a latent site, in the form that torch maps to all reals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint
from torch.distributions.transforms import IndependentTransform, _InverseTransform
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional

__all__ = ["ends_of", "has_own_bounds", "moves_with_parameters", "same_for_all", "same_in_draws", "support_of"]

CIRCULAR = (dist.VonMises, dist.VonMises3D, dist.SineBivariateVonMises)
"""Distributions on circles and spheres, whose supports are all reals in name."""

Ends = tuple[Any, Any]

WITH_BOUNDS = (
    constraints.interval,
    constraints.half_open_interval,
    constraints.greater_than,
    constraints.greater_than_eq,
    constraints.less_than,
)

INCREASING: dict[type, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    transforms.ExpTransform: (torch.exp, torch.log),
    transforms.SigmoidTransform: (torch.sigmoid, torch.logit),
    transforms.TanhTransform: (torch.tanh, torch.atanh),
    transforms.SoftplusTransform: (functional.softplus, lambda y: y + (-torch.expm1(-y)).log()),
    transforms.ELUTransform: (functional.elu, lambda y: torch.where(y > 0, y, y.clamp(max=0).log1p())),
}
"""Transforms of single numbers as functions that reach their limits, which torch's own clip, and their inverses."""


def support_of(site: Any) -> Constraint:
    """Support of a site's distribution: that of a mixture is its components', that of a transformed one the image.

    Raises:
        ValueError: components with supports of their own, transforms whose image is not known, or a support that has no
            bijection from all reals.
    """
    support = _of_components(site["name"], _told(site["name"], site["fn"]))
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


def has_own_bounds(support: Any) -> bool:
    """Whether a support has bounds that a model may have computed."""
    return any(isinstance(bound, Tensor) for bound in vars(_inner(support)).values())


def moves_with_parameters(support: Any) -> bool:
    """Whether a support of a run with gradients has bounds that are fitted."""
    return any(isinstance(bound, Tensor) and bound.requires_grad for bound in vars(_inner(support)).values())


def same_in_draws(name: str, support: Any, other: Any) -> None:
    """Refuse a support that another draw of the latents outside the plate moves to an ``other``.

    Raises:
        ValueError: bounds that differ.
    """
    others = vars(_inner(other))
    for key, bound in vars(_inner(support)).items():
        if not torch.equal(torch.as_tensor(bound), torch.as_tensor(others.get(key, bound))):
            raise ValueError(
                f"expected the support of latent {name!r} to be the same in every draw, got one whose {key} moves with "
                "the latents it depends on: draw it on one support, such as (0, 1), and move it from there"
            )


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


def _told(name: str, fn: Any) -> Any:
    """What a distribution says of its support, where torch takes transforms to give all that they can give at all."""
    if isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution):
        return _told(name, fn.base_dist)
    if isinstance(fn, dist.Independent):
        return _independent(_told(name, fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MixtureSameFamily):
        return MixtureSameFamilyConstraint(_told(name, fn.component_distribution))
    if getattr(type(fn), "support", None) is not dist.TransformedDistribution.support:  # LogNormal says it itself
        return fn.support
    support = _told(name, fn.base_dist)
    for transform in fn.transforms:
        support = _image(name, support, transform)
    return _independent(support, len(fn.event_shape) - support.event_dim)


def _independent(support: Any, levels: int) -> Any:
    return constraints.independent(support, levels) if levels > 0 else support


def _image(name: str, support: Any, transform: Any) -> Any:
    """Support of what a transform makes of draws on a support."""
    if isinstance(transform, transforms.ComposeTransform):
        for part in transform.parts:
            support = _image(name, support, part)
        return support
    inverse = isinstance(transform, _InverseTransform)
    forward: Any = transform.inv if inverse else transform
    if isinstance(forward, IndependentTransform):
        inner = forward.base_transform
        return _image(name, support, inner.inv if inverse else inner)
    # Pyro says of ELU that it gives positive numbers.
    if not isinstance(forward, transforms.ELUTransform) and _same(support, transform.domain):
        return transform.codomain
    ends = ends_of(support)
    moved = None if ends is None else _moved(ends, forward, inverse)
    if moved is None:
        raise ValueError(
            f"expected latents on a support that is known, got {name!r} of TransformedDistribution, whose "
            f"{type(forward).__name__} has no image that is known of these draws: draw it before that transform, "
            "and transform the draw"
        )
    return _between(*moved)


def ends_of(support: Any) -> Ends | None:
    """Bounds of single numbers, infinite ones as plain numbers; ``None`` of other supports."""
    support = _inner(support)
    if isinstance(support, WITH_BOUNDS):
        return getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)
    return (-math.inf, math.inf) if isinstance(support, type(constraints.real)) else None


def _inner(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _same(support: Any, domain: Any) -> bool:
    """Whether a support is all that a transform can be given."""
    ends, others = ends_of(support), ends_of(domain)
    if ends is None or others is None:
        return ends is others and type(support) is type(domain)
    return all(bool(torch.as_tensor(a == b).all()) for a, b in zip(ends, others, strict=True))


def _moved(ends: Ends, forward: Any, inverse: bool) -> Ends | None:
    """Bounds after a transform of single numbers; ``None`` if it is not known, or turns half-lines in some places."""
    if isinstance(forward, transforms.PowerTransform):
        return _powers(ends, 1 / forward.exponent if inverse else forward.exponent)
    if not isinstance(forward, transforms.AffineTransform):
        both = next((both for kind, both in INCREASING.items() if isinstance(forward, kind)), None)
        moved = () if both is None else tuple(_at(both[inverse], end) for end in ends)
        return None if any(end is None for end in moved) or not moved else moved
    loc, scale = (-forward.loc / forward.scale, 1 / forward.scale) if inverse else (forward.loc, forward.scale)
    rising = torch.as_tensor(scale > 0)
    always, never = bool(rising.all()), not rising.any()
    low, high = ((end if always else -end) if _is_infinite(end) else loc + scale * end for end in ends)
    if always or never:
        return (low, high) if always else (high, low)
    return None if _is_infinite(low) or _is_infinite(high) else (torch.minimum(low, high), torch.maximum(low, high))


def _powers(ends: Ends, exponent: Any) -> Ends | None:
    """Bounds of powers of positive numbers; ``None`` of others, or where some powers rise and some fall."""
    exponent = torch.as_tensor(exponent, dtype=torch.float64)
    rising = exponent > 0
    if bool((torch.as_tensor(ends[0]) < 0).any()) or bool(rising.any()) != bool(rising.all()):
        return None
    found = [_at(lambda value: value.pow(exponent.to(value)), end) for end in ends]
    if any(end is None for end in found):
        return None
    return (found[0], found[1]) if rising.all() else (found[1], found[0])


def _at(function: Callable[[Tensor], Tensor], end: Any) -> Any:
    """An increasing function at a bound, or its limit there; ``None`` where it is infinite in places."""
    found = function(end if isinstance(end, Tensor) else torch.tensor(end, dtype=torch.float64))
    if isinstance(end, Tensor) and found.isfinite().all():
        return found
    return found.flatten()[0].item() if (found == found.flatten()[0]).all() else None


def _is_infinite(end: Any) -> bool:
    return not isinstance(end, Tensor) and math.isinf(end)


def _between(low: Any, high: Any) -> Constraint:
    if _is_infinite(low):
        return constraints.real if _is_infinite(high) else constraints.less_than(high)
    return constraints.greater_than(low) if _is_infinite(high) else constraints.interval(low, high)
