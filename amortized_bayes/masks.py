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

__all__ = ["adopt_mask", "adopt_scale", "is_masked", "is_one"]


def adopt_mask(site: Any, twin: Any) -> None:
    """Give a guide's site ``twin`` the masks of the model's ``site``, where it has none of its own.

    Raises:
        ValueError: the guide masks what the model does not, or cannot be masked entry by entry as the model is.
    """
    (depth, mask), (_, own) = _inner_mask(site["fn"]), _inner_mask(twin["fn"])
    if twin["mask"] is None:
        twin["mask"] = site["mask"]
    elif twin["mask"] is not site["mask"] and _masks_more(twin["mask"], site["mask"], mask, depth):
        raise ValueError(f"the guide masks {site['name']!r} where the model does not: draws there have no weight")
    if mask is None or own is not None:
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


def _masks_more(own: Any, outer: Any, inner: Any, depth: int) -> bool:
    """Whether a guide's mask leaves out what neither of the model's does; not looked at while a step is captured."""
    if get_proxy_mode() is not None:  # it was before, when the step was run
        return False
    kept = torch.as_tensor(True)
    for mask, events in ((outer, 0), (inner, depth)):
        if mask is not None:
            whole = torch.as_tensor(mask)
            kept = kept & (whole.flatten(-events).any(-1) if events and whole.dim() >= events else whole)
    return bool((kept & ~torch.as_tensor(own, device=kept.device)).any())
