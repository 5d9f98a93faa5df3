r"""``can_amortize``: whether one network that sees only each point's own data can reach the optimum of F-VI.

The optimum nu*_n of a point is a function f(x_n) of its own data where points are conditionally independent given the
latents that they share, and alike: p(theta) prod_n p(z_n, x_n | theta). Where the density ties z_n to other points, f
must see more: the data rows in its Markov blanket, or, where latents are tied to each other, all data that reach it
through them (Margossian & Blei, *Amortized Variational Inference: When and Why?*, UAI 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyro
import torch
from torch import Tensor

from amortized_bayes.amortizability.places import Latent, Places, find_places
from amortized_bayes.amortizability.probing import CannotTell, Probe, State, clear, differences, halves, quiet
from amortized_bayes.calls import PerPointNames, named_rows
from amortized_bayes.limits import limited
from amortized_bayes.points import PointData, as_tensors, has_rows
from amortized_bayes.program_errors import said_of
from amortized_bayes.signatures import check_arguments, check_keywords, own_options
from amortized_bayes.snapshots import snapshot
from amortized_bayes.types import Model

__all__ = ["Amortizability", "Sees", "can_amortize"]

Sees = Literal["own point", "place", "neighbours", "window", "group", "whole series", "nothing", ""]
STATES = 6
"""Pairs of latents and data at which dependencies are looked for."""
AGAIN = 4
"""Pairs without a new tie in a row, after which all are taken to be found."""
MOST_POINTS, MOST_SLOW = 61, 13
"""Points on which a model is tried that follows the rows it is given; fewer where each point is a run of its own. They
are primes, since tables rarely have as many rows."""
SHOWN = 3
"""Names in a sentence."""


@dataclass(frozen=True)
class Amortizability:
    """Whether a network that sees only each point's own data can reach the optimum of F-VI.

    It is true or false as ``can`` is, and false where that is ``None``.

    Args:
        can: whether it can; ``None`` where that cannot be told.
        reason: why, in a sentence.
        sites: the sites that decide it: the latents of points where it can, else those whose densities tie points.
        sees: what f must see: its ``"own point"``; also its ``"place"`` among the points, where points are independent
            but not alike; its ``"neighbours"``, or a wider ``"window"`` of data rows; its ``"group"`` of points; the
            ``"whole series"``; ``"nothing"`` where there is no latent per point; empty where it cannot be told.
        offsets: data rows that f must see for neighbours and windows, counted from the point's own: (0, 1) is x_n and
            x_{n+1}.

    Example:
        >>> import amortized_bayes as ab
        >>> report = ab.Amortizability(False, "z is a random walk.", ("z",), "whole series")
        >>> bool(report), report.can
        (False, False)
    """

    can: bool | None
    reason: str
    sites: tuple[str, ...]
    sees: Sees
    offsets: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.can is True


@own_options
@limited
def can_amortize(
    model: Model, *args: Any, plate: str | None = None, per_point: PerPointNames = None, **kwargs: Any
) -> Amortizability:
    """Decide whether A-VI can close its gap to F-VI on a model, and what its network f must see.

    The model is run about a hundred times, at new draws of latents and data, and left as it was. Points are those
    of a plate, or of sites that are numbered in a loop (``z_0``, ``z_1``, ...). The sites of a trace do not show
    whether points meet inside one of them, so the answer is read off cross-point derivatives of log p: whether those in
    the latents of a point move with the latents and data of any other. A tie is missed only where it has no effect at
    any of the values tried. Where log p is analytic in latents and data such values are a null set; a tie that acts
    only in a small region can be missed. A model that takes any number of rows is tried on the first 61, or 13 where
    latents of points are discrete or sites are numbered; parameters count at the values that they have.

    Args:
        model: Pyro program.
        args: its arguments, data of at least two points.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default all tensors of as many rows as
            there are points.
        kwargs: keyword arguments of the model.

    Returns:
        The verdict, with ``can=None`` where it cannot be told: data that are closed over or all alike and no number,
        other sites from run to run, log p that is not the same at the same values, or not finite.

    Raises:
        TypeError: arguments that the model does not take, or data that are no tensors or arrays.
        ValueError: a model with no plate and no numbered sites, with several plates that may be meant, or with one that
            draws a subsample; fewer than two points.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> report = ab.can_amortize(model, torch.randn(8, 3))
        >>> report.can, report.sites, report.sees
        (True, ('z',), 'own point')
    """
    check_keywords(can_amortize, model, kwargs)
    args, kwargs = as_tensors((args, kwargs))
    check_arguments(model, args, kwargs)
    data = PointData.of(model, args, kwargs)
    put_back = snapshot(model)
    try:
        with torch.random.fork_rng(), pyro.validation_enabled(False):
            torch.manual_seed(0)
            return _verdict(_prepared(model, data, plate, per_point))
    except CannotTell as why:
        return Amortizability(None, f"Cannot tell: {why}.", why.sites, "")
    finally:
        put_back()


def _prepared(model: Model, data: PointData, plate: str | None, per_point: PerPointNames) -> Probe:
    """The model on not too many points, with their places and rows."""
    places = _places(model, data, plate)
    if places.num_points < 2:
        raise ValueError(f"expected data of two points or more, got {places.num_points}")
    data = _with_rows(data, places.num_points, per_point)
    most = MOST_SLOW if any(t.discrete or t.point is not None for t in places.latents) else MOST_POINTS
    if places.num_points > most and any(data.is_data):
        rows = most + len(data) - places.num_points
        leaves = tuple(leaf[:rows] if d else leaf for leaf, d in zip(data.leaves, data.is_data, strict=True))
        few = replace(data, leaves=leaves)
        try:
            of_few = _places(model, few, plate)
        except (ValueError, TypeError, LookupError):  # a model of a size of its own
            of_few = places
        if of_few.num_points == most:
            data, places = few, of_few
    discrete = [latent.name for latent in places.latents if latent.discrete]
    if discrete and places.num_points > MOST_POINTS:
        raise CannotTell(
            f"with discrete latents, expected a plate of the data's size, or of at most {MOST_POINTS} points", *discrete
        )
    return Probe(model, data, places)


def _places(model: Model, data: PointData, plate: str | None) -> Places:
    args, kwargs = data.arguments()
    with said_of("model", args, kwargs), torch.no_grad():
        trace = pyro.poutine.trace(model).get_trace(*args, **kwargs)
    return find_places(trace, plate)


def _with_rows(data: PointData, count: int, per_point: PerPointNames) -> PointData:
    """Which arguments hold rows; those of a series may have one row more than there are latents, or one less."""
    if per_point is not None:
        return named_rows(data, per_point)
    for rows in (count, count + 1, count - 1):
        if any(has_rows(leaf, rows) for leaf in data.leaves):
            return data.with_data([has_rows(leaf, rows) for leaf in data.leaves])
    return data


def _verdict(probe: Probe) -> Amortizability:
    pairs = probe.states(STATES)
    dtype = probe.check_same_again(pairs[0][0])
    probe = _with_latents_outside(probe, pairs, dtype)
    names = tuple(latent.name for latent in probe.places.latents)
    if not names:
        return Amortizability(True, "No point has a latent of its own: there is nothing to amortize.", (), "nothing")
    pairs = [pair for pair in pairs if _finite(probe.response(*pair))]
    if not pairs:
        raise CannotTell("log p or its gradient is not finite at draws from the prior", *names)
    largest, at = _largest(probe, pairs)
    if largest > clear(dtype):
        return _tied(probe, pairs, at, dtype)
    probe.check_data_reached(*pairs[0])
    if largest > quiet(dtype):
        more = "" if dtype == torch.float64 else "; pass model and data in float64"
        raise CannotTell(f"points move each other's derivatives by {largest:.0e}, which may be rounding{more}", *names)
    said = _listed(names)
    if not _alike(probe, pairs, dtype):
        return Amortizability(
            False,
            f"Points are conditionally independent, but not alike: the density of {said} has parameters that differ "
            "from point to point and are no argument; f must see a point's place, or those parameters, too.",
            names,
            "place",
        )
    return Amortizability(
        True,
        f"Points are conditionally independent given what they share, and alike: f can find {said} of each point from "
        "its own data.",
        names,
        "own point",
    )


def _with_latents_outside(probe: Probe, pairs: Sequence[tuple[State, State]], dtype: torch.dtype) -> Probe:
    """Latents outside the plate are those of points where each data row moves the density of its own entry alone.

    Raises:
        CannotTell: it cannot be seen whether a site holds a latent of each point, and there are no others.
    """
    found = []
    for latent in probe.places.outside:
        if any(probe.data.is_data) and len(probe.data) == probe.places.num_points:
            kinds = {_kind_of_outside(probe, latent, *pair, dtype) for pair in pairs}
        else:
            kinds = {"unclear"} if not probe.places.latents else {"shared"}
        if kinds == {"of points"}:
            found.append(latent)
        elif "shared" not in kinds:
            raise CannotTell(
                "it cannot be seen whether a site outside the plate has a latent for each point", latent.name
            )
    twin = Probe(probe.model, probe.data, probe.places._replace(latents=(*probe.places.latents, *found)))
    twin.names = probe.names
    return twin


def _kind_of_outside(probe: Probe, latent: Latent, base: State, other: State, dtype: torch.dtype) -> str:
    """Whether each data row moves the density of one entry of a latent, its own, or of others too, or of none."""
    data = {name for name in probe.names if name not in base.values}
    before = probe.response(base, other, [latent], data)
    if not any(bool(value.any()) for value in before.values()):
        return "shared"
    for mask in halves(probe.places.num_points):
        after = probe.response(probe.mixed(base, other, None, mask), other, [latent], data)
        change = differences(before, after, [latent], probe.places.num_points)
        if float(change[~mask].max()) > quiet(dtype):
            return "shared"
        if float(change[mask].max()) <= clear(dtype):
            return "unclear"
    return "of points"


def _finite(response: dict[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in response.values())


def _rows_of(probe: Probe, mask: Tensor) -> Tensor | None:
    """Data rows of points; those of a series that has a row more belong to the last."""
    if not any(probe.data.is_data):
        return None
    return mask[torch.arange(probe.num_rows).clamp(max=len(mask) - 1)]


def _largest(probe: Probe, pairs: Sequence[tuple[State, State]]) -> tuple[float, tuple[int, Tensor]]:
    """The largest change of a point's response where other points are changed, and at which pair and half."""
    found, at = 0.0, (0, torch.zeros(probe.places.num_points, dtype=torch.bool))
    for place, (base, other) in enumerate(pairs):
        before = probe.response(base, other)
        for mask in halves(probe.places.num_points):
            after = probe.response(probe.mixed(base, other, mask, _rows_of(probe, mask)), other)
            change = differences(before, after, probe.places.latents, probe.places.num_points)
            change = float(change[~mask].max())
            if change > found:
                found, at = change, (place, mask)
    return found, at


def _alike(probe: Probe, pairs: Sequence[tuple[State, State]], dtype: torch.dtype) -> bool:
    """Whether points that change places take their responses with them."""
    count = probe.places.num_points
    order = torch.randperm(count)
    for base, other in pairs:
        moved, moved_other = probe.moved(base, order), probe.moved(other, order)
        if moved is None or moved_other is None:
            return False
        here, there = probe.response(base, other), probe.response(moved, moved_other)
        stems = {latent.stem for latent in probe.places.latents}
        for stem in stems:
            latents = [latent for latent in probe.places.latents if latent.stem == stem]
            a, b = (torch.cat([r[latent.name] for latent in _in_order(latents)]) for r in (here, there))
            change = (a[order.to(a.device)] - b).abs().amax(-1)
            if bool((change > clear(dtype) * torch.maximum(a.abs().max(), b.abs().max())).any()):
                return False
    return True


def _in_order(latents: list[Latent]) -> list[Latent]:
    return sorted(latents, key=lambda latent: latent.point or 0)


def _tied(
    probe: Probe, pairs: Sequence[tuple[State, State]], at: tuple[int, Tensor], dtype: torch.dtype
) -> Amortizability:
    """What f must see where latents of a point depend on other points."""
    sites = _tying_sites(probe, pairs[at[0]], at[1], dtype)
    said, count = _listed(sites), probe.places.num_points
    by_latents, probed = _ties(probe, pairs, dtype, rows=False)
    by_latents &= probed[None, :] != torch.arange(count)[:, None]
    if by_latents.any():
        groups = _groups(by_latents) if len(probed) == count else 1
        away = (probed[None, :] - torch.arange(count)[:, None])[by_latents].abs().max()
        if groups > 1:
            words, sees = f"ties latents of points in {groups} groups: f must see all data of a point's group", "group"
        elif away <= (count - 1) // 2:
            words, sees = (
                "chains the latents of neighbouring points: f must see the whole series, to which a window comes "
                "closer as it grows",
                "whole series",
            )
        else:
            words, sees = "ties the latents of all points to each other: f must see all data", "whole series"
        return Amortizability(False, f"The density of {said} {words}.", sites, sees)
    by_rows, probed = _ties(probe, pairs, dtype, rows=True)
    offsets = (probed[None, :] - torch.arange(count)[:, None])[by_rows]
    around = (offsets + count // 2) % count - count // 2  # the first row follows the last
    most, far, further = (count - 1) // 2, _reach(around), _reach(offsets)
    circle = probe.num_rows == count and 0 < far < most < further
    shown = tuple(sorted(set((around if circle else offsets).tolist())))
    reach = far if circle else further
    if not 0 < reach <= most:
        words = f"The density of {said} ties the latents of points to the data of all others: f must see all data."
        return Amortizability(False, words, sites, "whole series")
    rows = ", ".join("x_n" if offset == 0 else f"x_(n{offset:+d})" for offset in shown)
    enough = ", and no more" if len(shown) > 1 else " alone: pass that as the row of point n"
    enough += ", where the first row follows the last" if circle else ""
    words = f"The density of {said} ties the latents of a point to data of others: f must see {rows}{enough}."
    return Amortizability(False, words, sites, "neighbours" if reach == 1 else "window", shown)


def _reach(offsets: Tensor) -> int:
    return int(offsets.abs().max()) if len(offsets) else 0


def _ties(
    probe: Probe, pairs: Sequence[tuple[State, State]], dtype: torch.dtype, *, rows: bool
) -> tuple[Tensor, Tensor]:
    """Which points, of all N, respond to the latents of one point or to one data row, (N, those tried), and these."""
    count = probe.places.num_points
    size = probe.num_rows if rows else count
    tried = torch.linspace(0, size - 1, min(size, MOST_POINTS + 1)).round().long().unique()
    found = torch.zeros(count, len(tried), dtype=torch.bool)
    without_new = 0
    for base, other in (both for pair in pairs for both in (pair, pair[::-1])):
        known = int(found.sum())
        before = probe.response(base, other)
        for column, place in enumerate(tried):
            mask = torch.arange(size) == place
            state = probe.mixed(base, other, None, mask) if rows else probe.mixed(base, other, mask, None)
            change = differences(before, probe.response(state, other), probe.places.latents, count)
            found[:, column] |= change > clear(dtype)
        without_new = without_new + 1 if int(found.sum()) == known else 0
        if without_new == AGAIN:
            break
    return found, tried


def _groups(ties: Tensor) -> int:
    """Parts of the graph of N points that are not tied to each other."""
    reach = ties | ties.T | torch.eye(len(ties), dtype=torch.bool)
    while not torch.equal(further := (reach.double() @ reach.double()) > 0, reach):
        reach = further
    return len(reach.unique(dim=0))


def _tying_sites(probe: Probe, pair: tuple[State, State], mask: Tensor, dtype: torch.dtype) -> tuple[str, ...]:
    """Sites whose own densities tie points to each other."""
    base, other = pair
    state = probe.mixed(base, other, mask, _rows_of(probe, mask))
    found = []
    for stem in dict.fromkeys(map(probe.places.stem, probe.names)):
        sites = [name for name in probe.names if probe.places.stem(name) == stem]
        before, after = (probe.response(s, other, sites=sites) for s in (base, state))
        change = differences(before, after, probe.places.latents, probe.places.num_points)
        if float(change[~mask].max()) > clear(dtype):
            found += sites
    return tuple(found)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
