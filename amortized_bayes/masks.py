r"""Masks and scales that a model sets on its latent sites: the guide's sites get them too.

A masked latent has no density in the model, :math:`m \log p(z)` with m = 0. Its weight is then that of a latent which
is not there only if the guide's density is masked alike, :math:`m (\log p(z) - \log q(z))`; a guide that was not told
of the mask would add its entropy. The same holds for a scale, of a KL weight say. Masks come from ``poutine.mask``,
``pyro.plate`` and ``Distribution.mask``, before or after ``to_event``.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

__all__ = ["adopt_mask", "adopt_scale", "is_masked", "is_one", "scored_value"]


def adopt_mask(site: Any, twin: Any) -> None:
    """Give a guide's site ``twin`` the masks of the model's ``site``, in place of its own.

    Raises:
        ValueError: the guide masks what the model does not, or cannot be masked entry by entry as the model is.
    """
    depth, mask = _inner_mask(site["fn"])
    if _is_masked_otherwise(site, twin):
        if _masks_more(site, twin):
            raise ValueError(f"the guide masks {site['name']!r} where the model does not: draws there have no weight")
        twin["mask"], twin["fn"] = None, _without_mask(twin["fn"])
    if twin["mask"] is None:
        twin["mask"] = site["mask"]
    if mask is None or _inner_mask(twin["fn"])[1] is not None:
        return
    base, levels = twin["fn"], 0
    while depth > levels and isinstance(base, dist.Independent):
        base, levels = base.base_dist, levels + base.reinterpreted_batch_ndims
    if levels < depth:
        raise ValueError(
            f"the model masks entries of {site['name']!r}, over which the guide's {type(twin['fn']).__name__} does not "
            "factorize; expected a factorized one, or .to_event() before .mask()"
        )
    twin["fn"] = base.mask(mask).to_event(levels) if levels else base.mask(mask)


def adopt_scale(of_site: Any, of_twin: Any, twin: Any) -> None:
    """Scale a guide's site as the model's is, where the author of the guide did not: scales without the plate's."""
    if _plainly_one(of_twin) and not _plainly_one(of_site):
        twin["scale"] = twin["scale"] * of_site


def scored_value(site: Any) -> Tensor:
    """The value of a site at which its density is taken: data that are nan and masked are replaced by the mean.

    The density there does not count. Its gradient, nan times 0, would.

    Raises:
        ValueError: there are such data, and the distribution has no finite mean.
    """
    value = site["value"]
    masked = site["mask"] is not None or _inner_mask(site["fn"])[1] is not None
    if not (masked and site["is_observed"] and isinstance(value, Tensor) and value.is_floating_point()):
        return value
    gone = value.isnan() & ~_kept(site)
    filled = torch.where(gone, _mean(site["fn"], value), value)
    if get_proxy_mode() is None and bool((gone & ~filled.isfinite()).any()):  # else it was before, as in _masks_more
        raise ValueError(
            f"expected numbers behind the mask of {site['name']!r}, got nan: its {_family(site['fn'])} has no finite "
            "mean to put there; put any value of its support there, which does not count"
        )
    return filled


def _mean(fn: Any, value: Tensor) -> Tensor:
    """The mean of a distribution, the next whole number of a discrete one; nan where there is none."""
    try:
        mean = fn.mean.detach()
    except (NotImplementedError, AttributeError):
        return value.new_full((), math.nan)
    return mean.round() if fn.support.is_discrete else mean


def _family(fn: Any) -> str:
    """The name of a distribution without what is wrapped around it."""
    while isinstance(fn, dist.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return type(fn).__name__


def is_masked(site: Any) -> bool:
    """Whether some entry of a site is masked."""
    masks = (site["mask"], _inner_mask(site["fn"])[1])
    return any(mask is not None and not torch.as_tensor(mask).all() for mask in masks)


def is_one(scale: Any) -> bool:
    """Whether a scale changes nothing."""
    if isinstance(scale, Tensor):
        return bool(torch.isclose(scale.double(), torch.ones((), dtype=torch.float64, device=scale.device)).all())
    return math.isclose(scale, 1.0, rel_tol=1e-9)


def _plainly_one(scale: Any) -> bool:
    return not isinstance(scale, Tensor) and is_one(scale)


def _inner_mask(fn: Any) -> tuple[int, Any]:
    """The mask inside a distribution, and how many dimensions ``to_event`` took from its batch; or ``None``."""
    depth = 0
    while isinstance(fn, dist.Independent):
        fn, depth = fn.base_dist, depth + fn.reinterpreted_batch_ndims
    return depth, fn._mask if isinstance(fn, dist.MaskedDistribution) else None


def _without_mask(fn: Any) -> Any:
    """A distribution without the mask inside it."""
    if isinstance(fn, dist.Independent):
        return dist.Independent(_without_mask(fn.base_dist), fn.reinterpreted_batch_ndims)
    return fn.base_dist if isinstance(fn, dist.MaskedDistribution) else fn


def _is_masked_otherwise(site: Any, twin: Any) -> bool:
    """Whether a guide's site has a mask of its own that is no copy of the model's."""
    own, outer = _inner_mask(twin["fn"])[1], twin["mask"]
    copied = outer is None or outer is site["mask"]
    return not copied or (own is not None and own is not _inner_mask(site["fn"])[1])


def _masks_more(site: Any, twin: Any) -> bool:
    """Whether a guide leaves out what the model does not; not looked at while a step is captured."""
    if get_proxy_mode() is not None:  # it was before, when the step was run
        return False
    return bool((_kept(site) & ~_kept(twin)).any())


def _kept(site: Any) -> Tensor:
    """Which entries of a site's value are not masked, of the value's shape."""
    fn, value = site["fn"], site["value"]
    depth, mask = _inner_mask(fn)
    kept = torch.ones(value.shape, dtype=torch.bool, device=value.device)
    for part, events in ((site["mask"], len(fn.event_shape)), (mask, len(fn.event_shape) - depth)):
        if part is not None:
            whole = torch.as_tensor(part, device=value.device)
            kept = kept & whole.reshape((*whole.shape, *[1] * events))
    return kept
