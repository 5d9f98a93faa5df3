"""What running programs may change, remembered and put back: parameters, buffers, Pyro's param store."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import pyro
import torch
from torch import nn

__all__ = ["snapshot"]

DEPTH = 3
"""How many functions that call each other are followed."""


def snapshot(*programs: Any) -> Callable[[], None]:
    """Remember the tensors of modules that programs are or name, and of the param store; return what puts them back."""
    modules = {id(module): module for program in programs for module in _modules(program, DEPTH)}
    owned = [tensor for module in modules.values() for tensor in (*module.parameters(), *module.buffers())]
    tensors = list({id(tensor): tensor for tensor in (*owned, *pyro.get_param_store()._params.values())}.values())
    values = [tensor.detach().clone() for tensor in tensors]

    def put_back() -> None:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)

    return put_back


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
