"""The arguments of a model taken apart: tensors with a row for each data point, and the rest.

What fits and evaluates works on rows alone, ``PointRows``: it selects points with ``rows[index]`` and hands rows to
programs, which ``PointData`` turns back into the arguments that their authors wrote.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from amortized_bayes.signatures import signature_of
from amortized_bayes.trees import flatten, flatten_with_path, map_leaves

__all__ = ["PointData", "PointRows", "as_tensors", "has_rows"]


@dataclass(frozen=True, eq=False)
class PointRows:
    """Tensors that hold a row for each of the same points, ``(B, ...)`` each."""

    tensors: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.tensors[0]) if self.tensors else 0

    def __getitem__(self, index: Any) -> PointRows:
        """The rows of some points."""
        return PointRows(tuple(tensor[index] for tensor in self.tensors))

    def index_select(self, dim: int, index: Tensor) -> PointRows:
        """The rows with indices ``index``, (B,), as torch's: in a quarter of the time of ``self[index]``."""
        return PointRows(tuple(tensor.index_select(dim, index) for tensor in self.tensors))

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.tensors[0].device

    @property
    def is_cuda(self) -> bool:
        """Whether that is a GPU."""
        return self.tensors[0].is_cuda

    @property
    def dtype(self) -> torch.dtype:
        """That of the first tensor of floats, torch's default where there is none."""
        return next((t.dtype for t in self.tensors if t.is_floating_point()), torch.get_default_dtype())

    def is_floating_point(self) -> bool:
        """True: rows keep their types, whatever these are."""
        return True

    def to(self, *_: Any) -> PointRows:
        """The rows as they are: what models take as integers stays so."""
        return self


pytree.register_pytree_node(PointRows, lambda rows: ([*rows.tensors], None), lambda t, _: PointRows(tuple(t)))


@dataclass(frozen=True, eq=False)
class PointData:
    """The arguments of a call, and which of their tensors hold a row for each data point.

    Args:
        leaves: all arguments, flattened.
        spec: how they were before, ``(args, kwargs)``.
        is_data: whether each leaf holds a row per point.
        names: names of each leaf, for readers.
        signature: signature of the model, by which another call may say the same in another form; ``None`` where it has
            none.
        missing: sites of entries that ``obs_mask`` leaves out and that nothing else depends on: they integrate to 1,
            and programs are run as if they were not there.
        counted: whether the model's plate counts the rows that it is given, whatever their places among all.
        mixed: whether log p of a point changes with those that it is given with, as by batch norm or a mean over them.
        noisy: whether it is random given the latents.
    """

    leaves: tuple[Any, ...]
    spec: Any
    is_data: tuple[bool, ...]
    names: tuple[str, ...]
    signature: inspect.Signature | None = None
    missing: tuple[str, ...] = ()
    counted: bool = False
    mixed: bool = False
    noisy: bool = False

    @classmethod
    def of(cls, program: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PointData:
        """Arguments of which nothing is said to hold rows yet."""
        signature = signature_of(program)
        found, spec = flatten_with_path((args, kwargs))
        positions = [] if signature is None else list(signature.parameters)
        names = tuple(_name(path, positions) for path, _ in found)
        return cls(tuple(leaf for _, leaf in found), spec, (False,) * len(found), names, signature)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows(self) -> PointRows:
        """The rows of all points."""
        return PointRows(tuple(leaf for leaf, is_data in zip(self.leaves, self.is_data, strict=True) if is_data))

    def with_data(self, is_data: Sequence[bool]) -> PointData:
        """The same arguments, with these leaves as rows."""
        return replace(self, is_data=tuple(is_data))

    def arguments(self, rows: PointRows | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for the points in ``rows``, by default for all."""
        if rows is None:
            leaves = list(self.leaves)
        else:
            rest = iter(rows.tensors)
            leaves = [next(rest) if d else leaf for leaf, d in zip(self.leaves, self.is_data, strict=True)]
        return pytree.tree_unflatten(leaves, self.spec)

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[PointRows, Tensor | None]:
        """The rows in the arguments of another call, and its ``index``, where that is none of these arguments.

        Raises:
            ValueError: arguments of another form.
        """
        flags = pytree.tree_unflatten(list(self.is_data), self.spec)
        wanted, spec = flatten(self._by_name(*flags))
        named = self._by_name(args, kwargs)
        index = named.pop("index", None) if isinstance(named, dict) and "index" not in self.names else None
        leaves, got = flatten(named)
        if spec != got:
            raise ValueError(f"expected arguments in the form of ({', '.join(self.names)}), got another")
        rows = tuple(as_tensors(leaf) for leaf, is_data in zip(leaves, wanted, strict=True) if is_data)
        return PointRows(rows), index

    def describe(self) -> str:
        """Arguments that are tensors with their shapes, in words."""
        tensors = [(n, leaf) for n, leaf in zip(self.names, self.leaves, strict=True) if isinstance(leaf, Tensor)]
        return ", ".join(f"{name} of shape {tuple(tensor.shape)}" for name, tensor in tensors) or "no tensor"

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Arguments by the names of the model's parameters, in their order."""
        if self.signature is None:
            return args, kwargs
        try:
            return dict(self.signature.bind_partial(*args, **kwargs).arguments)
        except TypeError as error:
            raise ValueError(f"expected arguments {self.signature}, got others: {error}") from error


def has_rows(leaf: object, count: int) -> bool:
    """Whether a leaf is a tensor with ``count`` rows."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == count


def as_tensors(tree: Any) -> Any:
    """Numpy arrays as tensors; those of floats in torch's default precision."""

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray):
            return leaf
        if leaf.dtype.kind not in "biuf":
            raise TypeError(f"expected arrays of numbers, got one of {leaf.dtype}")
        tensor = torch.as_tensor(leaf)
        return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor

    return map_leaves(convert, tree)


def _name(path: tuple[Any, ...], positions: Sequence[str]) -> str:
    """``x``, ``batch['counts']`` or ``argument 1``, for a leaf of ``(args, kwargs)``."""
    where, (own, *inner) = path[0].idx, path[1:]
    place = own.key if where else own.idx
    known = not where and place < len(positions)
    base = positions[place] if known else str(place) if where else f"argument {place}"
    return f"{base}{pytree.keystr(tuple(inner))}"
