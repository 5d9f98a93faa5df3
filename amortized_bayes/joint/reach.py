r"""Whether a guide draws wherever the posterior has mass.

Weights p(x, z)/q(z) have the mean p(x) only where q is positive wherever p(x, z) is. Of a guide that has bounds where
the model has none they miss

.. math:: \int_{q(z) = 0} p(x, z)\,dz,

and are well-behaved all the same, so that neither their spread nor k̂ tells. So the draws are reflected in the bounds,
:math:`z' = Tz`, which keeps volumes, and what lies on the other side is estimated by weights of the same draws:

.. math::
    \frac{\int_{TQ} p(x, z)\,dz}{\int_Q p(x, z)\,dz} \approx \frac{\sum_s p(x, Tz_s)/q(z_s)}{\sum_s p(x, z_s)/q(z_s)}.

One number of a latent is reflected, or all of its numbers; regions of both kinds are apart, so that their sum is at
most what is missed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.distributions import Delta
from torch import Tensor

from amortized_bayes.guides.autoguides import as_per_point
from amortized_bayes.joint.density import plate_to_front
from amortized_bayes.shared_draw import SharedDraw, plate_frame
from amortized_bayes.supports import ends_of, support_of
from amortized_bayes.traces import PairedTraces, trace_pair, unwrapped
from amortized_bayes.types import Guide, Model

__all__ = ["check_reach"]

DRAWS = 100
"""Draws of each point that are reflected."""
MISSED = 0.01
"""Nats of log p(x) that may lie beyond the bounds of a guide."""

Ends = tuple[Any, Any]


def check_reach(model: Model, guide: Guide, args: tuple[Any, ...], kwargs: dict[str, Any], plate: str) -> None:
    """Refuse a guide with bounds of its own beyond which the posterior of a point goes on.

    The guide may have bounds where p(x, z) ends, or is next to nothing. Torch's global generator draws.

    Raises:
        ValueError: p(x, z) goes on.
    """
    guide = as_per_point(guide, plate)
    with torch.no_grad(), SharedDraw(plate):
        bounds = _narrower(trace_pair(model, guide, args, kwargs, plate))
        for name, ends in bounds.items():
            runs = [_reflected(model, guide, args, kwargs, plate, (name, *ends)) for _ in range(DRAWS)]
            inside, outside = (torch.stack(part).logsumexp(0) for part in zip(*runs, strict=True))
            missed = torch.logaddexp(inside, outside) - inside  # nats of log p(x)
            count = int((missed > MISSED).sum())
            if count:
                raise ValueError(
                    f"expected a guide that draws wherever the posterior has mass, got {name!r} on {_words(ends[0])} "
                    f"alone, where the model has it on {_words(ends[1])}: at {count} of {len(missed)} points weights "
                    f"leave out what lies beyond, {missed.nan_to_num().max():.2g} nats of log p(x) at the worst, and "
                    "k̂ cannot tell; draw it on the whole support; `elbo` alone is a bound with any guide"
                )


def _narrower(traces: PairedTraces) -> dict[str, tuple[Ends, Ends]]:
    """Bounds of the guide and of the model, of latents inside the plate where the former are narrower."""
    found: dict[str, tuple[Ends, Ends]] = {}
    models: Any = traces.model.nodes
    for twin in traces.local_sites(traces.guide, observed=False):
        site = models.get(twin["name"])
        if site is None or isinstance(unwrapped(twin["fn"]), Delta):
            continue
        try:
            own, ends = ends_of(support_of(twin)), ends_of(support_of(site))
        except ValueError:  # of a support that is not known nothing is known against it
            continue
        if own is not None and ends is not None and any(bool(side.any()) for side in _sides(own, ends)):
            found[twin["name"]] = (own, ends)
    return found


def _sides(own: Ends, ends: Ends) -> tuple[Tensor, Tensor]:
    """Where the guide's lower bound lies above the model's, and its upper one below."""
    low, high, least, most = map(torch.as_tensor, (*own, *ends))
    return low > least, high < most


def _reflected(
    model: Model,
    guide: Guide,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plate: str,
    bounded: tuple[str, Ends, Ends],
) -> tuple[Tensor, Tensor]:
    """Log weights of a draw of each point, ``(B,)``, and of its reflections, summed."""
    name, own, ends = bounded
    traces = trace_pair(model, guide, args, kwargs, plate)
    node: Any = traces.guide.nodes[name]
    sites = [s for observed in (False, True) for s in traces.local_sites(traces.guide, observed=observed)]
    log_q = sum((traces.log_prob(site) for site in sites), start=torch.zeros(()))
    inside, outside = torch.add(*traces.log_prior_and_likelihood()) - log_q, []
    for value, moved, times in _reflections(node, plate, own, ends):
        changed, reflected = traces.guide.copy(), node.copy()
        reflected["value"] = value
        changed.nodes[name] = reflected
        with pyro.validation_enabled(False):  # data may be impossible there, which is an answer and no mistake
            other = trace_pair(model, poutine.replay(guide, trace=changed), args, kwargs, plate)
        beyond = torch.add(*other.log_prior_and_likelihood()) - log_q + math.log(times)
        outside.append(beyond.masked_fill(~moved, -math.inf))
    return inside, torch.stack(outside).logsumexp(0)


def _reflections(node: Any, plate: str, own: Ends, ends: Ends) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Values with numbers reflected, at which points they lie beyond the guide's bounds and within the model's, and how
    many such reflections each stands for.
    """
    value = node["value"]
    numbers = plate_to_front(node, plate, value)[0].numel()
    one = torch.zeros(len(plate_to_front(node, plate, value)), numbers, dtype=torch.bool, device=value.device)
    one.scatter_(1, torch.randint(numbers, (len(one), 1), device=value.device), True)
    for bound, narrow in zip(own, _sides(own, ends), strict=True):
        if not narrow.any():
            continue
        beyond = torch.where(narrow.to(value.device), 2 * torch.as_tensor(bound).to(value) - value, value)
        within = (beyond > torch.as_tensor(ends[0]).to(value)) & (beyond < torch.as_tensor(ends[1]).to(value))
        allowed = within & narrow.to(value.device)
        for which, times in ((torch.ones_like(one), 1), (one, numbers))[: 1 + (numbers > 1)]:
            chosen = _from_front(node, plate, which, value)
            moved = plate_to_front(node, plate, allowed | ~chosen).reshape(len(one), -1).all(-1)
            yield torch.where(chosen & allowed, beyond, value), moved, times


def _from_front(node: Any, plate: str, rows: Tensor, like: Tensor) -> Tensor:
    """Rows of numbers, a point's in each, in the shape of a site's value."""
    front = plate_to_front(node, plate, like)
    batch = like.dim() - node["fn"].event_dim
    return rows.reshape(front.shape).movedim(0, batch + plate_frame(node, plate).dim)


def _words(ends: Ends) -> str:
    low, high = (torch.as_tensor(end) for end in ends)
    return f"({_word(low)}, {_word(high)})"


def _word(bound: Tensor) -> str:
    first = bound.flatten()[0].item()
    return f"{first:g}" if bool((bound == first).all()) else "bounds that differ"
