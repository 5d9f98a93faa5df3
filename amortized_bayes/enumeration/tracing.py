"""Programs traced with their marked sites enumerated, in dimensions left of all plates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode

from amortized_bayes.enumeration.marks import is_enumerated, is_marked
from amortized_bayes.errors import ProgramError

__all__ = ["enumerated_trace"]

_depths: WeakKeyDictionary[Any, WeakKeyDictionary[Any, int]] = WeakKeyDictionary()
"""How deep plates are nested in programs with enumerated sites, and in the models of guides with such: each look is a
run."""


def enumerated_trace(
    program: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plate: str,
    key: Any,
    model: Any = None,
    guide: poutine.Trace | None = None,
) -> poutine.Trace:
    """Trace a program with its marked latents enumerated; one without any is run once, as it is.

    Args:
        program: what is run.
        args: its arguments.
        kwargs: its keyword arguments.
        plate: name of the plate over data points.
        key: the program as its author made it, by which the depth of its plates is remembered.
        model: of a guide, whose dimensions must clear the model's plates too.
        guide: of a model, the trace it replays: where that has enumerated sites, those of the model stand left of them.

    Raises:
        ValueError: a marked site that cannot be enumerated point by point.
    """
    if guide is not None and any(is_enumerated(site) for site in guide.nodes.values()):
        trace = _trace(program, args, kwargs, _Enumerate(plate))
        sites: list[Any] = [site for site in guide.nodes.values() if is_enumerated(site)]
        room = min(-site["infer"]["_enumerate_dim"] for site in sites) - 1
        if (depth := _plate_depth(trace)) > room:
            raise ValueError(
                f"expected plates of the model to be nested {room} deep, as when its guide was first run with it, got "
                f"{depth}: use another function for the other arguments"
            )
        return trace
    owner = key if model is None else model
    depth = known = _recall(key, owner)
    if depth is None:
        # A guide draws before it comes to a mark: those draws are made again, and a graph must not hold them twice.
        draws = model is not None
        if not (draws and get_proxy_mode() is not None and _stops(program, args, kwargs, plate)):
            states = _generators() if draws else ()
            try:
                with _StopAtMarked(plate):
                    return poutine.trace(program).get_trace(*args, **kwargs)
            except _Marked:
                _put_back(states)
        depth = _look(program, model, args, kwargs, key, owner)
    try:
        trace = _trace(program, args, kwargs, _Enumerate(plate, -1 - depth))
    except ValueError:
        if known is None:
            raise
        trace = None
    if trace is None or _plate_depth(trace) > depth:  # with other arguments plates may be nested deeper
        depth = _look(program, model, args, kwargs, key, owner)
        trace = _trace(program, args, kwargs, _Enumerate(plate, -1 - depth))
    return trace


def _trace(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any], enumerate_sites: _Enumerate) -> poutine.Trace:
    try:
        with enumerate_sites:
            return poutine.trace(program).get_trace(*args, **kwargs)
    except ProgramError:  # what is wrong has been said
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        names, first = enumerate_sites.names, str(error).splitlines()[0] if str(error) else type(error).__name__
        if not names:
            raise
        raise ValueError(
            f"the program fails where {names} hold all their values at once, in dimensions left of the plates; "
            f"expected operations that broadcast and count dimensions from the right ({first})"
        ) from error


def _recall(key: Any, owner: Any) -> int | None:
    with suppress(TypeError):
        return _depths.get(key, {}).get(owner)
    return None


def _plate_depth(trace: poutine.Trace) -> int:
    nodes: list[Any] = [node for node in trace.nodes.values() if node["type"] == "sample"]
    return max((-f.dim for node in nodes for f in node["cond_indep_stack"] if f.vectorized), default=0)


def _generators() -> tuple[Tensor, ...]:
    return (torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []))


def _put_back(states: tuple[Tensor, ...]) -> None:
    for state, put in zip(states, (torch.set_rng_state, torch.cuda.set_rng_state), strict=False):
        put(state)


@contextmanager
def _aside() -> Iterator[None]:
    """Runs that leave nothing in graphs and random generators."""
    devices = list(range(torch.cuda.device_count()))
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=devices),
        disable_proxy_modes_tracing(),
        pyro.validation_enabled(False),
    ):
        yield


def _stops(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any], plate: str) -> bool:
    """Whether a program comes to a mark."""
    try:
        with _aside(), _StopAtMarked(plate):
            program(*args, **kwargs)
    except _Marked:
        return True
    return False


def _look(program: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], key: Any, owner: Any) -> int:
    """How deep plates are nested, from one run; remembered."""
    with _aside():
        traces = [poutine.trace(program).get_trace(*args, **kwargs)]
        if model is not None:
            traces.append(poutine.trace(poutine.replay(model, trace=traces[0])).get_trace(*args, **kwargs))
    depth = max(map(_plate_depth, traces))
    with suppress(TypeError):  # what takes no weak reference is looked at again
        _depths.setdefault(key, WeakKeyDictionary())[owner] = depth
    return depth


class _Marked(Exception):
    """A latent is to be enumerated."""


class _StopAtMarked(Messenger):
    """Ends a run at the first latent that is to be enumerated."""

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["done"] and msg["value"] is None and is_marked(msg, self.plate):
            raise _Marked


class _Enumerate(EnumMessenger):
    """Pyro's enumeration, of what can be enumerated point by point."""

    def __init__(self, plate: str, first_available_dim: int | None = None) -> None:
        super().__init__(first_available_dim)
        self.plate = plate
        self.names: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        done, observed = msg["done"], msg["is_observed"]
        if done:  # with a value from inside, it may still have a density that depends on enumerated sites
            msg["done"], msg["is_observed"] = False, True
        elif is_marked(msg, self.plate):
            self.names.append(msg["name"])
        super()._pyro_sample(msg)
        if done:
            msg["done"], msg["is_observed"] = True, observed
