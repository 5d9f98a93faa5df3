"""``log_joint``: the local latents of a Pyro model laid side by side, in whatever form its arguments are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from amortized_bayes.calls import PerPointNames
from amortized_bayes.entrance import enter
from amortized_bayes.enumeration import is_marked
from amortized_bayes.joint.checks import NoWalk, check_density, check_fixed, check_latents, check_model
from amortized_bayes.joint.density import LocalSite, LogJoint, bijection_to, plate_to_front, site_support
from amortized_bayes.limits import limited
from amortized_bayes.program_errors import said_of
from amortized_bayes.shared_draw import plate_frame
from amortized_bayes.signatures import own_options
from amortized_bayes.tiling import Tiling
from amortized_bayes.traces import sample_sites
from amortized_bayes.trees import flatten
from amortized_bayes.types import Model

__all__ = ["joint_density", "log_joint"]


@own_options
@limited
def log_joint(
    model: Model,
    *args: Any,
    plate: str | None = None,
    per_point: PerPointNames = None,
    fixed: Mapping[str, Tensor] | None = None,
    **kwargs: Any,
) -> LogJoint:
    """Lay out the local latents of a Pyro model and return its log p(x, z) on the unconstrained space.

    Args:
        model: Pyro program with a plate over data points.
        args: its arguments: tensors, numpy arrays, and dicts and lists of them, with a row for each of B points, and
            whatever else it takes.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        fixed: values of the latents outside the plate, as a draw of :func:`~amortized_bayes.joint.draw_shared`.
        kwargs: keyword arguments of the model.

    Raises:
        TypeError: arguments that the model does not take, such as an option that is misspelt.
        ValueError: no such plate; a latent that is discrete and not marked for enumeration, masked, or outside the
            plate without a value; a density that is NaN, random, or different for a point when its neighbours change.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> density = ab.log_joint(model, x)
        >>> density(torch.zeros(7, 4, 2)).shape
        torch.Size([7, 4])
    """
    entered = enter(log_joint, model, None, args, kwargs, plate=plate, per_point=per_point)
    return joint_density(entered.model, *entered.args, plate=entered.plate, fixed=fixed, **entered.kwargs)


def joint_density(
    model: Model,
    *args: Any,
    plate: str = "data",
    fixed: Mapping[str, Tensor] | None = None,
    bits: bool = False,
    **kwargs: Any,
) -> LogJoint:
    """As :func:`log_joint`, of a program that takes rows, or tensors of which those with a row per point are data.

    With ``bits`` all local latents may be Bernoulli, for callers that move by bits then.
    """
    fixed = dict(fixed or {})
    conditioned = poutine.condition(model, data=fixed) if fixed else model
    prior = poutine.block(conditioned, hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"])
    with torch.no_grad(), torch.random.fork_rng():
        with said_of("model", args, kwargs):
            if fixed:
                check_fixed(poutine.trace(model).get_trace(*args, **kwargs), plate, fixed)
            trace = poutine.trace(conditioned).get_trace(*args, **kwargs)
        check_model(conditioned, trace, args, kwargs, plate)
        check_latents(trace, plate, bits=bits)
        tiling = Tiling.of(prior, conditioned, args, kwargs, 1, plate)
        if not tiling.has_data(args, kwargs):
            raise NoWalk(
                f"expected an argument with the {tiling.batch} data points of plate {plate!r} along its first "
                f"dimension, got none: pass the data to the model instead of closing over it"
            )
        leaves, spec = flatten((args, kwargs))
        joint = LogJoint(model, (leaves, spec, [tiling.is_data(leaf) for leaf in leaves]), tiling.index, plate, fixed)
        joint.sites = tuple(_layout(trace, plate))
        first: Any = trace.nodes[joint.sites[0].name]
        joint.dtype, joint.device = first["value"].dtype, first["value"].device
        check_density(joint)
        if any(is_marked(node, plate) for node in sample_sites(trace)):
            enumerated, _ = joint._run(*joint._rows(joint.sample_prior(1)))
            joint.num_values = max(map(_num_values, sample_sites(enumerated)))
    return joint


def _num_values(node: Any) -> int:
    """How often a site's density is computed at a place of its plates."""
    plates = math.prod(frame.size for frame in node["cond_indep_stack"] if frame.dim is not None)
    return max(1, node["fn"].batch_shape.numel() // max(1, plates))


def _layout(trace: poutine.Trace, plate: str) -> Iterator[LocalSite]:
    start = 0
    for node in sample_sites(trace):
        if node["is_observed"] or plate_frame(node, plate) is None or is_marked(node, plate):
            continue
        shape = plate_to_front(node, plate, node["value"]).shape[1:]
        support = site_support(node)
        free = bijection_to(support).inv(node["value"])
        free_shape = plate_to_front(node, plate, free).shape[1:]
        yield LocalSite(node["name"], shape, free_shape, support, slice(start, start + free_shape.numel()))
        start += free_shape.numel()
