r"""Which points' latents respond to which other points: cross-point derivatives of log p.

The *response* of a point is how log p(x, z, theta) changes with its own latents: the gradient in those that are
continuous, the difference from another value in those that are discrete. The posterior of z_n given everything else is
known by it. So z_n depends on z_m or x_m, given all the rest, where the response of n moves with them: where

.. math:: \frac{\partial^2 \log p}{\partial z_n\, \partial (z_m, x_m)} \neq 0 .

Derivatives in z_n are automatic, those in (z_m, x_m) are differences between two values far apart, which serve data
and latents that are discrete or enter by a step just as well: latents of another draw, the data row of another point.
What does not depend on point m keeps its response to the last bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.distributions import biject_to

from amortized_bayes.amortizability.places import Latent, Places
from amortized_bayes.calls.hidden import hidden_draws
from amortized_bayes.points import PointData
from amortized_bayes.supports import support_of
from amortized_bayes.traces import PairedTraces, sample_sites
from amortized_bayes.types import Model

__all__ = ["CannotTell", "Probe", "State", "clear", "differences", "halves", "quiet"]

Response = dict[str, Tensor]
"""Of each latent, ``(N, K)`` where its site holds all points, else ``(1, K)``."""
TRIES = 8
"""Draws and permutations until each value or row is another."""


class CannotTell(Exception):
    """Why the dependencies between points cannot be read, and the sites that are in the way."""

    def __init__(self, words: str, *sites: str) -> None:
        super().__init__(words)
        self.sites = sites


@dataclass(frozen=True)
class State:
    """Values of all latents, by name, and the arguments of the model, flattened."""

    values: Mapping[str, Tensor]
    leaves: tuple[Any, ...]


class Probe:
    """A model that is run at given latents and data.

    Args:
        model: Pyro program.
        data: its arguments, and which of them hold rows.
        places: where its points are.
    """

    def __init__(self, model: Model, data: PointData, places: Places) -> None:
        self.model, self.data, self.places = model, data, places
        self.names: tuple[str, ...] = ()  # of all sites, in their order

    def states(self, count: int) -> list[tuple[State, State]]:
        """Pairs of states in which each latent and each data row is another: drawn from the prior, and nearer to 0.

        The prior may be so wide that all its draws lie where densities are flat; so every other state is of standard
        normal draws on the unconstrained space.
        """
        traces = [self._trace(None, self.data.leaves) for _ in range(count + 1)]
        shapes = [{s["name"]: torch.as_tensor(s["value"]).shape for s in sample_sites(trace)} for trace in traces]
        self.names = tuple(shapes[0])
        for other in shapes:
            if differing := sorted(n for n in {**shapes[0], **other} if shapes[0].get(n) != other.get(n)):
                raise CannotTell("the model has other sites, or of other shapes, from run to run", *differing)
        drawn = [
            {s["name"]: _start(s, near=bool(place % 2)) for s in sample_sites(trace) if not s["is_observed"]}
            for place, trace in enumerate(traces)
        ]
        kinds: dict[str, Any] = dict(traces[0].nodes)
        pairs, leaves = [], self.data.leaves
        for first, second in pairwise(drawn):
            other = {**first}
            for latent in self.all_latents:
                fn = kinds[latent.name]["fn"]
                other[latent.name] = _another(first[latent.name], second[latent.name], latent, fn)
            rows = tuple(_other_rows(leaf) if d else leaf for leaf, d in zip(leaves, self.data.is_data, strict=True))
            pairs.append((State(first, leaves), State(other, rows)))
            leaves = rows
        return pairs

    @property
    def all_latents(self) -> tuple[Latent, ...]:
        """Those of points, and those that may be."""
        return (*self.places.latents, *self.places.outside)

    @property
    def num_rows(self) -> int:
        """Rows of the data, 0 where no argument has any."""
        return len(self.data)

    def mixed(self, base: State, other: State, latents: Tensor | None, rows: Tensor | None) -> State:
        """``base`` with the latents of some points, a mask (N,), and some data rows, a mask (R,), of ``other``."""
        values, leaves = dict(base.values), base.leaves
        if latents is not None:
            for latent in self.places.latents:
                mine, theirs = base.values[latent.name], other.values[latent.name]
                if latent.point is None:
                    shape = (-1,) + (1,) * (mine.dim() - latent.axis - 1)
                    values[latent.name] = torch.where(latents.to(mine.device).reshape(shape), theirs, mine)
                elif latents[latent.point]:
                    values[latent.name] = theirs
        if rows is not None:
            flags = self.data.is_data
            pairs = zip(leaves, other.leaves, flags, strict=True)
            leaves = tuple(_where(rows, theirs, mine) if d else mine for mine, theirs, d in pairs)
        return State(values, leaves)

    def moved(self, state: State, order: Tensor) -> State | None:
        """The points of a state in another order; ``None`` where some have latents, or data, that others have not.

        Rows beyond those of the points stay where they are.
        """
        if 0 < self.num_rows < len(order):
            return None
        rest = torch.arange(len(order), max(self.num_rows, len(order)))
        values = dict(state.values)
        by_stem: dict[str, dict[int, str]] = {}
        for latent in self.places.latents:
            if latent.point is None:
                value = state.values[latent.name]
                values[latent.name] = value.index_select(latent.axis, order.to(value.device))
            else:
                by_stem.setdefault(latent.stem, {})[latent.point] = latent.name
        for names in by_stem.values():
            if len(names) < self.places.num_points or len({state.values[n].shape for n in names.values()}) > 1:
                return None
            values.update({name: state.values[names[int(order[point])]] for point, name in names.items()})
        rows = zip(state.leaves, self.data.is_data, strict=True)
        places = torch.cat([order, rest])
        return State(values, tuple(leaf[places.to(leaf.device)] if d else leaf for leaf, d in rows))

    def response(
        self, state: State, other: State, latents: Sequence[Latent] | None = None, sites: Collection[str] = ()
    ) -> Response:
        """How log p, or the part of it in the densities of some sites, changes with the latents of each point."""
        chosen = self.places.latents if latents is None else latents
        smooth = [latent for latent in chosen if not latent.discrete]
        values = {**state.values}
        for latent in smooth:
            values[latent.name] = state.values[latent.name].detach().clone().requires_grad_()
        parts = self._parts(replace(state, values=values), sites)
        total = sum((part.sum() for part in parts), start=torch.zeros(()))
        inputs = [values[latent.name] for latent in smooth]
        if inputs and total.requires_grad:
            found = torch.autograd.grad(total, inputs, allow_unused=True)
        else:
            found = [None] * len(inputs)
        response = {}
        for latent, value, gradient in zip(smooth, inputs, found, strict=True):
            response[latent.name] = _by_point(torch.zeros_like(value) if gradient is None else gradient, latent)
        for latent in chosen:
            if latent.discrete:
                response[latent.name] = self._steps(state, other, latent, parts, sites)
        return response

    def check_data_reached(self, base: State, other: State) -> None:
        """Refuse data that other rows do not change: they are closed over, or all alike.

        Raises:
            CannotTell: there are such.
        """
        every = torch.ones(self.num_rows, dtype=torch.bool)
        before, after = (self._trace(s.values, s.leaves) for s in (base, self.mixed(base, other, None, every)))
        seen: dict[str, Any] = dict(after.nodes)
        latent = {*base.values}
        still = [
            site["name"]
            for site in sample_sites(before)
            if site["name"] not in latent
            and torch.as_tensor(site["value"]).numel()
            and torch.equal(*(torch.as_tensor(s["value"]) for s in (site, seen[site["name"]])))
        ]
        if still:
            raise CannotTell(
                "the data cannot be changed point by point: they are no argument with a row per point, or all rows are "
                "the same; per_point= names arguments of other lengths",
                *still,
            )
        for leaf, changed, is_row, name in zip(
            base.leaves, other.leaves, self.data.is_data, self.data.names, strict=True
        ):
            if is_row and torch.equal(leaf, changed):
                raise CannotTell(f"all rows of argument {name!r} are the same, and are no numbers to move a little")

    def check_same_again(self, state: State) -> torch.dtype:
        """Refuse a model whose log p is another at the same values; the least precise type of its terms.

        Raises:
            CannotTell: it is.
        """
        with hidden_draws() as hidden:
            first, second = (self._parts(state) for _ in range(2))
        if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True)):
            why = (
                f"poutine.block hides {', '.join(map(repr, hidden))}" if hidden else "it has draws outside pyro.sample"
            )
            raise CannotTell(f"log p differs between two runs at the same values: {why}")
        return max((part.dtype for part in first), key=lambda kind: torch.finfo(kind).eps)

    def _steps(self, state: State, other: State, latent: Latent, parts: list[Tensor], sites: Collection[str]) -> Tensor:
        """Difference of log p between another value of a point's discrete latent and its own, for one point at a time.

        Terms of log p are subtracted before they are summed, so that those of other points cancel to the last bit.
        """
        points = range(self.places.num_points) if latent.point is None else [latent.point]
        found = []
        for point in points:
            value, theirs = state.values[latent.name], other.values[latent.name]
            if latent.point is None:
                shape = (-1,) + (1,) * (value.dim() - latent.axis - 1)
                mask = torch.arange(self.places.num_points, device=value.device) == point
                theirs = torch.where(mask.reshape(shape), theirs, value)
            stepped = self._parts(State({**state.values, latent.name: theirs}, state.leaves), sites)
            found.append(sum((b - a).sum() for a, b in zip(parts, stepped, strict=True)))
        return torch.stack([torch.as_tensor(value).detach() for value in found])[:, None]

    def _parts(self, state: State, sites: Collection[str] = ()) -> list[Tensor]:
        """Log densities of some sites, by default all, of each point where one site holds all."""
        trace = self._trace(state.values, state.leaves)
        if {s["name"] for s in sample_sites(trace)} != {*self.names}:
            raise CannotTell("the model has other sites where its latents have other values")
        traces = PairedTraces(trace, trace, self.places.plate)
        return [traces.log_prob(site) for site in sample_sites(trace) if not sites or site["name"] in sites]

    def _trace(self, values: Mapping[str, Tensor] | None, leaves: tuple[Any, ...]) -> poutine.Trace:
        args, kwargs = replace(self.data, leaves=leaves).arguments()
        program = self.model if values is None else poutine.condition(self.model, data=dict(values))
        try:
            return poutine.trace(program).get_trace(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError, KeyError, AssertionError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CannotTell(f"the model cannot be run at other values ({first})") from error


def differences(before: Response, after: Response, latents: Sequence[Latent], count: int) -> Tensor:
    """How much the response of each point changed, (N,): the largest change over the largest of its own entries.

    One that is no longer finite counts as an unclear change.
    """
    found = torch.zeros(count, dtype=torch.float64)
    for latent in latents:
        a, b = before[latent.name].double().cpu(), after[latent.name].double().cpu()
        size = torch.maximum(a.abs(), b.abs()).amax(-1)
        change = (a - b).abs().amax(-1)
        ratio = torch.where(change > 0, change / size.clamp(min=1e-300), torch.zeros_like(change))
        ratio = torch.where(ratio.isfinite(), ratio, torch.full_like(ratio, unclear(before[latent.name].dtype)))
        points = slice(None) if latent.point is None else slice(latent.point, latent.point + 1)
        found[points] = torch.maximum(found[points], ratio)
    return found


def quiet(dtype: torch.dtype) -> float:
    """Largest relative change that is rounding."""
    return 64 * torch.finfo(dtype).eps


def clear(dtype: torch.dtype) -> float:
    """Smallest relative change that cannot be."""
    return torch.finfo(dtype).eps ** 0.5


def unclear(dtype: torch.dtype) -> float:
    """Between the two."""
    return (quiet(dtype) * clear(dtype)) ** 0.5


def halves(count: int) -> Iterator[Tensor]:
    """Masks (N,) such that each point is in one, and not in it, with each other point outside it: 2 log2 N of them."""
    places = torch.arange(count)
    for bit in range(max(1, (count - 1).bit_length())):
        mask = (places >> bit) & 1 == 1
        yield mask
        yield ~mask


def _start(site: Any, *, near: bool) -> Tensor:
    """A draw of a latent; near to 0 on the unconstrained space, where that is asked for and its support has one."""
    value = site["value"].detach()
    if not near or site["fn"].support.is_discrete:
        return value
    try:
        transform = biject_to(support_of(site))
        drawn = transform(torch.randn_like(transform.inv(value)))
    except (NotImplementedError, ValueError):
        return value
    return drawn if drawn.shape == value.shape and drawn.isfinite().all() else value


def _another(value: Tensor, drawn: Tensor, latent: Latent, fn: Any) -> Tensor:
    """Another draw, which of a discrete latent is another value for each point, where it has several."""
    if not latent.discrete:
        return drawn
    axis = latent.axis if latent.point is None else None
    for _ in range(TRIES):
        same = (drawn == value).all() if axis is None else _same_rows(drawn, value, axis)
        if not same.any():
            break
        again = fn.sample()
        drawn = torch.where(same, again.expand_as(value), drawn) if again.dim() <= value.dim() else drawn
    return drawn


def _same_rows(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """Whether all entries of each point are the same, of a shape that broadcasts with both."""
    others = [d for d in range(a.dim()) if d != axis]
    same = a == b
    for d in others:
        same = same.all(d, keepdim=True)
    return same


def _other_rows(leaf: Tensor) -> Tensor:
    """Each row replaced by another row; numbers that are all alike are moved a little, keeping their sign."""
    found = leaf.clone()
    same = torch.ones(len(leaf), dtype=torch.bool, device=leaf.device)
    for _ in range(TRIES):
        drawn = leaf[torch.randperm(len(leaf)).to(leaf.device)]
        found = _where(same.cpu(), drawn, found)
        same = _same_rows(found, leaf, 0).flatten()
        if not same.any():
            return found
    if leaf.is_floating_point():
        part = 0.3 + 0.5 * torch.rand_like(leaf)  # towards 0, which leaves [0, 1] and the positive numbers to no side
        found = _where(same.cpu(), torch.where(leaf == 0, part, leaf * part), found)
    elif leaf.dtype == torch.bool:
        found = _where(same.cpu(), ~leaf, found)
    return found


def _where(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(rows.to(b.device).reshape(-1, *(1,) * (b.dim() - 1)), a, b)


def _by_point(gradient: Tensor, latent: Latent) -> Tensor:
    if latent.point is not None:
        return gradient.reshape(1, -1)
    return gradient.movedim(latent.axis, 0).reshape(gradient.shape[latent.axis], -1)
