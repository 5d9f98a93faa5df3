"""Long loops that go on where they were, when the program that they are in is killed and run again.

A program that is run again from its start does the same again, number for number. What takes long in it are loops; what
comes between them is done again. So each long loop offers its state to the *keeper* of the running job now and then,
and finds it there when the job is run again::

    place = 0
    with kept("walk", lambda: [place, z], generator) as loop:
        if loop.found is not None:
            place, z = loop.found
        while place < num_steps:
            z = move(z, generator)
            place += 1
            loop.offer()

A loop is known by its name and by how many of that name came before it. A state is a tree of lists, dictionaries,
tensors, arrays and plain values; tuples come back as lists. The states of torch's global generators, and of those named
at the start, are kept with it and put back, so that the numbers drawn afterwards are those of a program that was not
killed. Without a keeper, nothing of this costs anything.

A tensor comes back with its type, its device and its strides, in memory of torch's own: on another layout the same sum
may round differently.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from amortized_bayes.stopping import EVERY, Stopped, asked

__all__ = ["CannotKeep", "Keeper", "Kept", "Loop", "kept", "known"]

SHARE = 0.01
"""Share of the time that keeping may take: where writing takes long, it is done more rarely."""
BYTES_PER_SECOND = 2e8
"""What a slow disk writes, synced and checked: a guess, where somebody else writes."""


class CannotKeep(BaseException):
    """A state could not be written, for its cause: no program in which the loop is can take that for its own error."""


class Kept(NamedTuple):
    """The states of a job's loops: tensors by name, and texts."""

    tensors: Mapping[str, np.ndarray]
    texts: Mapping[str, str]


class Keeper:
    """Keeps the states of the loops of one job.

    Args:
        write: keeps states durably; what is given may change afterwards.
        found: what was kept before.
        every: seconds between two states, at least; 0 keeps each that is offered.

    Example:
        >>> states = []
        >>> with Keeper(states.append, every=0).watching(), kept("count", lambda: [place]) as loop:
        ...     for place in range(3):
        ...         loop.offer()
        >>> with Keeper(states.append, states[1]).watching(), kept("count", lambda: []) as loop:
        ...     loop.found
        [1]
    """

    def __init__(
        self,
        write: Callable[[Kept], None],
        found: Kept | None = None,
        every: float = EVERY,
    ) -> None:
        self.write, self.every = write, every
        self.states: dict[str, Any] = {} if found is None else _codes(found)
        self.tensors: dict[str, Tensor | np.ndarray] = {} if found is None else {**found.tensors}
        self.found = {} if found is None else _read(self.states, found)
        self.counts = Counter[str]()
        self.open = ""
        self.next = time.monotonic() + every

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Be the keeper of all loops that are entered meanwhile."""
        before = _keeper.set(self)
        try:
            yield
        finally:
            _keeper.reset(before)

    @property
    def due(self) -> bool:
        """Whether the next state that is offered is kept: it is time, or the program was asked to stop."""
        return time.monotonic() >= self.next or bool(asked())

    def keep(self) -> None:
        """Write all states.

        Raises:
            CannotKeep: that failed.
            Stopped: afterwards, where the program was asked to stop.
        """
        start = time.monotonic()
        arrays = {name: _array(tensor) for name, tensor in self.tensors.items()}
        try:
            self.write(Kept(arrays, {"loops": json.dumps(self.states)}))
        except Exception as error:
            raise CannotKeep(f"{error}") from error
        now = time.monotonic()
        seconds = max(now - start, sum(array.nbytes for array in arrays.values()) / BYTES_PER_SECOND)
        self.next = now + (max(self.every, seconds / SHARE) if self.every else 0.0)
        if asked():
            raise Stopped(asked())

    def take(self, key: str, state: Any, *, copied: bool) -> None:
        """Take in the newest state of a loop; a copy of it, where it may change before it is written."""
        for name in [name for name in self.tensors if name.startswith(f"{key}/")]:
            del self.tensors[name]
        own: dict[str, Tensor | np.ndarray] = {}
        self.states[key] = _encode(state, f"{key}/", own)
        self.tensors |= {name: _copy(tensor) for name, tensor in own.items()} if copied else own


class Loop:
    """A loop in a program, as the keeper knows it.

    Args:
        keeper: keeper of the job; ``None`` without one.
        key: which loop of the job it is.
        state: gives the state at the time of the call.
        generators: whose states belong to it.
    """

    def __init__(
        self, keeper: Keeper | None, key: str, state: Callable[[], Any], generators: tuple[Generator, ...]
    ) -> None:
        self.keeper, self.key, self.state, self.generators = keeper, key, state, generators
        self.found: Any = None
        """The state that was kept last; ``None`` for a loop that starts."""
        code = None if keeper is None else keeper.found.get(key)
        if code is not None:
            self.found, places = code
            _set_generators(generators, places)

    @property
    def kept(self) -> bool:
        """Whether there is a keeper."""
        return self.keeper is not None

    @property
    def due(self) -> bool:
        """Whether :meth:`offer` would keep the state."""
        return self.keeper is not None and self.keeper.due

    def offer(self) -> None:
        """Keep the state, if it is time; where the program was asked to stop, it is always time.

        Raises:
            Stopped: the program was asked to stop.
        """
        if self.keeper is not None and self.keeper.due:
            self._take(copied=False)
            self.keeper.keep()

    def end(self) -> None:
        """Remember the state at the end of the loop, which is then not taken again."""
        if self.keeper is not None:
            self._take(copied=True)
            if self.keeper.due:
                self.keeper.keep()

    def _take(self, *, copied: bool) -> None:
        assert self.keeper is not None
        self.keeper.take(self.key, [self.state(), _places(self.generators)], copied=copied)


_keeper: ContextVar[Keeper | None] = ContextVar("keeper", default=None)


@contextmanager
def kept(name: str, state: Callable[[], Any], *generators: Generator) -> Iterator[Loop]:
    """Enter a loop that may be long, and leave it when it has come to its end.

    Args:
        name: name of the loop; loops of one name are told apart by their order.
        state: gives the state of the loop between two turns, or at its end.
        generators: which the loop draws from; torch's global ones need not be named.

    Raises:
        RuntimeError: inside another loop: what is between its turns would not be found again.
        Stopped: the program was asked to stop, and the state is kept.
    """
    keeper = _keeper.get()
    if keeper is None:
        yield Loop(None, name, state, generators)
        return
    if keeper.open:
        raise RuntimeError(f"the loop {name!r} cannot be kept inside the loop {keeper.open!r}")
    key = f"{name}#{keeper.counts[name]}"
    keeper.counts[name] += 1
    keeper.open = key
    try:
        loop = Loop(keeper, key, state, generators)
        yield loop
        loop.end()
    finally:
        keeper.open = ""


def known(name: str, compute: Callable[[], Any], *generators: Generator) -> Any:
    """What ``compute`` gives, a tree as the state of a loop, computed once however often the job is run again."""
    value: Any = None
    with kept(name, lambda: value, *generators) as loop:
        value = compute() if loop.found is None else loop.found
    return value


def _places(generators: tuple[Generator, ...]) -> list[Any]:
    """The states of the global generators, and of others."""
    of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), of_gpus, [generator.get_state() for generator in generators]]


def _set_generators(generators: tuple[Generator, ...], places: list[Any]) -> None:
    torch.set_rng_state(places[0])
    if places[1]:
        torch.cuda.set_rng_state_all(places[1])
    for generator, place in zip(generators, places[2], strict=True):
        generator.set_state(place)


def _encode(value: Any, name: str, tensors: dict[str, Tensor | np.ndarray]) -> Any:
    """A tree as JSON can hold it, in which tensors stand by name."""
    if isinstance(value, (Tensor, np.ndarray)):
        name = name.removesuffix(".")
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"tensor": name, "device": str(value.device), "strides": _strides(value)}
    if isinstance(value, np.ndarray):
        tensors[name] = value
        return {"array": name}
    if isinstance(value, Mapping):
        return {"items": {str(key): _encode(each, f"{name}{key}.", tensors) for key, each in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_encode(each, f"{name}{number}.", tensors) for number, each in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"the state of a loop: expected tensors and plain values, got {type(value).__name__} at {name}")


def _decode(code: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(code, list):
        return [_decode(each, arrays) for each in code]
    if not isinstance(code, dict):
        return code
    if "items" in code:
        return {key: _decode(each, arrays) for key, each in code["items"].items()}
    if "array" in code:
        return np.array(arrays[code["array"]])
    value = torch.tensor(arrays[code["tensor"]])
    if code["strides"] is None and code["device"] == "cpu":
        return value
    strides = value.stride() if code["strides"] is None else tuple(code["strides"])
    return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=code["device"]).copy_(value)


def _strides(tensor: Tensor) -> list[int] | None:
    """Strides of a tensor that is dense in another order than that of its dimensions."""
    if tensor.is_contiguous() or 0 in tensor.stride():
        return None
    strides = torch.empty_like(tensor, device="meta").stride()
    return list(strides)


def _copy(value: Tensor | np.ndarray) -> Tensor | np.ndarray:
    return value.clone() if isinstance(value, Tensor) else value.copy()


def _array(value: Tensor | np.ndarray) -> np.ndarray:
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def _codes(found: Kept) -> dict[str, Any]:
    """The states of loops by their keys, as JSON holds them."""
    codes = json.loads(found.texts.get("loops", "null"))
    if not isinstance(codes, dict):
        raise ValueError("expected the states of loops, got another checkpoint")
    return codes


def _read(codes: Mapping[str, Any], found: Kept) -> dict[str, Any]:
    try:
        return {key: _decode(code, found.tensors) for key, code in codes.items()}
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"expected the states of loops, got another checkpoint ({error})") from error
