"""What log p(x, z) needs of a model, checked once, with one clear error each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import pyro.poutine as poutine
import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import TransformedDistribution

from amortized_bayes.enumeration import is_enumerated, is_marked, without
from amortized_bayes.joint.auxiliary import check_auxiliary, check_factors, check_jacobians
from amortized_bayes.joint.density import are_bits
from amortized_bayes.masks import is_masked, is_one
from amortized_bayes.program_errors import first_line
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.supports import support_of
from amortized_bayes.traces import PairedTraces, no_plate_error, sample_sites, unwrapped
from amortized_bayes.types import Guide, Model

__all__ = [
    "NoWalk",
    "check_density",
    "check_fixed",
    "check_guide",
    "check_inside",
    "check_latents",
    "check_masses",
    "check_model",
    "check_outside",
    "check_terms",
]


class NoWalk(ValueError):
    """Chains cannot walk on this model's latents, though weights of a guide's draws need no more than it has."""


class _Density(Protocol):
    plate: str

    @property
    def num_points(self) -> int: ...

    def sample_prior(self, num_samples: int) -> Tensor: ...

    def __call__(self, z: Tensor) -> Tensor: ...


def check_fixed(trace: poutine.Trace, plate: str, fixed: Mapping[str, Tensor]) -> None:
    """Refuse names that are no latents outside the plate, and values of another shape."""
    for name, value in fixed.items():
        node: Any = trace.nodes.get(name)
        if node is None or node["type"] != "sample" or plate_frame(node, plate) is not None:
            raise ValueError(f"expected the names in `fixed` to be latents outside plate {plate!r}, got {name!r}")
        if value.shape != node["value"].shape:
            shape = tuple(node["value"].shape)
            raise ValueError(f"expected a value of shape {shape} for {name!r}, got {tuple(value.shape)}")


def check_latents(trace: poutine.Trace, plate: str, *, bits: bool = False) -> None:
    """Refuse a model without local latents, or with one that has no density on the unconstrained space.

    With ``bits`` all of them may be Bernoulli instead.
    """
    if all(plate_frame(node, plate) is None for node in sample_sites(trace)):
        raise no_plate_error(trace, plate)
    latents = [node for node in sample_sites(trace) if not (node["is_observed"] or is_marked(node, plate))]
    if all(plate_frame(node, plate) is None for node in latents):
        raise NoWalk(
            f"expected continuous latents inside plate {plate!r}, got none (enumerated ones are summed out): there is "
            "nothing to infer for each point"
        )
    drawn = [node for node in latents if plate_frame(node, plate) is not None]
    bits = bits and all(are_bits(node["fn"].support) for node in drawn)
    for node in latents:
        if node["fn"].support.is_discrete and not (bits and plate_frame(node, plate) is not None):
            kind = type(unwrapped(node["fn"])).__name__
            raise NoWalk(f"expected continuous latents, got {node['name']!r} of {kind}: {without(node)}")
        if plate_frame(node, plate) is None:
            raise NoWalk(f"latent {node['name']!r} is outside plate {plate!r}; expected its value in `fixed`")
        if is_masked(node):
            raise NoWalk(
                f"latent {node['name']!r} is masked; expected a proper prior for each point: diagnose points with "
                "the same latents (sequences of one length) at a time, and mask a likelihood instead of `obs_mask`"
            )


def check_model(
    model: Model, trace: poutine.Trace, args: tuple[Any, ...], kwargs: Mapping[str, Any], plate: str
) -> None:
    """Refuse a model whose terms do not add up to log p(x, z) of each point: nothing observed, scaled or tied sites."""
    if all(plate_frame(node, plate) is None for node in sample_sites(trace)):
        raise no_plate_error(trace, plate)
    check_terms(trace, plate)
    check_outside(model, trace, args, kwargs, plate)


def check_outside(
    model: Model, trace: poutine.Trace, args: tuple[Any, ...], kwargs: Mapping[str, Any], plate: str
) -> None:
    """Refuse sites outside the plate whose density moves with latents inside: it is no point's, and in no point's gap.

    Args:
        model: what ``trace`` is of.
        trace: a run of it, the latents of which are used.
        args: arguments of that run.
        kwargs: keyword arguments of that run.
        plate: over data points.
    """
    sites = list(sample_sites(trace))
    latents = [s for s in sites if not (s["is_observed"] or is_enumerated(s) or is_marked(s, plate))]
    inside = [s for s in latents if plate_frame(s, plate) is not None and s["value"].is_floating_point()]
    names = {site["name"] for site in inside}
    first = next((place for place, site in enumerate(sites) if site["name"] in names), len(sites))
    if all(plate_frame(site, plate) is not None for site in sites[first:]):
        return
    with torch.enable_grad(), torch.random.fork_rng():
        leaves = {s["name"]: s["value"].detach().clone().requires_grad_() for s in inside}
        given = {s["name"]: s["value"].detach() for s in latents} | {name: leaf + 0 for name, leaf in leaves.items()}
        moved = poutine.trace(poutine.condition(model, data=given)).get_trace(*args, **kwargs)
        traces = PairedTraces(moved, moved, plate)
        for site in traces.shared_sites(moved):
            log_p = traces.log_prob(site)
            if not log_p.requires_grad:
                continue
            gradients = torch.autograd.grad(log_p, list(leaves.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(leaves, gradients, strict=True):
                if gradient is not None and gradient.nan_to_num(nan=0.0).any():
                    raise ValueError(
                        f"expected sites that depend on {name!r} inside plate {plate!r}, where it is, got "
                        f"{site['name']!r} outside: its density belongs to no point; move it into that plate"
                    )


def check_terms(trace: poutine.Trace, plate: str) -> None:
    """Refuse a model that observes nothing, or scales a site, the plate apart: its terms add up to no log p(x, z)."""
    if not any(True for _ in PairedTraces(trace, trace, plate).local_sites(trace, observed=True)):
        raise ValueError(f"expected an observed site inside plate {plate!r} (`obs=`), got none: nothing says what x is")
    for site, shown in _scaled(PairedTraces(trace, trace, plate), trace):
        raise ValueError(
            f"expected sites that are not scaled, got {site['name']!r} with a scale of {shown}: log p(x) is then "
            "something else and gaps to it mean nothing; take poutine.scale away, or set it to 1, for this"
        )


def check_guide(traces: PairedTraces, guide: Guide, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse a guide whose weights are no p/q inside the plate: scaled where the model is not, or all at one point.

    ``args`` and ``kwargs`` are those of its run.
    """
    check_factors(traces)
    check_auxiliary(traces)
    check_jacobians(traces, guide, args, kwargs)
    check_inside(traces)
    check_masses(traces, traces.local_sites(traces.guide, observed=False))
    for site, shown in _scaled(traces, traces.guide):
        if plate_frame(site, traces.plate) is not None:
            raise ValueError(
                f"expected a guide whose sites are not scaled, got {site['name']!r} with a scale of {shown}: its "
                "log q is then that of no distribution; take poutine.scale away, or set it to 1, for this"
            )


def check_inside(traces: PairedTraces) -> None:
    """Refuse draws outside the support of the model's site, where torch takes it for a wider one and gives a density.

    So it does with transforms that end in an affine one: it has their image for all reals.
    """
    for site in sample_sites(traces.model):
        moved = isinstance(unwrapped(site["fn"]), TransformedDistribution)
        if site["is_observed"] or not moved or site["name"] not in traces.guide.nodes:
            continue
        support, value = support_of(site), site["value"]
        if site["fn"].support.check(value).all() and not support.check(value).all():
            raise ValueError(
                f"the guide draws {site['name']!r} outside {support}, on which the model has it: expected draws there, "
                "such as by the same transforms of a Gaussian"
            )


def check_masses(traces: PairedTraces, sites: Iterable[Any]) -> None:
    """Refuse sites of a guide that have all mass at one point: p(x, z) at the best z is no bound on p(x).

    A Delta may hand on a draw: one with a log density does, and one beside an auxiliary draw, both of them inside the
    plate or outside. At a discrete value, or where the model has a Delta too, it has a probability like any other.
    """
    auxiliary = [s for s in sample_sites(traces.guide) if s["infer"].get("is_auxiliary") and not s["is_observed"]]
    sides = {plate_frame(site, traces.plate) is None for site in auxiliary}
    models: Any = traces.model.nodes
    for site in sites:
        fn, twin = unwrapped(site["fn"]), models.get(site["name"])
        if site["is_observed"] or not isinstance(fn, Delta) or torch.as_tensor(fn.log_density).any():
            continue
        has_mass = twin is None or isinstance(unwrapped(twin["fn"]), Delta) or twin["fn"].support.is_discrete
        if not has_mass and (plate_frame(site, traces.plate) is None) not in sides:
            raise ValueError(
                f"expected a guide with a density, got {site['name']!r} with all mass at one point (Delta): its "
                "log p(x, z) bounds nothing; draw it, such as from a Normal, or take AutoNormal"
            )


def _scaled(traces: PairedTraces, trace: poutine.Trace) -> Iterator[tuple[Any, str]]:
    """Sites whose scale is other than 1, the plate's apart, with the scale in words."""
    for site in sample_sites(trace):
        scale = traces.own_scale(site)
        if not is_one(scale):
            one = not isinstance(scale, Tensor) or scale.numel() == 1
            yield site, f"{float(scale):g}" if one else "other than 1"


def check_density(joint: _Density) -> None:
    """Two draws from the prior, scored together and alone, must give the same numbers, none of them NaN."""
    try:
        z = joint.sample_prior(2)
        together, alone = joint(z), joint(z[1])
    except (RuntimeError, ValueError, IndexError) as error:
        _check_once(joint)
        raise NoWalk(
            f"cannot run the model on its data repeated 2 times along plate {joint.plate!r}, as chains need it; "
            f"expected tensors with a row per point as arguments instead of closing over them ({first_line(error)})"
        ) from error
    bad = together.isnan().any(0).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"log p(x, z) is NaN at point {bad[0]} ({len(bad)} of {joint.num_points}); check x and weights"
        )
    close = torch.isclose(together[1], alone, rtol=1e-3, atol=1e-3) | (together[1] == alone)
    if not close.all():
        raise ValueError(
            "log p(x, z) is random, or changes with a point's neighbours; expected a model in evaluation mode "
            "(model.eval() for dropout and batch norm)"
        )


def _check_once(joint: _Density) -> None:
    """Data as they are must have a density."""
    try:
        joint(joint.sample_prior(1))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"the model has no density of its data: {first_line(error)}; expected data of the shape and type that its "
            "observed sites have"
        ) from error
