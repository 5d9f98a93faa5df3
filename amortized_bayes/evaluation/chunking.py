"""Arguments of model and guide cut into chunks of points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from amortized_bayes.joint import check_reach
from amortized_bayes.shared_draw import SharedDraw
from amortized_bayes.trees import leaves_of, map_leaves
from amortized_bayes.types import Guide, Model
from amortized_bayes.weights import LogWeights

__all__ = ["PointChunk", "SharedDraw", "check_reach_of", "point_chunks"]


class PointChunk(Messenger):
    """Arguments for some of the points, which keep their places among all where the plate is sized by the data.

    Args:
        args: arguments of both programs.
        kwargs: keyword arguments of both programs.
        places: indices of the points among all.
        count: how many all are.
        plate: name of the plate over data points.
        times: how often the points stand in the arguments, one time after the other.
    """

    def __init__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], places: range, count: int, plate: str, times: int = 1
    ) -> None:
        super().__init__()
        self.args, self.kwargs, self.places, self.count, self.plate = args, kwargs, places, count, plate
        self.times = times

    def repeated(self, times: int) -> PointChunk:
        """The same points ``times`` times over, as if they were so many points."""

        def repeat(leaf: Any) -> Any:
            return leaf.repeat(times, *[1] * (leaf.dim() - 1)) if _has_rows(leaf, len(self.places)) else leaf

        args, kwargs = map_leaves(repeat, self.args), map_leaves(repeat, self.kwargs)
        return PointChunk(args, kwargs, self.places, self.count, self.plate, times)

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
        if num_data is None and found.num_data == self._rows:
            return found._replace(num_data=self.count)
        return found

    def _pyro_sample(self, msg: Any) -> None:
        is_plate = msg["name"] == self.plate and isinstance(msg["fn"], _Subsample) and msg["value"] is None
        if is_plate and msg["fn"].size == self._rows and (self.times > 1 or len(self.places) < self.count):
            device = _tensors(self.args, self.kwargs)[0].device
            msg["value"] = torch.arange(self.places.start, self.places.stop, device=device).repeat(self.times)

    @property
    def _rows(self) -> int:
        return len(self.places) * self.times


def point_chunks(args: tuple[Any, ...], kwargs: dict[str, Any], size: int, plate: str) -> Iterator[PointChunk]:
    """Slices of the tensors that hold as many rows as the first of them."""
    count = next((len(tensor) for tensor in _tensors(args, kwargs) if tensor.dim()), 0)
    for start in range(0, max(count, 1), max(size, 1)):
        places = range(start, min(start + max(size, 1), count))

        def part(leaf: Any, places: range = places) -> Any:
            return leaf[places.start : places.stop] if _has_rows(leaf, count) else leaf

        yield PointChunk(map_leaves(part, args), map_leaves(part, kwargs), places, count, plate)


def check_reach_of(chunks: Iterable[PointChunk], model: Model, guide: Guide) -> None:
    """Refuse a guide that leaves out a part of some point's posterior; torch's generator is left as it was."""
    for chunk in chunks:
        with chunk, torch.random.fork_rng():
            check_reach(model, guide, chunk.args, chunk.kwargs, chunk.plate)


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    return [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor)]


def _has_rows(leaf: Any, count: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == count > 0
