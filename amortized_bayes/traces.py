"""A guide's trace and its model's, run one after the other: what fits together, and the densities of their sites."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from pyro.distributions import Delta, MaskedDistribution, Unit
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Independent
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from amortized_bayes.enumeration import Expectation, SummedOut, enumerated_trace, is_enumerated, sum_out, without
from amortized_bayes.guides.autoguides import as_per_point
from amortized_bayes.masks import adopt_mask, adopt_scale, is_masked, scored_value
from amortized_bayes.program_errors import ProgramError, said_of
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.types import Guide, Model

__all__ = [
    "PairedTraces",
    "checked_frame",
    "is_deterministic",
    "match_traces",
    "no_plate_error",
    "pair_with",
    "sample_sites",
    "trace_guide",
    "trace_pair",
    "unwrapped",
]


class PairedTraces(NamedTuple):
    """A guide's trace, the model's trace replayed on it, and the plate over data points they share.

    ``expectation`` averages over the sites that the guide enumerates, ``None`` where it draws all.
    """

    guide: poutine.Trace
    model: poutine.Trace
    plate: str
    expectation: Expectation | None = None

    def local_sites(self, trace: poutine.Trace, *, observed: bool) -> Iterator[Any]:
        """Sample sites inside the plate."""
        return (
            s for s in sample_sites(trace) if s["is_observed"] == observed and plate_frame(s, self.plate) is not None
        )

    def shared_sites(self, trace: poutine.Trace) -> Iterator[Any]:
        """Sample sites outside the plate, observed or not."""
        return (s for s in sample_sites(trace) if plate_frame(s, self.plate) is None)

    def log_prob(self, site: Any) -> Tensor:
        """Log density of a site: ``(S·B,)`` inside the plate, ``()`` outside, the plate's subsampling undone."""
        with said_of(f"density of {site['name']!r}", (site["value"],), {}):
            return self.reduce(site, site["fn"].log_prob(scored_value(site), *site["args"], **site["kwargs"]))

    def reduce(self, site: Any, values: Tensor) -> Tensor:
        """Mask, scale and sum a site's ``values`` (of its batch shape) over every dimension but the plate's.

        Masks and scales set by the user stay in. Only the scale of our own plate is divided out, which
        ``unscaled_log_prob`` cannot do: it drops masks too.
        """
        scale = self.own_scale(site)
        if site["mask"] is not None:
            values = torch.where(torch.as_tensor(site["mask"]), values, values.new_zeros(()))
        if not (isinstance(scale, float) and math.isclose(scale, 1.0, rel_tol=1e-12)):
            values = values * scale
        return self.sum_to_plate(site, values)

    def sum_to_plate(self, site: Any, values: Tensor) -> Tensor:
        """Sum ``values`` of a site's batch shape over every dimension but the plate's, or over all outside it."""
        plates = (frame.name for frame in site["cond_indep_stack"])
        return self._per_point(values, plate_frame(site, self.plate), site["name"], plates)

    def summed_out(self) -> SummedOut:
        """Log likelihood and log prior of the sites that enumeration joins, ``(S·B,)``; ``()`` where there are none."""
        found = sum_out(self.model, self.plate, self.own_scale, self.guide)
        if not found.names:
            return found
        name = min(found.names)
        frame = plate_frame(self.model.nodes[name], self.plate)
        return SummedOut(found.names, *(self._per_point(part, frame, name, (self.plate,)) for part in found[1:]))

    def log_prior_and_likelihood(self) -> tuple[Tensor, Tensor]:
        """Log p(z) and log p(x|z) of the model's sites inside the plate, ``(S·B,)``, or ``()`` where there are none."""
        joined = self.summed_out()
        parts = []
        for observed, own in ((False, joined.log_prior), (True, joined.log_likelihood)):
            sites = joined.others(self.local_sites(self.model, observed=observed))
            terms = [*([own] if joined.names else []), *(self.log_prob(site) for site in sites)]
            parts.append(sum(terms[1:], start=terms[0]) if terms else torch.zeros(()))
        return parts[0], parts[1]

    def _per_point(self, values: Tensor, frame: Any, name: str, plates: Iterable[str]) -> Tensor:
        if self.expectation is not None:
            values = self.expectation(name, values, plates)
        if frame is None:
            return values.sum()
        if values.dim() < -frame.dim or values.shape[frame.dim] != frame.size:
            batch = torch.broadcast_shapes(values.shape, (frame.size,) + (1,) * (-frame.dim - 1))
            values = values.expand(batch)
        return values.movedim(frame.dim, 0).reshape(frame.size, -1).sum(-1)

    def own_scale(self, site: Any) -> Any:
        """Scale of a site without that of our plate: 1, or what the user set."""
        frame = plate_frame(site, self.plate)
        return site["scale"] if frame is None else site["scale"] * (frame.size / frame.full_size)

    def plate_sizes(self) -> tuple[int, int]:
        """Size of the batch and full size N of the plate."""
        for site in sample_sites(self.model):
            frame = plate_frame(site, self.plate)
            if frame is not None:
                return frame.size, frame.full_size
        raise no_plate_error(self.model, self.plate)


def trace_pair(
    model: Model,
    guide: Guide,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plate: str = "data",
    *,
    expectation: bool = False,
) -> PairedTraces:
    """Trace the guide, replay the model on it, and check that they fit together.

    Sites that the model enumerates are; those that the guide does are drawn, unless an exact ``expectation`` over them
    is asked for.

    Raises:
        ValueError: as :func:`~amortized_bayes.weights.log_weights`.
    """
    if expectation:
        guide = as_per_point(guide, plate)
        with said_of("guide", args, kwargs):
            guide_trace = enumerated_trace(guide, args, kwargs, plate, guide, model)
    else:
        guide_trace = trace_guide(guide, args, kwargs, plate)
    return pair_with(model, guide_trace, args, kwargs, plate)


def trace_guide(guide: Guide, args: tuple[Any, ...], kwargs: dict[str, Any], plate: str) -> poutine.Trace:
    """Trace a guide, with a draw of each of its latents."""
    guide = as_per_point(guide, plate)
    with said_of("guide", args, kwargs):
        return poutine.trace(guide).get_trace(*args, **kwargs)


def pair_with(
    model: Model, guide_trace: poutine.Trace, args: tuple[Any, ...], kwargs: dict[str, Any], plate: str
) -> PairedTraces:
    """Replay the model on a guide's trace, which is masked and scaled as the model is; errors as :func:`trace_pair`."""
    replayed = poutine.replay(model, trace=guide_trace)
    try:
        with said_of("model, with the guide's draws,", args, kwargs):
            model_trace = enumerated_trace(replayed, args, kwargs, plate, model, guide=guide_trace)
    except ProgramError as error:
        if (misfit := _misfit(model, guide_trace, args, kwargs, plate)) is None:
            raise
        raise misfit from error
    averaged = any(is_enumerated(site) for site in guide_trace.nodes.values())
    traces = PairedTraces(guide_trace, model_trace, plate, Expectation(guide_trace) if averaged else None)
    match_traces(traces)
    return traces


def _misfit(
    model: Model, guide: poutine.Trace, args: tuple[Any, ...], kwargs: dict[str, Any], plate: str
) -> ValueError | None:
    """Where a model runs by itself but not on a guide's draws: the first draw of another size or shape than its own."""
    try:
        with torch.random.fork_rng():
            trace = poutine.trace(model).get_trace(*args, **kwargs)
    except Exception:  # the data are to blame, and the error at hand says so
        return None
    drawn: Any = guide.nodes
    for site in sample_sites(trace):
        twin = drawn.get(site["name"])
        if twin is not None and twin["is_observed"] and not site["is_observed"]:
            return ValueError(
                f"the guide gives {site['name']!r} a value without drawing it, which is a latent of the model: "
                "expected it drawn, or reparametrized in model and guide alike"
            )
        if site["is_observed"] or twin is None or is_enumerated(twin):
            continue
        sizes = [frame and frame.size for frame in (plate_frame(twin, plate), plate_frame(site, plate))]
        if None not in sizes and sizes[0] != sizes[1]:
            return ValueError(
                f"the guide draws {site['name']!r} of {sizes[0]} points, expected {sizes[1]}, as the model has: size "
                f"its plate by the data, pyro.plate({plate!r}, len(x))"
            )
        shapes = [tuple(one["value"].shape) for one in (twin, site)]
        if shapes[0] != shapes[1]:
            return ValueError(
                f"the guide draws {site['name']!r} of shape {shapes[0]}, expected {shapes[1]}, as the model has it"
            )
    return None


def sample_sites(trace: poutine.Trace) -> Iterator[Any]:
    """All sample sites of a trace, latent or observed, without the plates' own and functions of others."""
    return (
        s
        for s in trace.nodes.values()
        if s["type"] == "sample" and not isinstance(s["fn"], _Subsample) and not is_deterministic(s)
    )


def is_deterministic(site: Any) -> bool:
    """Whether a site is a function of others: ``pyro.deterministic``, or what reparametrization leaves of a latent."""
    fn = site["fn"]
    left = site["is_observed"] and isinstance(fn, MaskedDistribution) and isinstance(unwrapped(fn.base_dist), Delta)
    return bool((site["infer"] or {}).get("_deterministic")) or (left and fn._mask is False)


def match_traces(traces: PairedTraces) -> None:
    """Raise the one error that explains why model and guide do not fit; mask and scale the guide as the model is.

    What a guide observes beside its draws is a density of data (classifiers that are trained with it, say) and no part
    of q: it is taken out of the guide's trace.
    """
    inside = {s["name"] for s in sample_sites(traces.model) if plate_frame(s, traces.plate) is not None}
    if not inside:
        raise no_plate_error(traces.model, traces.plate)
    for site in sample_sites(traces.model):
        frame = checked_frame(site, traces.plate)
        if site["is_observed"]:
            continue
        twin = traces.guide.nodes.get(site["name"])
        if twin is None:
            if is_enumerated(site):
                continue
            hint = without(site)
            raise ValueError(f"the guide misses the model's latent site {site['name']!r}" + (hint and f": {hint}"))
        if (plate_frame(twin, traces.plate) is None) != (site["name"] not in inside):
            where = ("outside", "inside") if site["name"] in inside else ("inside", "outside")
            raise ValueError(
                f"site {site['name']!r} is {where[0]} plate {traces.plate!r} in the guide but {where[1]} in the model"
            )
        if frame is not None and frame.dim != (own := plate_frame(twin, traces.plate).dim):
            raise ValueError(
                f"site {site['name']!r} has plate {traces.plate!r} at dim={own} in the guide but dim={frame.dim} "
                "in the model"
            )
        if site["name"] in inside and isinstance(twin["fn"], Delta) and (joint := _joint_draw(traces)) is not None:
            raise ValueError(
                f"the guide draws {site['name']!r} of all points in one site, {joint!r}: a point has no weight of its "
                f"own; expected draws inside plate {traces.plate!r}, as of AutoNormal"
            )
        if not _fits(site):
            raise ValueError(
                f"the guide draws {site['name']!r} of shape {tuple(site['value'].shape)}, all points together; "
                f"expected {tuple(site['fn'].shape())}, as the model has it"
            )
        if site["name"] in inside and isinstance(unwrapped(twin["fn"]), Delta):
            _refuse_parts_masked(traces, site)
        adopt_mask(site, twin)
        adopt_scale(traces.own_scale(site), traces.own_scale(twin), twin)
    latent = {s["name"] for s in sample_sites(traces.model) if not s["is_observed"]}
    for site in sample_sites(traces.guide):
        if not (site["is_observed"] or site["name"] in latent or site["infer"].get("is_auxiliary")):
            raise ValueError(
                f"the guide samples {site['name']!r}, which the model does not; "
                "expected infer={'is_auxiliary': True} if that is meant"
            )
    _leave_out_data(traces.guide)


def _refuse_parts_masked(traces: PairedTraces, site: Any) -> None:
    """Refuse a masked latent that the guide makes of a draw of others too: that draw has no density without it."""
    if get_proxy_mode() is not None or not is_masked(site):  # looked at before, when a step was run
        return
    drawn = (s["name"] for s in traces.local_sites(traces.guide, observed=False) if s["infer"].get("is_auxiliary"))
    if (name := next(drawn, None)) is not None:
        raise ValueError(
            f"the model masks {site['name']!r}, which the guide makes of the auxiliary draw {name!r}: expected a site "
            "of its own for it, whose density can be masked alike"
        )


def unwrapped(fn: Any) -> Any:
    """A distribution without what ``to_event`` put around it."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def checked_frame(site: Any, plate: str) -> Any:
    """The frame of a site in the plate over data points, ``None`` outside.

    Raises:
        ValueError: a plate that is a loop, or one without a size in which the site has no row per point.
    """
    frame = plate_frame(site, plate)
    if frame is not None and frame.dim is None:
        raise ValueError(f"plate {plate!r} is sequential; expected `with pyro.plate(...)`, got `for ... in`")
    if frame is not None and frame.size == -1:
        raise ValueError(
            f"plate {plate!r} has no size and {site['name']!r} in it no row per point; size it, "
            f"pyro.plate({plate!r}, len(x))"
        )
    return frame


def _leave_out_data(guide: poutine.Trace) -> None:
    """Take densities of data out of a guide's trace, and refuse factors that belong to no draw."""
    for site in [s for s in sample_sites(guide) if s["is_observed"]]:
        if not isinstance(site["fn"], (Delta, Unit)):
            guide.remove_node(site["name"])
        elif isinstance(site["fn"], Unit) and not site["fn"].has_rsample:
            name = site["name"]
            raise ValueError(
                f"expected factors of a guide to be log densities of its draws (has_rsample=True), got {name!r}; hide "
                f"a term of the training loss from this call: pyro.poutine.block(guide, hide=[{name!r}])"
            )


def _fits(site: Any) -> bool:
    """Whether a value put into the model has the shape of its site; others broadcast to weights of no point.

    Dimensions that enumeration put to the left of either do not matter.
    """
    shape, drawn = site["fn"].shape(), site["value"].shape
    events = len(site["fn"].event_shape)
    pairs = enumerate(zip(reversed(shape), reversed(drawn), strict=False))
    if is_enumerated(site):
        return True
    return len(drawn) >= events and all(a == b or (a == 1 and place >= events) for place, (a, b) in pairs)


def _joint_draw(traces: PairedTraces) -> str | None:
    """The auxiliary site outside the plate from which a guide's local sites are made, as joint autoguides do."""
    drawn = [s for s in sample_sites(traces.guide) if s["infer"].get("is_auxiliary") and not s["is_observed"]]
    if any(plate_frame(s, traces.plate) is not None for s in drawn):  # what is outside is of the shared latents
        return None
    return next((s["name"] for s in drawn), None)


def no_plate_error(trace: poutine.Trace, plate: str) -> ValueError:
    """The error for a model without the plate, naming the plates that it has."""
    names = sorted({f.name for s in sample_sites(trace) for f in s["cond_indep_stack"]})
    found = ", ".join(map(repr, names)) if names else "none"
    return ValueError(
        f"expected a model with sample sites in a plate {plate!r} over data points, found plates: {found}"
    )
