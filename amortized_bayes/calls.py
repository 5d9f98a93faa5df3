"""How a model is called: which arguments hold a row per data point, which plate holds the points, what reaches log p.

A guess is tried before it is believed. The model is run on some of the points, and again on the same points in the
other order with their latents: the plate must hold as many points as were passed, and the log density of each must stay
as it was. That tells data that are closed over, and tables that happen to have N rows, from data that are passed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from amortized_bayes.point_programs import PointProgram
from amortized_bayes.points import PointData, as_tensors, has_rows
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.signatures import check_arguments, takes
from amortized_bayes.snapshots import snapshot
from amortized_bayes.tiling import at_places
from amortized_bayes.traces import PairedTraces, checked_frame, no_plate_error, sample_sites
from amortized_bayes.types import Model

__all__ = [
    "Bound",
    "PerPointNames",
    "bind_points",
    "check_several",
    "only_plate",
    "with_index",
]

PerPointNames = str | int | Iterable[str | int] | None
"""Names or positions of arguments; ``None`` where they are to be found."""

PROBED = 64
"""Points on which a model is tried first."""
MOST_NUMBERS = 2_000_000
"""Numbers in the points on which it is tried in the end, those of all but large data."""
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


class _Refused(ValueError):
    """A guess about arguments that does not hold; ``rank`` says how far it got."""

    def __init__(self, words: str, rank: int) -> None:
        super().__init__(words)
        self.rank = rank


def bind_points(
    model: Model,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    plate: str | None = None,
    per_point: PerPointNames = None,
    any_size: bool = False,
    whole: bool = False,
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

    Raises:
        TypeError: arguments that the model does not take.
        ValueError: no such plate or several, no argument with rows, or a model that does not follow them; nan in data
            that reaches a density.
    """
    args, kwargs = as_tensors((args, kwargs))
    check_arguments(model, args, kwargs)
    data = PointData.of(model, args, kwargs)
    put_back = snapshot(model)
    try:
        with torch.no_grad(), torch.random.fork_rng(), pyro.validation_enabled(False):
            try:
                return _bind(model, data, plate, per_point, any_size)
            except _Refused as error:
                if whole and per_point is None and error.rank in CLOSED_OVER:
                    return _whole(model, data, plate, error)
                raise ValueError(str(error)) from error.__cause__
    finally:
        put_back()


def check_several(data: PointData) -> None:
    """Refuse a single point.

    Raises:
        ValueError: fewer points than two.
    """
    if len(data) < 2:
        shapes = [tuple(t.shape) for t in data.rows.tensors]
        raise ValueError(f"expected data of two points or more, got {shapes[0] if len(shapes) == 1 else shapes}")


def only_plate(trace: poutine.Trace, wanted: str | None = None) -> str:
    """The plate over data points: the one wanted, or the only one with latent and observed sites in it.

    Raises:
        ValueError: no such plate, or several.
    """
    inside: dict[str, set[bool]] = {}
    for site in sample_sites(trace):
        for frame in site["cond_indep_stack"]:
            inside.setdefault(frame.name, set()).add(bool(site["is_observed"]))
    if wanted is not None or not inside:
        if wanted in inside:
            return wanted
        raise no_plate_error(trace, wanted or "data")
    both = [name for name, kinds in inside.items() if len(kinds) == 2] or list(inside)
    if len(both) > 1 and "data" not in both:
        raise ValueError(
            f"expected the name of the plate over data points, got several that may be: {', '.join(map(repr, both))}; "
            f"pass plate={both[0]!r}, say"
        )
    return "data" if "data" in both else both[0]


def with_index(data: PointData, model: Model) -> PointData:
    """The same arguments with the places of all points, where the model needs an ``index`` that was not passed."""
    if data.signature is None or "index" in data.names or not takes(model, "index") or not any(data.is_data):
        return data
    if data.signature.parameters["index"].default is not inspect.Parameter.empty:
        return data
    args, kwargs = data.arguments()
    more = PointData.of(model, args, {**kwargs, "index": torch.arange(len(data), device=data.rows.device)})
    known = {"index": True, **dict(zip(data.names, data.is_data, strict=True))}
    return replace(more, is_data=tuple(known[name] for name in more.names), missing=data.missing, counted=data.counted)


def _bind(model: Model, data: PointData, plate: str | None, per_point: PerPointNames, any_size: bool) -> Bound:
    problems: list[_Refused] = []
    for guess in _guesses(data) if per_point is None else [_named(data, per_point)]:
        try:
            found = _try(model, guess, plate, any_size)
        except _Refused as error:
            problems.append(error)
            continue
        _refuse_nan(model, found.data, found.plate)
        return found
    raise max(problems, key=lambda p: p.rank)


def _whole(model: Model, data: PointData, plate: str | None, why: _Refused) -> Bound:
    """Arguments none of which hold rows, for a model that runs on all of its points."""
    trace = _run(model, data)
    if isinstance(trace, Exception):
        raise ValueError(f"the model cannot take {data.describe()} ({_line(trace)})") from trace
    name = only_plate(trace, plate)
    node: Any = trace.nodes.get(name)
    own = node is not None and node["fn"].subsample_size not in (None, node["fn"].size)
    return Bound(data, name, str(why) if own else "")


def _guesses(data: PointData) -> Iterator[PointData]:
    """All tensors of equally many rows, for each number of rows; and then only some of them."""
    sizes = list(dict.fromkeys(len(t) for t in data.leaves if isinstance(t, Tensor) and t.dim()))
    if not sizes:
        raise _Refused(
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


def _named(data: PointData, per_point: str | int | Iterable[str | int]) -> PointData:
    """Rows as the user names them."""
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


def _try(model: Model, data: PointData, plate: str | None, any_size: bool) -> Bound:
    """Whether the rows are where they are said to be."""
    count = len(data)
    if not count:
        raise _Refused(f"expected one data point or more, got {data.describe()}", -1)
    every = torch.arange(count, device=data.rows.device)
    few = every[: min(PROBED, max(2, count - 1))]
    first = _run(model, data, few)
    if any_size and len(few) < count and (isinstance(first, Exception) or _sizes(first, plate) != {len(few)}):
        few, first = every, _run(model, data, every)  # a plate, and what is in it, of a size of its own
    if isinstance(first, Exception):
        words = f"the model cannot take {data.describe()}; expected data as in training"
        if not isinstance(_run(model, data, every), Exception):
            words = (
                f"the model takes all {count} rows of {', '.join(_tensors(data))} and not {len(few)} of them; size its "
                "plate by the data, `len(x)`, with the points first in what is passed, and close over no data"
            )
        raise _Refused(f"{words} ({_line(first)})", 1) from first
    name, sizes = only_plate(first, plate), _sizes(first, plate)
    if sizes != {len(few)}:
        got = next(size for size in sizes if size != len(few))
        raise _Refused(_other_size(name, got, len(few)), 2)
    _follow(model, data, first, few, name)
    _follow_to_the_end(model, data, len(few), name)
    counted = len(few) < count and _follows_itself(first, name, len(few))
    return Bound(replace(data, missing=_missing(model, data, first, few, name), counted=counted), name)


def _sizes(trace: poutine.Trace, plate: str | None) -> set[int]:
    """Sizes of the plate over data points."""
    name = only_plate(trace, plate)
    try:
        frames = [checked_frame(site, name) for site in sample_sites(trace)]
    except ValueError as error:
        raise _Refused(str(error), 4) from error
    return {frame.size for frame in frames if frame is not None}


def _run(
    model: Model,
    data: PointData,
    places: Tensor | None = None,
    latents: dict[str, Tensor] | None = None,
    plate: str = "",
) -> poutine.Trace | Exception:
    """The model's trace on some of the points, or why there is none; at given latents, where these are."""
    program: Any = PointProgram(model, data)
    rows = data.rows if places is None else data.rows[places]
    if latents is not None:
        program = poutine.condition(program, data=latents)
    try:
        with nullcontext() if places is None else at_places(plate, places):
            trace = poutine.trace(program).get_trace(rows, None if "index" in data.names else places)
        for site in sample_sites(trace):
            PairedTraces(trace, trace, plate).log_prob(site)  # with its mask, which may be of another size
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        return error
    return trace


def _follow(model: Model, data: PointData, first: poutine.Trace, places: Tensor, plate: str) -> None:
    """Refuse rows in the other order at which the log density of a point is another."""
    latents, same = {}, {}
    for site in sample_sites(first):
        if not site["is_observed"]:
            frame = plate_frame(site, plate)
            value = site["value"]
            dim = None if frame is None else frame.dim - len(site["fn"].event_shape)
            same[site["name"]] = value
            latents[site["name"]] = value if dim is None or value.dim() < -dim else value.flip(dim)
    own = "" if _follows_itself(first, plate, len(places)) else plate
    before = _densities(first, plate)
    runs = [_run(model, data, places, same, own), _run(model, data, places.flip(0), latents, own)]
    if isinstance(runs[0], Exception) or not _close(before, _densities(runs[0], plate)):
        return  # a model that is random given its latents, such as one with dropout, says nothing
    if isinstance(runs[1], Exception) or not _close(before.flip(0), _densities(runs[1], plate)):
        raise _Refused(
            f"log p of a point in plate {plate!r} does not follow its rows of {', '.join(_tensors(data))}: pass all "
            "data as arguments instead of closing over them, and name those with a row per point, per_point=('x', ...)",
            3,
        )


def _follow_to_the_end(model: Model, data: PointData, tried: int, plate: str) -> None:
    """Refuse a plate of another size, and rows that log p does not follow, where only later points show it."""
    per_point = sum(tensor[0].numel() for tensor in data.rows.tensors)
    count = min(len(data), max(tried, MOST_NUMBERS // max(1, per_point)))
    if count == tried:
        return
    places = torch.arange(count, device=data.rows.device)
    trace = _run(model, data, places)
    if isinstance(trace, Exception):
        raise _Refused(
            f"the model takes {tried} rows of {', '.join(_tensors(data))} and not {count} of them; expected one of any "
            f"number of points, that closes over no data ({_line(trace)})",
            2,
        ) from trace
    got = _sizes(trace, plate) - {count}
    if got:
        raise _Refused(_other_size(plate, got.pop(), count), 2)
    _follow(model, data, trace, places, plate)


def _other_size(plate: str, got: int, count: int) -> str:
    return (
        f"expected plate {plate!r} to hold the points that the model is given, got {got} of them where {count} were "
        "passed: size it by the data, `len(x)`, or take `index` and pass `subsample=index`, and close over no data"
    )


def _follows_itself(trace: poutine.Trace, plate: str, count: int) -> bool:
    node: Any = trace.nodes.get(plate)
    return node is None or node["fn"].size == count


def _missing(model: Model, data: PointData, first: poutine.Trace, places: Tensor, plate: str) -> tuple[str, ...]:
    """Sites that Pyro makes for what ``obs_mask`` leaves out, if nothing else depends on what is drawn there."""
    sites = {site["name"]: site for site in sample_sites(first)}
    ends = ("_unobserved", "_observed")
    names = [n for n in sites if n.endswith(ends[0]) and n.removesuffix(ends[0]) + ends[1] in sites]
    if not names:
        return ()
    others = {n: s["value"] for n, s in sites.items() if n not in names and not s["is_observed"]}
    own = "" if _follows_itself(first, plate, len(places)) else plate
    again = _run(model, data, places, others, own)
    if isinstance(again, Exception) or not _close(_densities(first, plate, names), _densities(again, plate, names)):
        return ()
    return tuple(names)


def _densities(trace: poutine.Trace, plate: str, without: Sequence[str] = ()) -> Tensor:
    """Log p(x, z) of each point, ``(B,)``."""
    traces = PairedTraces(trace, trace, plate)
    sites = [site for site in sample_sites(trace) if plate_frame(site, plate) is not None]
    parts = [traces.log_prob(site) for site in sites if site["name"] not in without]
    return torch.stack(torch.broadcast_tensors(*parts)).sum(0)


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)


def _refuse_nan(model: Model, data: PointData, plate: str) -> None:
    """Refuse data that are not finite where they make the log density of a point so."""
    floats = [t for t in data.rows.tensors if t.is_floating_point()]
    bad = torch.zeros(len(data), dtype=torch.bool, device=data.rows.device)
    for tensor in floats:
        bad |= ~tensor.reshape(len(tensor), -1).isfinite().all(-1)
    count = sum(int((~t.isfinite()).sum()) for t in floats)
    for places in bad.nonzero().flatten().split(1000) if count else ():
        few = places if len(places) > 1 else torch.cat([places, places])
        trace = _run(model, data, few)
        if isinstance(trace, Exception):
            trace = _run(model, data, few, plate=plate)
        if isinstance(trace, Exception):
            raise ValueError(f"expected finite data, got {count} values that are nan or infinite ({_line(trace)})")
        traces = PairedTraces(trace, trace, plate)
        for site in sample_sites(trace):
            if not traces.log_prob(site).isfinite().all():
                raise ValueError(
                    f"expected finite data, got {count} values that are nan or infinite, at {int(bad.sum())} points, "
                    f"which make log p of {site['name']!r} so; mask them (obs_mask=, or poutine.mask) or leave them out"
                )


def _tensors(data: PointData) -> list[str]:
    return [name for name, is_data in zip(data.names, data.is_data, strict=True) if is_data]


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
