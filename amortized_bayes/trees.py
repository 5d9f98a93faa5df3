"""Arguments of programs as trees of tensors.

A packed sequence is one leaf, though it is a tuple of tensors: none of them has a row for each data point, while the
length of one may happen to be their number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

__all__ = ["flatten", "flatten_with_path", "leaves_of", "map_leaves"]


def leaves_of(tree: Any) -> list[Any]:
    """All leaves."""
    return pytree.tree_leaves(tree, is_leaf=_is_packed)


def map_leaves(change: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with each leaf changed."""
    return pytree.tree_map(change, tree, is_leaf=_is_packed)


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """All leaves, and what ``pytree.tree_unflatten`` needs to put others in their place."""
    return pytree.tree_flatten(tree, is_leaf=_is_packed)


def flatten_with_path(tree: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """The same, each leaf with where it stands."""
    return pytree.tree_flatten_with_path(tree, is_leaf=_is_packed)


def _is_packed(tree: Any) -> bool:
    return isinstance(tree, PackedSequence)
