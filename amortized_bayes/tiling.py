"""Particles as data repeated along the plate, and points at their places among all."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from amortized_bayes.memory import check_memory
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.traces import sample_sites, trace_pair
from amortized_bayes.trees import leaves_of, map_leaves
from amortized_bayes.types import Guide, Model

__all__ = ["Tiling", "at_places"]


def at_places(plate: str, index: Tensor) -> Messenger:
    """A handler under which the plate's points are those at the places ``index`` (B,), whatever size it is given.

    Programs with a row for each point, in a table that they index by their plate, then find the rows of a batch.
    """
    return Tiling(plate, index, 1)


class Tiling(Messenger):
    """Repeats the data, and the indices of the plate over it, S times along the plate."""

    def __init__(self, plate: str, index: Tensor, num_particles: int) -> None:
        super().__init__()
        self.plate = plate
        self.batch = len(index)
        self.full_size = len(index)
        self.num_particles = num_particles
        self._check_memory(index)
        self.index = index.repeat(num_particles)

    @classmethod
    def of(
        cls, guide: Guide, model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], num_particles: int, plate: str
    ) -> Tiling:
        """Learn the batch from one untiled run."""
        with torch.no_grad():
            traces = trace_pair(model, guide, args, kwargs, plate)
        site = traces.model.nodes.get(plate) or traces.guide.nodes.get(plate)
        if site is None:  # a plate without a size counts the rows that it is given
            (batch, _), value = traces.plate_sizes(), next(sample_sites(traces.model))["value"]
            return cls(plate, torch.arange(batch, device=value.device), num_particles)
        if not isinstance(site["value"], Tensor):
            raise ValueError(f"expected plate {plate!r} to have its points as a tensor, got {type(site['value'])}")
        drawn: Any = site["fn"]  # what a plate draws its points by
        chosen, index = drawn.subsample_size, site["value"]
        if index.dim() != 1 or index.is_floating_point():  # `subsample=x`: the data stand for their places
            index = torch.arange(len(index), device=index.device)
        tiling = cls(plate, index, num_particles)
        tiling.full_size = traces.plate_sizes()[1]  # where the plate is sized by the batch, tiling would multiply it
        if chosen is not None and chosen < drawn.size:
            raise ValueError(
                f"plate {plate!r} draws its own subsample of {chosen} points; expected the batch to be passed as "
                f"arguments (the data and `subsample=index`) so that it can be tiled {num_particles} times"
            )
        return tiling

    def has_data(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether some argument holds the batch along its first dimension."""
        return any(self.is_data(leaf) for leaf in leaves_of((args, kwargs)))

    def tile(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Repeat every tensor that holds the batch along its first dimension."""

        def repeat(leaf: Any) -> Any:
            return leaf.repeat(self.num_particles, *(1 for _ in leaf.shape[1:])) if self.is_data(leaf) else leaf

        self._check_memory(*(leaf for leaf in leaves_of((args, kwargs)) if self.is_data(leaf)))
        return map_leaves(repeat, (args, kwargs))

    def _check_memory(self, *rows: Tensor) -> None:
        size = sum(t.numel() * t.element_size() for t in rows)
        check_memory(self.num_particles * size, f"{self.num_particles:,} particles of {self.batch:,} points")

    def is_data(self, leaf: object) -> bool:
        """Whether an argument holds the batch along its first dimension."""
        return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == self.batch

    def _pyro_sample(self, msg: Any) -> None:
        # The points keep their own indices, so that a guide with a row per point finds the same row for each particle.
        if msg["name"] == self.plate and isinstance(msg["fn"], _Subsample) and msg["value"] is None:
            msg["value"] = self.index

    def _pyro_post_param(self, msg: Any) -> None:
        # Inside a plate Pyro selects the rows of `pyro.param(..., event_dim=)` and `pyro.subsample` unless the batch
        # has as many points as the whole, which a tiled batch may reach.
        frame, event_dim = plate_frame(msg, self.plate), msg["kwargs"].get("event_dim")
        if frame is None or event_dim is None or any(f.size < f.full_size for f in msg["cond_indep_stack"]):
            return
        dim, value = frame.dim - event_dim, msg["value"]
        if value.dim() >= -dim and value.shape[dim] != 1:
            msg["value"] = value.index_select(dim, self.index)
            if msg["type"] == "param":
                msg["value"]._pyro_unconstrained_param = getattr(value, "_pyro_unconstrained_param", None)
            msg["kwargs"] = {**msg["kwargs"], "event_dim": None}  # or the plate would ask for N rows

    _pyro_post_subsample = _pyro_post_param
