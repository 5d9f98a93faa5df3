"""Where chains start: at a product for each point, the guide's, one given, or one searched for these very points."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from amortized_bayes.joint.bits import Bernoullis
from amortized_bayes.joint.density import LogJoint
from amortized_bayes.joint.gaussian import Product, global_seed, guide_start, same_at_all_points
from amortized_bayes.types import Guide

__all__ = ["FreshStart", "Start", "check_start", "follows_data", "found_start"]


class FreshStart(NamedTuple):
    """A product for each of whatever points there are: for guides whose parameters belong to points of their own."""

    search: Callable[[LogJoint], Product]


Start = Guide | Product | FreshStart | None
"""Where chains start: a guide's q, Gaussians ``(B, D)`` on all reals or Bernoullis, a search, or neither."""


def found_start(joint: LogJoint, start: Start) -> Guide | Product | None:
    """The start with its search done, for the points of ``joint``.

    Raises:
        ValueError: products of other points or dimensions, or of other latents.
    """
    found = start.search(joint) if isinstance(start, FreshStart) else start
    if isinstance(found, Product):
        check_start(joint, found)
    return found


def check_start(joint: LogJoint, start: Product) -> None:
    """Refuse products of other points or dimensions or of other latents, and Gaussians without a scale.

    Raises:
        ValueError: they are such.
    """
    shape = (joint.num_points, joint.dim)
    if isinstance(start, Bernoullis) != joint.is_bits:
        wanted, got = ("bits", "Gaussians") if joint.is_bits else ("continuous latents", "Bernoullis")
        raise ValueError(f"expected a start for {wanted}, got {got}")
    if isinstance(start, Bernoullis):
        if start.logits.shape != shape or start.logits.isnan().any():
            raise ValueError(f"expected log odds of shape {shape}, none of them nan, got {tuple(start.logits.shape)}")
        return
    if start.loc.shape != shape or start.scale.shape != shape or not (start.scale > 0).all():
        raise ValueError(
            f"expected start with loc and positive scale of shape {shape}, got {tuple(start.loc.shape)} and "
            f"{tuple(start.scale.shape)}"
        )


def follows_data(real: LogJoint, other: LogJoint, guide: Guide, num_fit: int, seed: int) -> bool:
    """Whether a guide's q answers to the data: with others in the place of the real ones it changes, or is one for all.

    A q from rows of a table, a row per point, is the same whatever the data: it is wrong for other points.

    Args:
        real: points that the guide was fitted to.
        other: as many points, with the same places in the plate.
        guide: Pyro program.
        num_fit: draws to fit a Gaussian to, where q is no factorized Gaussian.
        seed: random seed for those draws.
    """
    found = []
    for joint in (real, other):
        with global_seed(seed, "follows"):
            found.append(torch.cat(guide_start(joint, guide, num_fit), -1))
    if not torch.equal(*found) or bool((found[0] == found[0][:1]).all()):
        return True
    with global_seed(seed, "follows"):
        return same_at_all_points(real, guide)
