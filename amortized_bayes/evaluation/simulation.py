"""Data drawn from the model, in place of the real data, with the latents they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import Independent, Unit
from pyro.poutine.messenger import Messenger
from torch import Tensor

from amortized_bayes.joint import LogJoint, plate_to_front
from amortized_bayes.program_errors import hint
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.traces import is_deterministic, sample_sites

__all__ = ["simulate"]

Sites = dict[str, Any]
"""Nodes of a trace by name."""


def simulate(joint: LogJoint) -> tuple[LogJoint, Tensor]:
    """Replace the data by data drawn from the model, at the same fixed latents and covariates.

    One observed site is drawn after the other, each with those before it in the arguments, since what a model observes
    may also be what a later site depends on. Torch's global generator draws.

    Returns:
        The joint density of the simulated data, and the z ``(B, D)`` they came from: an exact draw from p(z|x).

    Raises:
        ValueError: an observed site whose value is no argument of the model and no part of one, one that depends on its
            own value, or a factor.
    """
    held: Sites = {}
    filled = [torch.zeros(leaf.shape, dtype=torch.bool) if d else None for leaf, d in _leaves(joint)]
    while True:
        z, trace, data = joint.ancestral(1, _Unobserve(joint.plate, held))
        nodes: Sites = {node["name"]: node for node in sample_sites(trace)}
        drawn = next((name for name, node in nodes.items() if "simulated_for" in node["infer"]), None)
        for name, node in nodes.items():
            if name == drawn:
                break
            if name not in held and not node["is_observed"] and plate_frame(node, joint.plate) is not None:
                held[name] = node
        if drawn is None:
            _check_unmoved(held, nodes, hint(leaf for leaf, is_data in _leaves(joint) if is_data))
            return joint, z[0]
        held[drawn] = nodes[drawn]
        joint = _put(joint, nodes[drawn], data, filled)


def _leaves(joint: LogJoint) -> list[tuple[Any, bool]]:
    return list(zip(joint.leaves, joint.is_data, strict=True))


class _Unobserve(Messenger):
    """Holds the latents that were drawn, and lets the sites observed inside the plate be drawn that were not.

    Those that were have their values from the arguments.
    """

    def __init__(self, plate: str, held: Mapping[str, Any]) -> None:
        super().__init__()
        self.plate, self.held = plate, held

    def _pyro_sample(self, msg: Any) -> None:
        if is_deterministic(msg):
            return
        if msg["is_observed"] and plate_frame(msg, self.plate) is not None:
            if isinstance(msg["fn"], Unit):
                raise ValueError(
                    f"expected a model that data can be drawn from, got factor {msg['name']!r}, which says how likely "
                    "data are and not how to draw them"
                )
            if msg["name"] in self.held:
                return
            msg["fn"] = _as_large(msg["fn"], msg["value"].shape)
            msg["infer"] = {**(msg["infer"] or {}), "simulated_for": msg["value"]}
            msg["is_observed"], msg["value"], msg["done"] = False, None, False
        elif msg["name"] in self.held:
            msg["value"], msg["done"] = self.held[msg["name"]]["value"], True


def _as_large(fn: Any, shape: torch.Size) -> Any:
    """A distribution with the shape of the values that its density is taken of, by broadcasting: one draw for each."""
    base, levels = fn, 0
    while isinstance(base, Independent):
        base, levels = base.base_dist, levels + base.reinterpreted_batch_ndims
    if not levels or fn.event_shape == shape[len(shape) - len(fn.event_shape) :] or len(base.event_shape):
        return fn
    return base.expand(torch.broadcast_shapes(base.batch_shape, shape)).to_event(levels)


def _put(joint: LogJoint, node: Any, data: Sequence[Tensor], filled: list[Tensor | None]) -> LogJoint:
    """The same density with what was drawn for a site in the place of what it observed."""
    leaves, rows, old = list(joint.leaves), iter(data), node["infer"]["simulated_for"]
    for place, (leaf, is_data) in enumerate(_leaves(joint)):
        if not is_data:
            continue
        free = ~filled[place].flatten().to(leaf.device)  # pyright: ignore[reportOptionalMemberAccess]
        if (entries := _entries(joint, node, old, next(rows), free)) is None:
            continue
        new = leaf.clone(memory_format=torch.contiguous_format)
        value = plate_to_front(node, joint.plate, node["value"].expand(old.shape))
        new.view(-1)[entries] = value.reshape(-1).to(new.dtype)
        leaves[place] = new
        filled[place].view(-1)[entries.cpu()] = True  # pyright: ignore[reportOptionalMemberAccess]
        return joint.replace(leaves, joint.index)
    raise ValueError(
        f"expected observed site {node['name']!r} to be an argument of the model or columns of one, so that simulated "
        f"data can be put there; got a value of shape {tuple(old.shape)} that is none: pass what is observed as it is"
    )


def _entries(joint: LogJoint, node: Any, old: Tensor, leaf: Tensor, free: Tensor) -> Tensor | None:
    """Entries of an argument that a site observes, flat, plate first: those it is a view of, all, or like columns."""
    places = torch.arange(leaf.numel(), device=leaf.device).reshape(leaf.shape)
    if old.untyped_storage().data_ptr() == leaf.untyped_storage().data_ptr() and old.dtype == leaf.dtype:
        seen = places.as_strided(old.shape, old.stride(), old.storage_offset())
        seen = plate_to_front(node, joint.plate, seen).reshape(-1)
        return seen if len(seen.unique()) == len(seen) and bool(free[seen].all()) else None
    wanted = plate_to_front(node, joint.plate, old)
    if not wanted.dim() or len(wanted) != len(leaf) or not wanted.numel():
        return None
    columns, wanted, places = leaf.reshape(len(leaf), -1), wanted.reshape(len(leaf), -1), places.reshape(len(leaf), -1)
    free = free.reshape(columns.shape).all(0)
    if columns.shape == wanted.shape and bool(free.all()) and bool(_same(columns, wanted).all()):
        return places.reshape(-1)
    found = []
    for column in wanted.T:
        like = (_same(columns, column[:, None]).all(0) & free).nonzero().flatten()
        if len(like) != 1:  # of several equal ones nobody knows which
            return None
        found.append(like[0])
    found = torch.stack(found)
    return places[:, found].reshape(-1) if len(found.unique()) == len(found) else None


def _same(a: Tensor, b: Tensor) -> Tensor:
    a = a.to(b.dtype)
    return (a == b) | (a.isnan() & b.isnan())


def _check_unmoved(held: Sites, nodes: Sites, about_data: str) -> None:
    """Refuse sites that are others with all data drawn: by later data, by their own, or by rounding."""
    for name, node in held.items():
        value, now = node["value"], nodes[name]
        pairs = (value, now["value"]), (node["fn"].log_prob(value), now["fn"].log_prob(value))
        if not all(torch.allclose(a, b.to(a), rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in pairs):
            raise ValueError(
                f"site {name!r} is another once data are drawn: it depends on data that are drawn after it or on its "
                "own values, or its argument cannot hold what is drawn; expected sites that depend on those before "
                f"them{about_data}"
            )
