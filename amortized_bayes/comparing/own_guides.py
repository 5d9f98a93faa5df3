"""Guides of the user's own in a comparison: checked, called with rows and their places, and kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from amortized_bayes.calls import Bound
from amortized_bayes.guides.autoguides import INSTEAD, check_batches, per_point_guide
from amortized_bayes.guides.registry import GUIDES
from amortized_bayes.joint.auxiliary import check_auxiliary, check_factors, check_jacobians
from amortized_bayes.joint.checks import check_inside, check_masses
from amortized_bayes.point_programs import PointProgram
from amortized_bayes.traces import PairedTraces, trace_pair
from amortized_bayes.training_mode import in_evaluation_mode
from amortized_bayes.types import Guide

__all__ = ["AsFitted", "take_guides"]

PROBED = 64
"""Points on which a guide is tried."""


class AsFitted(nn.Module):
    """A guide as it was fitted, called as its model is. It refuses to run at other parameters than those."""

    def __init__(self, guide: Any) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the guide."""
        return self.guide(*args, **kwargs)


def take_guides(guides: Mapping[str, Guide], model: Any, bound: Bound) -> dict[str, nn.Module]:
    """Guides that can be fitted to batches of points beside others, by name, called with rows and their places.

    Each is run, so that its parameters exist.

    Args:
        guides: guides of the user.
        model: called with rows and their places.
        bound: the arguments of the call.

    Raises:
        ValueError: a name that is one of ours, or a guide that does not take any number of points, in any order.
    """
    taken: dict[str, nn.Module] = {}
    for name, guide in guides.items():
        if name in GUIDES:
            raise ValueError(f"expected another name for a guide of your own than {name!r}, which is one of ours")
        if not callable(guide):
            raise ValueError(f"expected guides[{name!r}] to be a Pyro guide, got {type(guide).__name__}")
        args, kwargs = bound.data.arguments()
        guide = per_point_guide(guide, *args, plate=bound.plate, **kwargs)
        check_batches(guide, f"guides[{name!r}]")
        program = PointProgram(guide, bound.data)
        with in_evaluation_mode(f"guides[{name!r}]", "q(z)"):
            _check(name, program, model, bound)
        taken[name] = program
    return taken


class _Given(Messenger):
    """Latents at given values, which stay latents."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and msg["value"] is None:
            msg["value"] = self.values[msg["name"]]


@torch.no_grad()
def _check(name: str, guide: Any, model: Any, bound: Bound) -> None:
    """Refuse a guide that does not take some of the points alone, or whose q of a point is not that of its row."""
    rows, plate = bound.data.rows, bound.plate
    few = torch.arange(min(PROBED, max(2, len(rows) - 1)), device=rows.device)

    def log_q(places: Tensor, latents: Mapping[str, Tensor] | None = None) -> tuple[Tensor, PairedTraces]:
        with _Given(latents or {}):
            traces = trace_pair(model, guide, (rows[places], places), {}, plate)
        sites = [site for seen in (False, True) for site in traces.local_sites(traces.guide, observed=seen)]
        return torch.stack(torch.broadcast_tensors(*map(traces.log_prob, sites))).sum(0), traces

    try:
        whole = poutine.trace(guide).get_trace(rows, torch.arange(len(rows), device=rows.device))
        first, traces = log_q(few)
        nodes: Any = traces.guide.nodes
        sites = [s for s in traces.local_sites(traces.guide, observed=False)]
        shared = [s for s in traces.shared_sites(traces.guide) if not s["is_observed"]]
        same = {site["name"]: nodes[site["name"]]["value"] for site in (*sites, *shared)}
        flipped = dict(same)
        for site in sites:
            frame = next(f for f in site["cond_indep_stack"] if f.name == plate)
            flipped[site["name"]] = site["value"].flip(frame.dim - len(site["fn"].event_shape))
        again, other = log_q(few, same)[0], log_q(few.flip(0), flipped)[0]
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"guides[{name!r}] cannot be fitted to batches of points ({first_line}); {INSTEAD}") from error
    try:
        check_factors(traces)
        check_auxiliary(traces)
        check_auxiliary(traces, inside=False)
        check_jacobians(traces, guide, (rows[few], few), {})
        check_inside(traces)
        check_masses(traces, [*sites, *shared])
    except ValueError as error:
        raise ValueError(f"guides[{name!r}]: {error}") from error
    if not whole.param_nodes and not any(p.requires_grad for p in guide.parameters()):
        raise ValueError(f"guides[{name!r}] has no parameter to fit: call diagnose(model, guide, ...)")
    if torch.allclose(first, again, 1e-3, 1e-3) and not torch.allclose(first.flip(0), other, 1e-3, 1e-3):
        raise ValueError(f"guides[{name!r}] does not follow the rows that it is given: take `index`, or {INSTEAD}")
