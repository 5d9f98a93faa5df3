"""What running programs may change, remembered and put back: parameters, buffers, Pyro's param store."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import pyro
import torch
from torch import Tensor, nn

__all__ = ["Snapshot", "snapshot"]

DEPTH = 3
"""How many functions that call each other are followed."""


class Snapshot:
    """Tensors, and the values that they had; call it to put these back.

    Args:
        tensors: tensors of modules.
        stored: unconstrained parameters of Pyro's param store, by name; those that it no longer holds are left out.
    """

    def __init__(self, tensors: list[Tensor], stored: dict[str, Tensor]) -> None:
        self._tensors, self._stored = tensors, stored
        self.values = [tensor.detach().clone() for tensor in self._all]

    @property
    def _all(self) -> list[Tensor]:
        return [*self._tensors, *self._stored.values()]

    def __call__(self) -> None:
        """Put the values back."""
        with torch.no_grad():
            for tensor, value in zip(self._all, self.values, strict=True):
                tensor.copy_(value)

    def holds(self) -> bool:
        """Whether all tensors have these values now."""
        return all(map(torch.equal, self._all, self.values))

    def lives(self) -> bool:
        """Whether the param store still has the parameters that it had."""
        store = pyro.get_param_store()._params
        return all(store.get(name) is tensor for name, tensor in self._stored.items())

    def since(self, before: Snapshot) -> Snapshot:
        """Those tensors alone that had other values before."""
        old = before._by_tensor
        return self._of(
            key for key, value in self._by_tensor.items() if key in old and not torch.equal(value, old[key])
        )

    def like(self, other: Snapshot) -> Snapshot:
        """Those tensors alone that another has too."""
        return self._of(other._by_tensor)

    @property
    def _by_tensor(self) -> dict[int, Tensor]:
        return {id(tensor): value for tensor, value in zip(self._all, self.values, strict=True)}

    def _of(self, keys: Iterable[int]) -> Snapshot:
        kept, values = set(keys), self._by_tensor
        found = Snapshot(
            [tensor for tensor in self._tensors if id(tensor) in kept],
            {name: tensor for name, tensor in self._stored.items() if id(tensor) in kept},
        )
        found.values = [values[id(tensor)] for tensor in found._all]
        return found

    def __len__(self) -> int:
        return len(self.values)


def snapshot(*programs: Any) -> Snapshot:
    """Remember the tensors of modules that programs are or name, and of the param store."""
    modules = {id(module): module for program in programs for module in _modules(program, DEPTH)}
    owned = [tensor for module in modules.values() for tensor in (*module.parameters(), *module.buffers())]
    stored = dict(pyro.get_param_store()._params)
    in_store = set(map(id, stored.values()))
    tensors = {id(tensor): tensor for tensor in owned if id(tensor) not in in_store}
    return Snapshot(list(tensors.values()), stored)


def _modules(program: Any, depth: int) -> Iterator[nn.Module]:
    """Modules of a program: itself, what it is bound to, or what its function has in its closure and globals."""
    if isinstance(program, nn.Module):
        yield program
    elif isinstance(program, partial):
        for part in (program.func, *program.args, *program.keywords.values()):
            yield from _modules(part, depth)
    elif isinstance(program, MethodType):
        yield from _modules(program.__self__, depth)
        yield from _modules(program.__func__, depth)
    elif isinstance(program, FunctionType) and depth:
        named = inspect.getclosurevars(program)
        for value in (*named.nonlocals.values(), *named.globals.values()):
            if isinstance(value, (nn.Module, partial, MethodType, FunctionType)):
                yield from _modules(value, depth - 1)
