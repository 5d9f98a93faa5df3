"""Try a call: whether a model follows the rows that it is given.

The model is run on some of the points, and again on the same points in the other order with their latents: the plate
must hold as many points as were passed, and the log density of each must stay as it was. That tells data that are
closed over, and tables that happen to have N rows, from data that are passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from amortized_bayes.calls.hidden import hidden_draws
from amortized_bayes.point_programs import PointProgram
from amortized_bayes.points import PointData
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.tiling import at_places
from amortized_bayes.traces import PairedTraces, checked_frame, no_plate_error, sample_sites
from amortized_bayes.types import Model

__all__ = ["MOST_NUMBERS", "Refused", "is_random", "line", "only_plate", "refuse_nan", "run", "try_call"]

PROBED = 64
"""Points on which a model is tried first."""
MOST_NUMBERS = 2_000_000
"""Numbers in the points on which it is tried in the end, those of all but large data."""
PAIRS = ([0, 0], [1, 1], [0, 1, 1])
"""Rows of two that show whether one changes with the other: means change with all, a largest value with one of two."""


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


class Refused(ValueError):
    """A guess about arguments that does not hold; ``rank`` says how far it got."""

    def __init__(self, words: str, rank: int) -> None:
        super().__init__(words)
        self.rank = rank


def try_call(model: Model, data: PointData, plate: str | None, any_size: bool) -> tuple[PointData, str]:
    """Whether the rows are where they are said to be."""
    count = len(data)
    if not count:
        raise Refused(f"expected one data point or more, got {data.describe()}", -1)
    every = torch.arange(count, device=data.rows.device)
    few = every[: min(PROBED, max(2, count - 1))]
    first = run(model, data, few)
    if any_size and len(few) < count and (isinstance(first, Exception) or _sizes(first, plate) != {len(few)}):
        few, first = every, run(model, data, every)  # a plate, and what is in it, of a size of its own
    if isinstance(first, Exception):
        words = f"the model cannot take {data.describe()}; expected data as in training"
        whole = run(model, data, every)
        if not isinstance(whole, Exception):
            _refuse_columns(whole, only_plate(whole, plate))
            words = (
                f"the model takes all {count} rows of {', '.join(_tensors(data))} and not {len(few)} of them; size its "
                "plate by the data, `len(x)`, with the points first in what is passed, and close over no data"
            )
        raise Refused(f"{words} ({line(first)})", 1) from first
    name, sizes = only_plate(first, plate), _sizes(first, plate)
    if sizes != {len(few)}:
        got = next(size for size in sizes if size != len(few))
        raise Refused(_other_size(name, got, len(few)), 2)
    _refuse_pairs(first, name)
    _refuse_columns(first, name)
    found = _follow(model, data, first, few, name) or ("mixed" if count == 1 and _mixes_one(model, data, name) else "")
    _follow_to_the_end(model, data, len(few), name)
    counted = len(few) < count and _follows_itself(first, name, len(few))
    missing, state = _missing(model, data, first, few, name), {"mixed": found == "mixed", "noisy": found == "noisy"}
    return replace(data, missing=missing, counted=counted, **state), name


def _refuse_pairs(trace: poutine.Trace, plate: str) -> None:
    """Refuse observations whose shape spreads a distribution over dimensions of no plate: each point meets all others'.

    Pyro's own check of such shapes is among those that are off here, and which grey pixels do not pass.
    """
    for site in sample_sites(trace):
        frame, fn, value = plate_frame(site, plate), site["fn"], site["value"]
        if frame is None or not site["is_observed"]:
            continue
        shapes = [fn.batch_shape, value.shape[: value.dim() - fn.event_dim]]
        most = max(map(len, shapes))
        own, given = (dict(zip(range(-len(shape), 0), shape, strict=True)) for shape in shapes)
        held = {other.dim for other in site["cond_indep_stack"]}
        crossed = [d for d in range(-most, 0) if d not in held and own.get(d, 1) != given.get(d, 1)]
        has_rows = given.get(frame.dim, 1) == frame.size
        if any(dim < frame.dim or (given.get(dim, 1) != 1 and not has_rows) for dim in crossed):
            raise Refused(
                f"values of observed site {site['name']!r} have shape {tuple(value.shape)}, its distribution has "
                f"{tuple(fn.shape())}: together they make a density for each pair of points; expected the same shape, "
                f"with the points at dim {frame.dim} of plate {plate!r}",
                4,
            )


def _refuse_columns(trace: poutine.Trace, plate: str) -> None:
    """Refuse sites whose points are rows and whose plate holds columns, as N rows of N numbers without ``to_event`` do.

    Where N is another number than that of the columns, sizes tell it; here all runs, and columns are taken for points.
    """
    for site in sample_sites(trace):
        frame, fn = plate_frame(site, plate), site["fn"]
        if frame is None or frame.dim is None:  # a loop over points is refused in words of its own
            continue
        held = {other.dim for other in site["cond_indep_stack"]}
        shape = dict(zip(range(-len(fn.batch_shape), 0), fn.batch_shape, strict=True))
        if any(size > 1 and dim < frame.dim and dim not in held for dim, size in shape.items()):
            raise Refused(
                f"site {site['name']!r} has batch shape {tuple(fn.batch_shape)}, of which plate {plate!r} holds dim "
                f"{frame.dim} alone, so that its columns would be taken for points; expected .to_event(1) on its "
                "distribution",
                4,
            )


def _sizes(trace: poutine.Trace, plate: str | None) -> set[int]:
    """Sizes of the plate over data points."""
    name = only_plate(trace, plate)
    try:
        frames = [checked_frame(site, name) for site in sample_sites(trace)]
    except ValueError as error:
        raise Refused(str(error), 4) from error
    return {frame.size for frame in frames if frame is not None}


def run(
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
            found = PairedTraces(trace, trace, plate).log_prob(site)  # with its mask, which may be of another size
            if found.is_complex():
                raise ValueError(f"expected real log densities, got complex ones at site {site['name']!r}")
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        return error
    return trace


def _follow(model: Model, data: PointData, first: poutine.Trace, places: Tensor, plate: str) -> str:
    """Refuse rows in another order at which log p of a point is another.

    Returns:
        What else is wrong: "mixed" where other rows change it; "noisy", or "unsteady" where the model does not run
        twice, which hides the rest; or nothing.
    """
    own = "" if _follows_itself(first, plate, len(places)) else plate
    before = _densities(first, plate)
    every = torch.arange(len(places), device=places.device)
    if random := is_random(model, data, first, places, plate):
        return random  # such as with dropout: then other rows say nothing
    flipped = run(model, data, places.flip(0), _latents_at(first, plate, every.flip(0)), own)
    if isinstance(flipped, Exception) or not _close(before.flip(0), _densities(flipped, plate)):
        raise Refused(
            f"log p of a point in plate {plate!r} does not follow its rows of {', '.join(_tensors(data))}: pass all "
            "data as arguments instead of closing over them, and name those with a row per point, per_point=('x', ...)",
            3,
        )
    half = (len(every) + 1) // 2
    # Two rows are repeated: one alone is what batch norm cannot take, and what a plate of two broadcasts.
    others = [every[at] for at in PAIRS] if len(every) == 2 else [every[:half]]
    for at in others:
        other = run(model, data, places[at], _latents_at(first, plate, at), own)
        if not isinstance(other, Exception) and not _close(before[at], _densities(other, plate)):
            return "mixed"
    return ""


def is_random(model: Model, data: PointData, first: poutine.Trace, places: Tensor | None, plate: str) -> str:
    """Say "noisy" of a model that is random given its latents, "unsteady" of one that does not run on them again.

    Raises:
        ValueError: it is so by latents that ``poutine.block`` hides in it.
    """
    own = "" if places is None or _follows_itself(first, plate, len(places)) else plate
    latents = {site["name"]: site["value"] for site in sample_sites(first) if not site["is_observed"]}
    parts = {name: site["value"] for name, site in first.nodes.items() if _is_part(site)}
    latents |= {name: value for name, value in parts.items() if places is None or name != plate}
    with hidden_draws() as hidden:
        again = run(model, data, places, latents, own)
    random = isinstance(again, Exception) or not _close(_densities(first, plate), _densities(again, plate))
    if random and hidden:
        raise ValueError(
            f"expected latents that a guide can draw, got {', '.join(map(repr, hidden))} hidden by poutine.block in "
            "the model, with which log p(x, z) of a point moves: take the block away, and let the guide draw it too"
        )
    return "unsteady" if isinstance(again, Exception) else "noisy" if random else ""


def _is_part(site: Any) -> bool:
    """Whether a plate draws a part of itself there."""
    return site["type"] == "sample" and isinstance(site["fn"], _Subsample)


def _mixes_one(model: Model, data: PointData, plate: str) -> bool:
    """Whether log p of a lone point changes beside itself with other latents, as particles are beside each other."""
    places = torch.zeros(2, dtype=torch.long, device=data.rows.device)
    twice = run(model, data, places)
    if isinstance(twice, Exception) or _sizes(twice, plate) != {2}:
        return False
    return _follow(model, data, twice, places, plate) == "mixed"


def _latents_at(trace: poutine.Trace, plate: str, at: Tensor) -> dict[str, Tensor]:
    """Latents of those of the trace's points that are at the places ``at`` (B,), and what all points share."""
    found: dict[str, Tensor] = {}
    for site in sample_sites(trace):
        if not site["is_observed"]:
            frame, value = plate_frame(site, plate), site["value"]
            dim = None if frame is None else frame.dim - len(site["fn"].event_shape)
            is_row = dim is not None and value.dim() >= -dim and value.shape[dim] > 1
            found[site["name"]] = value.index_select(dim, at) if is_row else value
    return found


def _follow_to_the_end(model: Model, data: PointData, tried: int, plate: str) -> None:
    """Refuse a plate of another size, and rows that log p does not follow, where only later points show it."""
    per_point = sum(tensor[0].numel() for tensor in data.rows.tensors)
    count = min(len(data), max(tried, MOST_NUMBERS // max(1, per_point)))
    if count == tried:
        return
    places = torch.arange(count, device=data.rows.device)
    trace = run(model, data, places)
    if isinstance(trace, Exception):
        raise Refused(
            f"the model takes {tried} rows of {', '.join(_tensors(data))} and not {count} of them; expected one of any "
            f"number of points, that closes over no data ({line(trace)})",
            2,
        ) from trace
    got = _sizes(trace, plate) - {count}
    if got:
        raise Refused(_other_size(plate, got.pop(), count), 2)
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
    again = run(model, data, places, others, own)
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


def refuse_nan(model: Model, data: PointData, plate: str) -> None:
    """Refuse data that are not finite where they make the log density of a point so, and those that are sparse."""
    for tensor in data.rows.tensors:
        if tensor.layout != torch.strided:
            shape = tuple(tensor.shape)
            raise ValueError(f"expected dense data, got a sparse tensor of shape {shape}; use .to_dense()")
    floats = [t for t in data.rows.tensors if t.is_floating_point()]
    bad = torch.zeros(len(data), dtype=torch.bool, device=data.rows.device)
    for tensor in floats:
        bad |= ~tensor.reshape(len(tensor), -1).isfinite().all(-1)
    count = sum(int((~t.isfinite()).sum()) for t in floats)
    for places in bad.nonzero().flatten().split(1000) if count else ():
        few = places if len(places) > 1 else torch.cat([places, places])
        trace = run(model, data, few)
        if isinstance(trace, Exception):
            trace = run(model, data, few, plate=plate)
        if isinstance(trace, Exception):
            raise ValueError(f"expected finite data, got {count} values that are nan or infinite ({line(trace)})")
        traces = PairedTraces(trace, trace, plate)
        for site in sample_sites(trace):
            if not traces.log_prob(site).isfinite().all():
                raise ValueError(
                    f"expected finite data, got {count} values that are nan or infinite, at {int(bad.sum())} points, "
                    f"which make log p of {site['name']!r} so; mask them (obs_mask=, or poutine.mask) or leave them out"
                )


def _tensors(data: PointData) -> list[str]:
    return [name for name, is_data in zip(data.names, data.is_data, strict=True) if is_data]


def line(error: Exception) -> str:
    """The first line of what it says."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
