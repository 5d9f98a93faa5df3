"""Calls that were tried before, so that a loop of evaluations tries its model once.

Trying a call takes longer than many an evaluation. A module is not tried again on arguments of the same form while
it has the same attributes; functions are tried each time, as what they close over may have changed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from amortized_bayes.points import PointData
from amortized_bayes.types import Model

__all__ = ["Remembered"]

OWN = frozenset(vars(nn.Module())) - {"training"}
"""Attributes of every module; parameters and buffers among them may change, which moves no rows."""
PLAIN = (bool, int, float, complex, str, bytes, type(None))
MOST_CALLS = 32
"""Forms of calls that are kept for a module."""
Found = tuple[PointData, str, str]
"""Of :class:`amortized_bayes.calls.binding.Bound`."""
_KNOWN: WeakKeyDictionary[nn.Module, dict[Hashable, Found]] = WeakKeyDictionary()


class Remembered:
    """What was found of calls like this one, if any was tried.

    Args:
        model: Pyro program.
        data: its arguments.
        how: what else the answer depends on.
    """

    def __init__(self, model: Model, data: PointData, how: tuple[Any, ...]) -> None:
        self._calls: dict[Hashable, Found] = {}
        self._key: Hashable = None
        if isinstance(model, nn.Module):
            form = tuple(map(_form, data.leaves))
            key = (data.spec, data.names, form, how, tuple(map(_form, _attributes(model))))
            if _hashable(key):
                self._calls, self._key = _KNOWN.setdefault(model, {}), key

    def found(self, data: PointData) -> Found | None:
        """The same answer for other values."""
        if self._key not in self._calls:
            return None
        known, plate, subsample = self._calls[self._key]
        return replace(known, leaves=data.leaves), plate, subsample

    def keep(self, found: Found) -> None:
        """Remember an answer, without the data."""
        if self._key is None:
            return
        while len(self._calls) >= MOST_CALLS:
            self._calls.pop(next(iter(self._calls)))
        data, plate, subsample = found
        self._calls[self._key] = replace(data, leaves=()), plate, subsample


def _attributes(model: nn.Module) -> Iterator[Any]:
    """Of the module and its parts, but for parameters, buffers and hooks."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in OWN:
                yield name
                yield value


def _form(value: Any) -> Hashable:
    """What tells a value from others: the form of a tensor, a plain value itself, and which object anything else is."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.item() if value.dim() == 0 else None
    if isinstance(value, PLAIN):
        return type(value), value
    return type(value), id(value)


def _hashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:  # names in lists
        return False
    return True
