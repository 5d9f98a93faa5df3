"""What a guide sees of the arguments that it is called with: one vector per data point, and places of the points."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amortized_bayes.points import PointData, PointRows, as_tensors

__all__ = ["Seen", "first_and_index"]


class Seen(nn.Module):
    """Reads the arguments of a model, or rows and places, for a guide.

    Args:
        data: the arguments that the guide is fitted to; others must have their form.
        encoder_input: called with the model's arguments, gives what is seen, ``(B, ...)``. By default that is the
            tensor with rows, or all of them flattened and side by side, with 0 for nan.
        left_out: which tensors with rows are not seen by default, such as the indices of the points.
        dtype: type of what is seen.
    """

    def __init__(
        self,
        data: PointData,
        encoder_input: Callable[..., Tensor] | None = None,
        *,
        left_out: Sequence[int] = (),
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.data, self.encoder_input, self.left_out = data, encoder_input, tuple(left_out)
        self.dtype = dtype or torch.get_default_dtype()
        self.has_nan = any(bool(t.isnan().any()) for t in data.rows.tensors if t.is_floating_point())

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """What is seen, ``(B, ...)``, and places of the points, where they are given."""
        if args and isinstance(args[0], PointRows):
            rows, index = first_and_index(*args, **kwargs)
        else:
            rows, index = self.data.take(*as_tensors((args, kwargs)))
        return self.see(rows), index

    def see(self, rows: PointRows) -> Tensor:
        """What is seen of these points, ``(B, ...)``."""
        if self.encoder_input is not None:
            args, kwargs = self.data.arguments(rows)
            return self.encoder_input(*args, **kwargs).to(self.dtype)
        shown = [t for i, t in enumerate(rows.tensors) if i not in self.left_out] or [*rows.tensors]
        shown = [t.to(self.dtype) for t in shown]
        whole = shown[0] if len(shown) == 1 else torch.cat([t.reshape(len(t), -1) for t in shown], 1)
        return whole.nan_to_num() if self.has_nan else whole

    def of_guide(self, *, trained: bool) -> Seen:
        """A copy for one guide. The parameters of an input that is a network are fitted, where it is ``trained``."""
        twin = Seen(self.data, copy.deepcopy(self.encoder_input), left_out=self.left_out, dtype=self.dtype)
        if isinstance(twin.encoder_input, nn.Module) and not trained:
            twin.encoder_input.requires_grad_(False)
        return twin


def first_and_index(x: Any, *args: Any, index: Any = None, **kwargs: Any) -> tuple[Any, Tensor | None]:
    """Data and places from the arguments of a model ``model(x)`` or ``model(x, index)``; others are ignored."""
    del kwargs
    index = args[0] if index is None and args else index
    is_places = isinstance(index, Tensor) and not index.is_floating_point() and index.dtype != torch.bool
    return x, index if is_places else None
