"""The latent sites of a model, read off one trace: what a guide must provide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from amortized_bayes.calls import PerPointNames
from amortized_bayes.entrance import enter
from amortized_bayes.enumeration import is_marked, without
from amortized_bayes.limits import limited
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.signatures import own_options
from amortized_bayes.supports import has_own_bounds, moves_with_parameters, same_for_all, same_in_draws, support_of
from amortized_bayes.traces import no_plate_error, sample_sites
from amortized_bayes.types import LatentSite, Model, NestedPlate

__all__ = ["LatentSites", "latent_sites"]

EDGE = 10.0
"""How far out a start may be on the unconstrained space of a bounded support: further out float32 has zeros."""


class LatentSites(NamedTuple):
    """Latent sites of a model inside and outside the plate over data points.

    ``shared_draw`` is one draw of the shared sites from their priors, on the unconstrained space: a start for guides.
    """

    local: list[LatentSite]
    shared: list[LatentSite]
    shared_draw: dict[str, Tensor]


@own_options
@limited
def latent_sites(
    model: Model, *args: Any, plate: str | None = None, per_point: PerPointNames = None, **kwargs: Any
) -> LatentSites:
    """Run the model and list its latent sites, without those that it marks for enumeration.

    Args:
        model: Pyro program with a plate over data points.
        args: arguments of the model, data of at least one point.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        kwargs: keyword arguments of the model.

    Raises:
        ValueError: no such plate, a discrete latent site that is not enumerated, or a local site inside a further plate
            that is a loop or draws a part of itself; a support that moves from draw to draw, from point to point, or
            with parameters.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> [(site.name, tuple(site.event_shape)) for site in ab.latent_sites(model, x).local]
        [('z', (2,))]
    """
    entered = enter(latent_sites, model, None, args, kwargs, plate=plate, per_point=per_point, whole=True)
    plate = entered.plate
    with torch.no_grad():
        trace = poutine.trace(entered.model).get_trace(*entered.args, **entered.kwargs)
    if not any(plate_frame(site, plate) for site in sample_sites(trace)):
        raise no_plate_error(trace, plate)
    found = LatentSites([], [], {})
    for site, latent in _latents(trace, plate):
        if plate_frame(site, plate) is not None:
            found.local.append(latent)
        else:
            found.shared.append(latent)
            found.shared_draw[latent.name] = _start_at(latent, site["value"].detach())
    sites = {latent.name: latent for latent in (*found.shared, *found.local)}
    if any(has_own_bounds(latent.support) for latent in sites.values()):
        with torch.enable_grad(), torch.random.fork_rng():
            again = poutine.trace(entered.model).get_trace(*entered.args, **entered.kwargs)
        for _, latent in _latents(again, plate):
            if moves_with_parameters(latent.support):
                raise ValueError(
                    f"expected the support of latent {latent.name!r} to stay as it is, got bounds that move with "
                    "parameters of the model, which are fitted: draw it on one support, such as (0, 1), and move it "
                    "from there"
                )
            if latent.name in sites:
                same_in_draws(latent.name, sites[latent.name].support, latent.support)
    return found


def _latents(trace: poutine.Trace, plate: str) -> Iterator[tuple[Any, LatentSite]]:
    for site in sample_sites(trace):
        if not (site["is_observed"] or is_marked(site, plate)):
            yield site, _describe(site, plate)


def _start_at(latent: LatentSite, value: Tensor) -> Tensor:
    """A draw on the unconstrained space; one at the edge of its support, as of a sparse Dirichlet, a little inside."""
    start = biject_to(latent.support).inv(value)
    unbounded = start.shape == value.shape and torch.equal(start, value)
    return start if unbounded else start.nan_to_num(nan=0.0).clamp(-EDGE, EDGE)


def _describe(site: Any, plate: str) -> LatentSite:
    if site["fn"].support.is_discrete:
        raise ValueError(
            f"expected continuous latent sites, got the discrete site {site['name']!r} "
            f"({type(site['fn']).__name__}): {without(site)}"
        )
    shape = site["fn"].event_shape if plate_frame(site, plate) is not None else site["value"].shape
    support = support_of(site)
    missing = len(shape) - support.event_dim
    if missing > 0:
        support = constraints.independent(support, missing)
    frame = plate_frame(site, plate)
    if frame is None:
        return LatentSite(site["name"], shape, support)
    support = same_for_all(site["name"], support, frame.dim)
    batch = list(site["fn"].batch_shape)
    del batch[len(batch) + frame.dim]
    return LatentSite(site["name"], shape, support, frame.dim, tuple(batch), tuple(_further_plates(site, plate)))


def _further_plates(site: Any, plate: str) -> Iterator[NestedPlate]:
    """Plates in which a local site lies as well, of a size that does not change with the points."""
    for frame in site["cond_indep_stack"]:
        if frame.name == plate:
            continue
        if frame.dim is None or frame.size < 0 or frame.size != frame.full_size:
            raise ValueError(
                f"expected plate {frame.name!r} of local site {site['name']!r} to be whole, of a fixed size and no "
                "loop; use .to_event() for its dimension"
            )
        yield NestedPlate(frame.name, frame.size, frame.dim)
