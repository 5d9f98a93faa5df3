r"""What a guide makes of auxiliary draws: whether its log q is that of the latents made of them.

For a draw u that is handed on as a latent v = f(u), number for number,

.. math:: \log q(v) = \log q(u) - \log |\det J_f(u)|,

so that the ``Delta`` of v, or a factor of the guide, must hold minus the log determinant of the Jacobian.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import pyro.poutine as poutine
import torch
from pyro.distributions import Delta, Unit
from torch import Tensor
from torch.distributions import biject_to

from amortized_bayes.joint.density import plate_to_front
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.supports import support_of
from amortized_bayes.traces import PairedTraces, sample_sites, unwrapped
from amortized_bayes.types import Guide

__all__ = ["check_auxiliary", "check_factors", "check_jacobians"]

LOOKED_AT = 3
"""Points whose Jacobians are taken."""
MOST_NUMBERS = 256
"""Numbers of a point's draws up to which they are: each takes a gradient."""
TOLERANCE = 0.01
"""Nats."""


def check_auxiliary(traces: PairedTraces, *, inside: bool = True) -> None:
    """Refuse auxiliary draws that the latents on their side of the plate are not made of, number for number.

    q(z) is then a mixture: the weight p(x, z)/(q(u) q(z|u)) has the mean p(x) times the size of u's space. A factor of
    the guide may hold the density of u given z that is missing, as in auxiliary flows. Labels may be handed on.
    """
    sites, models = list(sample_sites(traces.guide)), cast(Any, traces.model.nodes)
    if any(isinstance(site["fn"], Unit) for site in sites):
        return
    side = [s for s in sites if not s["is_observed"] and (plate_frame(s, traces.plate) is not None) == inside]
    drawn = [s for s in side if s["infer"].get("is_auxiliary") and s["name"] not in models]
    made = [models[s["name"]] for s in side if s["name"] in models and isinstance(unwrapped(s["fn"]), Delta)]
    if not drawn:
        return
    for discrete in (False, True):
        given, used = (_numbers([s for s in some if _is_discrete(s) == discrete]) for some in (drawn, made))
        if given > used or (given != used and not discrete):
            size = plate_frame(drawn[0], traces.plate).size if inside else 1
            names = ", ".join(repr(site["name"]) for site in drawn)
            why = (
                "log q(z) is then that of a mixture, which is not there; sum the draw out, or add its density given z "
                "as a factor (has_rsample)"
                if given > used
                else "some of them have all mass at one point, where log p(x, z) bounds nothing; draw them too"
            )
            raise ValueError(
                f"expected latents made of the guide's auxiliary draws, number for number, got {names} of "
                f"{given // size} numbers and {used // size} made of them (Delta): {why}"
            )


def _is_discrete(site: Any) -> bool:
    """Whether a value has a probability: a discrete one, and one that the model has at one point too."""
    return isinstance(unwrapped(site["fn"]), Delta) or site["fn"].support.is_discrete


def _numbers(sites: Iterable[Any]) -> int:
    """Numbers of values on the unconstrained space; discrete ones as they are."""
    free = (s["value"] if _is_discrete(s) else biject_to(support_of(s)).inv(s["value"]) for s in sites)
    return sum(value.numel() for value in free)


def check_factors(traces: PairedTraces) -> None:
    """Refuse factors of a guide all of whose latents have densities of their own: log q is then that of nothing.

    A factor may hold what is missing of a latent that is made of something else, or of an auxiliary draw.
    """
    sites, models = list(sample_sites(traces.guide)), cast(Any, traces.model.nodes)
    for inside in (True, False):
        side = [s for s in sites if (plate_frame(s, traces.plate) is not None) == inside]
        made = (isinstance(unwrapped(s["fn"]), Delta) and s["name"] in models for s in side)
        if any(made) or any(s["infer"].get("is_auxiliary") and not s["is_observed"] for s in side):
            continue
        for site in side:
            if isinstance(site["fn"], Unit) and bool(site["fn"].log_factor.any()):
                raise ValueError(
                    "expected factors of a guide beside latents that are made of auxiliary draws (Delta), got "
                    f"{site['name']!r} where each latent has a density: log q is then that of no distribution; take it "
                    f"out of this call, pyro.poutine.block(guide, hide=[{site['name']!r}])"
                )


def check_jacobians(traces: PairedTraces, guide: Guide, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse latents made of auxiliary draws, number for number, whose log density leaves out how space is stretched.

    Looked at at a few points, on the unconstrained space; not where the draws of a point are very many, or where
    points are made of each other's.

    Args:
        traces: traces of the guide and its model.
        guide: what the first is of.
        args: arguments of that run.
        kwargs: keyword arguments of that run.
    """
    for inside in (True, False):
        drawn, made = _handed_on(traces, inside=inside)
        size = plate_frame(drawn[0], traces.plate).size if drawn and inside else 1
        models = [cast(Any, traces.model.nodes)[name] for name in made]
        if not drawn or not _numbers(drawn) == _numbers(models) <= MOST_NUMBERS * size:
            continue
        with torch.enable_grad(), torch.random.fork_rng():
            found = list(_stretches(traces, guide, args, kwargs, drawn, made))
        if found and all(abs(given - needed) > TOLERANCE + 1e-3 * abs(needed) for needed, given in found):
            needed, given = found[0]
            raise ValueError(
                f"expected {', '.join(map(repr, made))} with the log density of a Delta that the guide makes of "
                f"{', '.join(repr(site['name']) for site in drawn)}, minus the log determinant of the Jacobian, say "
                f"{needed:.4g}, got {given:.4g}: pass it, dist.Delta(value, log_density=...)"
            )


def _handed_on(traces: PairedTraces, *, inside: bool) -> tuple[list[Any], list[str]]:
    """Continuous auxiliary draws of a guide on one side of the plate, and names of the latents that are made there."""
    models = cast(Any, traces.model.nodes)
    side = [s for s in sample_sites(traces.guide) if (plate_frame(s, traces.plate) is not None) == inside]
    drawn = [s for s in side if s["infer"].get("is_auxiliary") and not s["is_observed"] and s["name"] not in models]
    made = [s["name"] for s in side if s["name"] in models and isinstance(unwrapped(s["fn"]), Delta)]
    return [s for s in drawn if not _is_discrete(s)], [name for name in made if not _is_discrete(models[name])]


def _stretches(
    traces: PairedTraces,
    guide: Guide,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    drawn: list[Any],
    made: list[str],
) -> Iterator[tuple[float, float]]:
    """Log density that the latents made of a point's draws need, and the one they have, for a few points."""
    side, ends = plate_frame(drawn[0], traces.plate) is not None, [cast(Any, traces.model.nodes)[name] for name in made]
    free = [biject_to(support_of(site)).inv(site["value"]).detach().clone().requires_grad_() for site in drawn]
    others = [s for s in sample_sites(traces.guide) if not s["is_observed"] and s["name"] not in made]
    values = {s["name"]: biject_to(support_of(s))(leaf) for s, leaf in zip(drawn, free, strict=True)}
    condition = {site["name"]: site["value"].detach() for site in others} | values
    run = poutine.trace(poutine.condition(guide, data=condition)).get_trace(*args, **kwargs)
    again = PairedTraces(run, run, traces.plate)

    def rows(site: Any, value: Tensor) -> Tensor:
        """A row per point, or one of what is outside the plate."""
        value = plate_to_front(site, traces.plate, value) if side else value
        return value.reshape(len(value) if side else 1, -1)

    def log_map(site: Any, start: Tensor) -> Tensor:
        """Log determinant of the map from the unconstrained space to a site's, a point's in a row."""
        transform, batch = biject_to(support_of(site)), site["value"].dim() - site["fn"].event_dim
        whole = transform.log_abs_det_jacobian(start, transform(start))
        return again.sum_to_plate(site, whole.flatten(batch).sum(-1) if whole.dim() > batch else whole).reshape(-1)

    images = [biject_to(support_of(s)).inv(cast(Any, run.nodes)[s["name"]]["value"]) for s in ends]
    image = torch.cat([rows(site, value) for site, value in zip(ends, images, strict=True)], -1)
    factors = [s for s in sample_sites(run) if isinstance(s["fn"], Unit)]
    factors = [s for s in factors if (plate_frame(s, traces.plate) is not None) == side]
    held = [again.log_prob(s).reshape(-1) for s in (*(cast(Any, run.nodes)[name] for name in made), *factors)]
    given = torch.stack(torch.broadcast_tensors(*held)).sum(0).expand(len(image))
    maps = [log_map(site, start) for site, start in zip(drawn, free, strict=True)]
    maps += [-log_map(site, start) for site, start in zip(ends, images, strict=True)]
    for point in torch.linspace(0, len(image) - 1, min(LOOKED_AT, len(image))).long().tolist():
        jacobian = []
        for number in image[point] if image.requires_grad else ():
            slopes = torch.autograd.grad(number, free, retain_graph=True, allow_unused=True, materialize_grads=True)
            whole = torch.cat([rows(site, slope) for site, slope in zip(drawn, slopes, strict=True)], -1)
            if whole.count_nonzero() > whole[point].count_nonzero():  # made of others' draws
                return
            jacobian.append(whole[point])
        log_det = torch.linalg.slogdet(torch.stack(jacobian).double())[1] if jacobian else torch.tensor(-torch.inf)
        needed = (sum(part.expand(len(image))[point] for part in maps) - log_det).item()
        if math.isfinite(needed) and given[point].isfinite():
            yield needed, given[point].item()
