"""Find the arguments that hold a row per data point, and the plate that holds the points.

A guess is tried before it is believed (:mod:`amortized_bayes.calls.trials`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from amortized_bayes.calls.remembered import Remembered
from amortized_bayes.calls.trials import Refused, is_random, line, only_plate, refuse_nan, run, try_call
from amortized_bayes.points import PointData, as_tensors, has_rows
from amortized_bayes.signatures import check_arguments, takes
from amortized_bayes.snapshots import snapshot
from amortized_bayes.training_mode import in_evaluation_mode
from amortized_bayes.types import Model

__all__ = ["Bound", "PerPointNames", "bind_points", "check_several", "named_rows", "with_index"]

PerPointNames = str | int | Iterable[str | int] | None
"""Names or positions of arguments; ``None`` where they are to be found."""

CLOSED_OVER = (0, 2, 3)
"""Ranks of refusals of models that run, but not on rows: nothing passed, a plate of another size, rows not followed."""
MOST_TENSORS = 6
"""Tensors of N rows of which every choice is tried."""


class Bound(NamedTuple):
    """Arguments of which it is known where the points are, and the plate that holds them.

    ``data`` without rows are run as they are: the points, or some of what belongs to them, are no arguments.
    ``subsample`` is the error for estimates from more than one run, where the model draws its own points at each.
    """

    data: PointData
    plate: str
    subsample: str = ""


def bind_points(
    model: Model,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    plate: str | None = None,
    per_point: PerPointNames = None,
    any_size: bool = False,
    whole: bool = False,
    measured: bool = False,
) -> Bound:
    """Find the plate over data points and the arguments that hold a row for each of them.

    Args:
        model: Pyro program. It is run a few times; its parameters, buffers and torch's generator stay as they are.
        args: its positional arguments, numpy arrays among them.
        kwargs: its keyword arguments.
        plate: name of the plate; by default the only one with latent and observed sites, or the one called ``data``.
        per_point: names or positions of the arguments that hold rows; by default they are found.
        any_size: whether the plate may have a size of its own, whatever is passed.
        whole: whether a model may close over data, and is then run on all points together, as it was called.
        measured: whether its density is, so that it must be one: given its latents, no module's noise is left.

    Raises:
        TypeError: arguments that the model does not take.
        ValueError: no such plate or several, no argument with rows, or a model that does not follow them; nan in data
            that reaches a density; dropout or batch norm in training mode where it is ``measured``.
    """
    args, kwargs = as_tensors((args, kwargs))
    check_arguments(model, args, kwargs)
    data = PointData.of(model, args, kwargs)
    if not isinstance(per_point, (str, int, type(None))):
        per_point = tuple(per_point)
    known = Remembered(model, data, (plate, per_point, any_size, whole, measured))
    put_back = snapshot(model)
    try:
        with torch.no_grad(), torch.random.fork_rng(), pyro.validation_enabled(False):
            found = known.found(data)
            with in_evaluation_mode("a model", "p(x, z)") if measured else nullcontext():
                bound = _bind(model, data, plate, per_point, any_size, whole) if found is None else Bound(*found)
            if measured and bound.data.noisy:
                raise ValueError(
                    "log p(x, z) of a point is random given its latents, by noise that no pyro.sample draws: expected "
                    "it drawn, so that a guide can draw it too, or left out, such as by .eval()"
                )
            if any(bound.data.is_data):
                refuse_nan(model, bound.data, bound.plate)
    finally:
        put_back()
    known.keep((bound.data, bound.plate, bound.subsample))
    return bound


def check_several(data: PointData) -> None:
    """Refuse a single point.

    Raises:
        ValueError: fewer points than two.
    """
    if len(data) < 2:
        shapes = [tuple(t.shape) for t in data.rows.tensors]
        raise ValueError(f"expected data of two points or more, got {shapes[0] if len(shapes) == 1 else shapes}")


def with_index(data: PointData, model: Model) -> PointData:
    """The same arguments with the places of all points, where the model needs an ``index`` that was not passed."""
    if data.signature is None or "index" in data.names or not takes(model, "index") or not any(data.is_data):
        return data
    if data.signature.parameters["index"].default is not inspect.Parameter.empty:
        return data
    args, kwargs = data.arguments()
    more = PointData.of(model, args, {**kwargs, "index": torch.arange(len(data), device=data.rows.device)})
    known = {"index": True, **dict(zip(data.names, data.is_data, strict=True))}
    same = {"missing": data.missing, "counted": data.counted, "mixed": data.mixed, "noisy": data.noisy}
    return replace(more, is_data=tuple(known[name] for name in more.names), **same)


def _bind(
    model: Model, data: PointData, plate: str | None, per_point: PerPointNames, any_size: bool, whole: bool
) -> Bound:
    """The first guess that holds."""
    problems: list[Refused] = []
    try:
        for guess in _guesses(data) if per_point is None else [named_rows(data, per_point)]:
            try:
                return Bound(*try_call(model, guess, plate, any_size))
            except Refused as error:
                problems.append(error)
        raise max(problems, key=lambda p: p.rank)
    except Refused as error:
        if whole and per_point is None and error.rank in CLOSED_OVER:
            return _whole(model, data, plate, error)
        raise ValueError(str(error)) from error.__cause__


def _whole(model: Model, data: PointData, plate: str | None, why: Refused) -> Bound:
    """Arguments none of which hold rows, for a model that runs on all of its points."""
    trace = run(model, data)
    if isinstance(trace, Exception):
        raise ValueError(f"the model cannot take {data.describe()} ({line(trace)})") from trace
    name = only_plate(trace, plate)
    data = replace(data, noisy=is_random(model, data, trace, None, name) == "noisy")
    node: Any = trace.nodes.get(name)
    own = node is not None and node["fn"].subsample_size not in (None, node["fn"].size)
    return Bound(data, name, str(why) if own else "")


def _guesses(data: PointData) -> Iterator[PointData]:
    """All tensors of equally many rows, for each number of rows; and then only some of them."""
    sizes = list(dict.fromkeys(len(t) for t in data.leaves if isinstance(t, Tensor) and t.dim()))
    if not sizes:
        raise Refused(
            f"expected data as an argument of the model, a tensor or array with a row per point, got {data.describe()}",
            0,
        )
    for count in sizes:
        yield data.with_data([has_rows(leaf, count) for leaf in data.leaves])
    for count in sizes:
        places = [i for i, leaf in enumerate(data.leaves) if has_rows(leaf, count)]
        for size in range(len(places) - 1, 0, -1) if len(places) <= MOST_TENSORS else ():
            for some in combinations(places, size):
                yield data.with_data([i in some for i in range(len(data.leaves))])


def named_rows(data: PointData, per_point: str | int | Iterable[str | int]) -> PointData:
    """Rows as the user names them.

    Raises:
        ValueError: what is no tensor among the arguments, or tensors of different numbers of rows.
    """
    wanted = [per_point] if isinstance(per_point, (str, int)) else list(per_point)
    flags = [False] * len(data.leaves)
    positions = [] if data.signature is None else list(data.signature.parameters)
    for one in wanted:
        name = positions[one] if isinstance(one, int) and -len(positions) <= one < len(positions) else one
        own = [i for i, leaf in enumerate(data.names) if leaf == name or leaf.startswith(f"{name}[")]
        own = [i for i in own if isinstance(data.leaves[i], Tensor) and data.leaves[i].dim()]
        if not own:
            raise ValueError(f"expected per_point to name tensors among {', '.join(data.names)}, got {one!r}")
        flags = [flag or i in own for i, flag in enumerate(flags)]
    chosen = data.with_data(flags)
    if len({len(t) for t in chosen.rows.tensors}) > 1:
        raise ValueError(f"expected as many rows in each argument that per_point names, got {data.describe()}")
    return chosen
