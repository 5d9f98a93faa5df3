"""Data drawn from the model, in place of the real data, with the latents they came from."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Independent, Unit
from pyro.poutine.messenger import Messenger
from torch import Tensor

from amortized_bayes.joint import LogJoint, plate_to_front
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.traces import sample_sites

__all__ = ["simulate"]


def simulate(joint: LogJoint) -> tuple[LogJoint, Tensor]:
    """Replace the data by data drawn from the model, at the same fixed latents and covariates.

    Torch's global generator draws.

    Returns:
        The joint density of the simulated data, and the z ``(B, D)`` they came from: an exact draw from p(z|x).

    Raises:
        ValueError: an observed site whose value is no argument of the model, or a factor.
    """
    z, trace = joint.ancestral(1, _Unobserve(joint.plate))
    leaves, taken = list(joint.leaves), set()
    for node in sample_sites(trace):
        if "simulated_for" in node["infer"]:
            place = _place_of(joint, node, taken)
            taken.add(place)
            value = plate_to_front(node, joint.plate, node["value"])
            leaves[place] = value.to(leaves[place].dtype).reshape(leaves[place].shape)
    return joint.replace(leaves, joint.index), z[0]


class _Unobserve(Messenger):
    """Lets the sites observed inside the plate be drawn, as ``poutine.uncondition`` does with all of them."""

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and plate_frame(msg, self.plate) is not None:
            if isinstance(msg["fn"], Unit):
                raise ValueError(f"expected a model that data can be drawn from, got factor {msg['name']!r}")
            msg["fn"] = _as_large(msg["fn"], msg["value"].shape)
            msg["infer"] = {**(msg["infer"] or {}), "simulated_for": msg["value"]}
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def _as_large(fn: Any, shape: torch.Size) -> Any:
    """A distribution with the shape of the values that its density is taken of, by broadcasting: one draw for each."""
    base, levels = fn, 0
    while isinstance(base, Independent):
        base, levels = base.base_dist, levels + base.reinterpreted_batch_ndims
    if not levels or fn.event_shape == shape[len(shape) - len(fn.event_shape) :] or len(base.event_shape):
        return fn
    return base.expand(torch.broadcast_shapes(base.batch_shape, shape)).to_event(levels)


def _place_of(joint: LogJoint, node: Any, taken: set[int]) -> int:
    """Which argument holds the value that an observed site had."""
    old = plate_to_front(node, joint.plate, node["infer"]["simulated_for"])
    for place, (leaf, is_data) in enumerate(zip(joint.leaves, joint.is_data, strict=True)):
        if not is_data or place in taken or leaf.numel() != old.numel():
            continue
        same = leaf.reshape(old.shape).to(old.dtype)
        if bool(((same == old) | (same.isnan() & old.isnan())).all()):
            return place
    raise ValueError(
        f"expected observed site {node['name']!r} to be an argument of the model (up to its shape), so that simulated "
        f"data can be put there; got a value of shape {tuple(old.shape)} that is none"
    )
