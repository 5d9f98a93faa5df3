"""Arguments of model and guide cut into chunks of points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.utils import _pytree as pytree

from amortized_bayes.types import Guide, Model
from amortized_bayes.weights import LogWeights, plate_frame

__all__ = ["PointChunk", "SharedDraw", "point_chunks"]


class PointChunk(Messenger):
    """Arguments for some of the points, which keep their places among all where the plate is sized by the data."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], places: range, count: int, plate: str) -> None:
        super().__init__()
        self.args, self.kwargs, self.places, self.count, self.plate = args, kwargs, places, count, plate

    def weights(
        self,
        evaluate: Callable[..., LogWeights],
        model: Model,
        guide: Guide,
        *,
        num_data: int | None = None,
        **options: Any,
    ) -> LogWeights:
        """Log weights of these points, with N counted over all chunks."""
        with self:
            found = evaluate(model, guide, *self.args, plate=self.plate, num_data=num_data, **options, **self.kwargs)
        if num_data is None and found.num_data == len(self.places):
            return found._replace(num_data=self.count)
        return found

    def _pyro_sample(self, msg: Any) -> None:
        is_plate = msg["name"] == self.plate and isinstance(msg["fn"], _Subsample) and msg["value"] is None
        if is_plate and msg["fn"].size == len(self.places) < self.count:
            device = next(a.device for a in self.args if isinstance(a, Tensor))
            msg["value"] = torch.arange(self.places.start, self.places.stop, device=device)


class SharedDraw(Messenger):
    """One draw of the latents outside the plate, made by whatever runs first in it and met again by all that follows.

    So all chunks of points see the same draw, as all points of a batch do. ``values`` are those drawn, by name: none
    where the guide has no such site, or where its weights are never drawn (local reparametrization).
    """

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate
        self.values: dict[str, Tensor] = {}
        self._open: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        given = msg["is_observed"] or msg["value"] is not None or isinstance(msg["fn"], _Subsample)
        if given or plate_frame(msg, self.plate) is not None:
            return
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
        else:
            self._open.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self._open:
            self._open.remove(msg["name"])
            self.values[msg["name"]] = msg["value"]


def point_chunks(args: tuple[Any, ...], kwargs: dict[str, Any], size: int, plate: str) -> Iterator[PointChunk]:
    """Slices of the tensors that hold as many rows as the first argument."""
    count = len(args[0]) if args and isinstance(args[0], Tensor) and args[0].dim() else 0
    for start in range(0, max(count, 1), max(size, 1)):
        places = range(start, min(start + max(size, 1), count))

        def part(leaf: Any, places: range = places) -> Any:
            is_data = isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == count
            return leaf[places.start : places.stop] if is_data else leaf

        yield PointChunk(pytree.tree_map(part, args), pytree.tree_map(part, kwargs), places, count, plate)
