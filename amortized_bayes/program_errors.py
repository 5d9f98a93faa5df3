"""What a user's program raises, said in one line: which program, on what data, and the first line of its error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils import _pytree as pytree

__all__ = ["ProgramError", "first_line", "hint", "said_of"]


class ProgramError(ValueError):
    """A program cannot be run on the data that it was given."""


@contextmanager
def said_of(program: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """Turn what torch and Pyro raise while ``program`` runs into one line; an error of one line is left as it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, ZeroDivisionError, ValueError) as error:
        if get_proxy_mode() is not None or (isinstance(error, ValueError) and "\n" not in str(error).strip()):
            raise
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in tensors) or "no tensors"
        hints = _plate_hint(error) + hint(tensors)
        raise ProgramError(f"cannot run the {program} on data of shape {shapes}: {first_line(error)}{hints}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's words, or its name where it has none."""
    return str(error).strip().splitlines()[0].rstrip(":") if str(error).strip() else type(error).__name__


def _plate_hint(error: BaseException) -> str:
    """What to do about a site whose dimensions Pyro takes for those of a plate."""
    if "Shape mismatch inside plate" not in str(error):
        return ""
    return "; expected a plate of the data's size, and one draw a row, its own dimensions declared by .to_event(1)"


def hint(tensors: Iterable[Tensor]) -> str:
    """What about the data may be why a program does not take them, in words that follow the error; or nothing."""
    tensors = list(tensors)
    if any(leaf.dim() and not len(leaf) for leaf in tensors):
        return "; expected one data point or more"
    if any(not leaf.isfinite().all() for leaf in tensors):
        return "; some of the data are nan or infinite"
    if any(not (leaf.is_floating_point() or leaf.dtype == torch.bool) for leaf in tensors):
        return "; some of the data are integers: pass x.float() where a program computes with them"
    return ""
