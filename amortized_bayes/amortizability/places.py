"""Where the latents of each point are in a model's trace: in a plate, or in sites that are numbered.

In a plate ``with pyro.plate(...)`` one site holds the latents of all points along a dimension. In a loop
(``pyro.markov``, ``for i in pyro.plate(...)``, a Python loop) each point has sites of its own, ``z_0``, ``z_1``, ...
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from numbers import Number
from typing import Any, NamedTuple

import pyro.poutine as poutine
from torch import Tensor

from amortized_bayes.calls import only_plate
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.traces import checked_frame, no_plate_error, sample_sites

__all__ = ["Latent", "Places", "find_places"]

NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)


class Latent(NamedTuple):
    """A latent site of points.

    Args:
        name: name of the site.
        stem: what sites of the same kind share; the name itself, where one site holds all points.
        discrete: whether its support is.
        axis: dimension of its value, from the left, along which points lie.
        point: the one point that the site belongs to; ``None`` where it holds all.
    """

    name: str
    stem: str
    discrete: bool
    axis: int = 0
    point: int | None = None


class Places(NamedTuple):
    """Points of a model.

    Args:
        plate: the plate in which sites hold all points; empty where sites are numbered.
        num_points: N.
        latents: sites of points.
        outside: latents outside the plate with N entries, which may be one for each point.
    """

    plate: str
    num_points: int
    latents: tuple[Latent, ...]
    outside: tuple[Latent, ...] = ()

    def stem(self, name: str) -> str:
        """What a site shares with those of the same kind."""
        return name if self.plate else _stem(name)[0]


def find_places(trace: poutine.Trace, wanted: str | None) -> Places:
    """Find the points of a model in its trace.

    Raises:
        TypeError: values of sites that are no tensors.
        ValueError: no plate and no numbered sites, several plates that may be meant, one that draws a subsample or has
            no size.
    """
    sites = list(sample_sites(trace))
    for site in sites:
        if not isinstance(site["value"], (Tensor, Number)):
            kind = type(site["value"]).__name__
            raise TypeError(f"expected tensors or arrays as values of sites, got a {kind} at {site['name']!r}")
    frames = [frame for site in sites for frame in site["cond_indep_stack"]]
    for frame in frames:
        if frame.size != frame.full_size:
            raise ValueError(
                f"expected a model of all its points, got a plate {frame.name!r} that takes {frame.size} of "
                f"{frame.full_size}: what ties a point to those left out cannot be seen; leave the subsampling out"
            )
    numbered = _numbered(sites) if wanted is None else None
    if numbered is not None and not any(frame.dim is None for frame in frames):
        inside = {frame.name for site in sites if not site["is_observed"] for frame in site["cond_indep_stack"]}
        if not inside:  # of the plates, if any, none has a latent in it
            return numbered
    if not frames:
        raise no_plate_error(trace, wanted or "data")
    plate = only_plate(trace, wanted)
    if any(frame.name == plate and frame.dim is None for frame in frames):
        return _of_loop(sites, plate)
    counts = {frame.size for site in sites if (frame := checked_frame(site, plate)) is not None}
    if len(counts) != 1:
        raise ValueError(f"expected plate {plate!r} of one size, got sizes {', '.join(map(str, sorted(counts)))}")
    count = counts.pop()
    latents, outside = [], []
    for site in sites:
        if site["is_observed"]:
            continue
        frame, value = plate_frame(site, plate), site["value"]
        if frame is not None:
            axis = value.dim() - site["fn"].event_dim + frame.dim
            latents.append(Latent(site["name"], site["name"], site["fn"].support.is_discrete, axis))
        elif (axis := next((d for d in range(value.dim()) if value.shape[d] == count), None)) is not None:
            outside.append(Latent(site["name"], site["name"], site["fn"].support.is_discrete, axis))
    return Places(plate, count, tuple(latents), tuple(outside))


def _of_loop(sites: list[Any], plate: str) -> Places:
    """Points of ``for i in pyro.plate(...)``: each turn is one."""
    turns = {site["name"]: plate_frame(site, plate).counter for site in sites if plate_frame(site, plate) is not None}
    order = {turn: place for place, turn in enumerate(sorted(set(turns.values())))}
    latents = [
        Latent(s["name"], _stem(s["name"])[0], s["fn"].support.is_discrete, point=order[turns[s["name"]]])
        for s in sites
        if s["name"] in turns and not s["is_observed"]
    ]
    return Places("", len(order), tuple(latents))


def _numbered(sites: list[Any]) -> Places | None:
    """Points by the numbers in the names of sites, where both latent and observed sites have such."""
    latent, observed = (dict(_numbers(sites, observed=kind)) for kind in (False, True))
    numbers = sorted({number for _, number in latent.values()})
    seen = {number for _, number in observed.values()}
    if len(numbers) < 2 or len(seen.intersection(numbers)) < 2:
        return None
    order = {number: place for place, number in enumerate(numbers)}
    of_site = {site["name"]: site for site in sites}
    return Places(
        "",
        len(numbers),
        tuple(
            Latent(name, stem, of_site[name]["fn"].support.is_discrete, point=order[number])
            for name, (stem, number) in latent.items()
        ),
    )


def _numbers(sites: list[Any], *, observed: bool) -> Iterator[tuple[str, tuple[str, int]]]:
    """Stem and number of each site whose stem has several numbers."""
    found = {s["name"]: _stem(s["name"]) for s in sites if s["is_observed"] == observed}
    stems = [stem for stem, number in found.values() if number is not None]
    for name, (stem, number) in found.items():
        if number is not None and stems.count(stem) > 1:
            yield name, (stem, number)


def _stem(name: str) -> tuple[str, int | None]:
    """``z_*`` and 3 of ``z_3``, by the last number in the name."""
    found = NUMBERED.fullmatch(name)
    if found is None:
        return name, None
    before, number, after = found.groups()
    return f"{before}*{after}", int(number)
