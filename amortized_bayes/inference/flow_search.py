r"""The best member of a flow family for each point alone, from its best factorized Gaussian on.

Every one of B points has a flow of its own, :math:`q_b(z) = q(z; \theta_b)`, with everything else held fixed. Started
at the Gaussian, Adam climbs

.. math:: L_b(\theta_b) = \mathbb{E}_\epsilon\,[\log p(x_b, z_b) - \log q_b(z_b)], \qquad z_b = z(\epsilon; \theta_b),

for all points at once: the gradient of :math:`\sum_b L_b` with respect to :math:`\theta_b` is that of its own term. A
flow shared by the points of a batch would end below the Gaussian; one that holds the Gaussian cannot, and here does
not (Cremer, Li & Duvenaud, *Inference Suboptimality in Variational Autoencoders*, ICML 2018, compare the two).

The draws of a point come from streams of its own: its neighbours, and the chunk it is worked on in, do not change its
answer. Whether the flow or its start is kept is decided on draws kept for that; both are scored on further ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from amortized_bayes.inference.flow_climb import FlowChunk
from amortized_bayes.inference.flow_families import FAMILIES, FamilyName, FlowFamily
from amortized_bayes.inference.optimize import LocalOptimum
from amortized_bayes.inference.settings import FlowSearchSettings
from amortized_bayes.joint import Gaussian, LogJoint, log_joint
from amortized_bayes.types import Model

__all__ = ["FlowOptimum", "FlowSearchSettings", "optimize_flow"]


class FlowOptimum(NamedTuple):
    """q*flow of B points, ``(B,)`` each unless said otherwise, in nats.

    Args:
        elbo_star: L[q*flow], on fresh draws.
        standard_error: its Monte Carlo error.
        elbo_start: L of the Gaussian that the search started from, on the same draws.
        gain: ``elbo_star`` − ``elbo_start``, paired draw by draw: 0 where the start was kept.
        gain_error: its Monte Carlo error.
        improved: whether the flow was kept, because it was better by more than the error on draws kept for that.
        num_skipped: steps that were left out for a gradient with a NaN or an infinity in it.
        evaluations: decoder evaluations, those for scoring among them.
        q: location and scale of the flow, ``(B, D)`` each, on the unconstrained space.
        parameters: the flow's own, ``(B, ...)`` each.
        family: the family of which they choose a member.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> from amortized_bayes.inference.flow_search import FlowSearchSettings, optimize_flow
        >>> model, x = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5), torch.zeros(4, 3)
        >>> start = ab.optimize_local(model, None, x, settings=ab.LocalSettings(max_steps=10))
        >>> found = optimize_flow(model, start, x, family="realnvp", settings=FlowSearchSettings(num_steps=10))
        >>> z, log_q = found.sample(50, torch.Generator().manual_seed(0))
        >>> z.shape, log_q.shape
        (torch.Size([50, 4, 2]), torch.Size([50, 4]))
    """

    elbo_star: Tensor
    standard_error: Tensor
    elbo_start: Tensor
    gain: Tensor
    gain_error: Tensor
    improved: Tensor
    num_skipped: Tensor
    evaluations: Tensor
    q: Gaussian
    parameters: dict[str, Tensor]
    family: FlowFamily

    def sample(self, num_samples: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws z ``(S, B, D)`` and log q of each, or what stands for it, ``(S, B)``: importance weights take both."""
        loc, scale = self.q
        noise = loc.new_empty(num_samples, len(loc), self.family.noise_dim(loc.shape[-1]))
        return self.family.sample(self.parameters, loc, scale, noise.normal_(generator=generator))


def optimize_flow(
    model: Model,
    start: Gaussian | LocalOptimum,
    *args: Any,
    family: FamilyName = "auxiliary",
    num_flows: int = 2,
    hidden: int = 32,
    settings: FlowSearchSettings | None = None,
    plate: str = "data",
    fixed: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    memory_budget: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    **kwargs: Any,
) -> FlowOptimum:
    """Find the best member of a flow family for each point, given the model and the latents outside the plate.

    Args:
        model: Pyro program with a plate over data points; its parameters stay as they are.
        start: a Gaussian for each point on the unconstrained space, best the q* of
            :func:`amortized_bayes.inference.optimize.optimize_local`, or what that returns.
        args: arguments of the model, data of B points.
        family: ``"auxiliary"``, ``"realnvp"``, ``"planar"``, or ``"gaussian"``, which goes on with the start.
        num_flows: T, bijections of the family.
        hidden: width of the networks in it.
        settings: how the best member is looked for.
        plate: name of the plate over data points.
        fixed: values of the latents outside the plate, as from :func:`amortized_bayes.joint.draw_shared`.
        seed: of all draws; torch's global generator is left as it was.
        memory_budget: bytes that one chunk of points may take, about; 512 MB by default, 8 GB on a GPU.
        progress: called with steps done and steps in all.
        kwargs: keyword arguments of the model.

    Raises:
        ValueError: as :func:`amortized_bayes.joint.log_joint`, a start that does not fit, an unknown family, too few
            latents for it, or a number out of its range.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> from amortized_bayes.inference.flow_search import FlowSearchSettings, optimize_flow
        >>> model, x = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5), torch.zeros(4, 3)
        >>> start = ab.optimize_local(model, None, x, settings=ab.LocalSettings(max_steps=50))
        >>> found = optimize_flow(model, start, x, family="realnvp", settings=FlowSearchSettings(num_steps=300))
        >>> bool((found.gain > 0.3).all())
        True
    """
    if family not in FAMILIES:
        raise ValueError(f"expected family among {tuple(FAMILIES)}, got {family!r}")
    settings, flow = settings or FlowSearchSettings(), FAMILIES[family](num_flows, hidden)
    joint = log_joint(model, *args, plate=plate, fixed=fixed, **kwargs)
    begin = _checked(start.q if isinstance(start, LocalOptimum) else start, joint)
    size = _points_per_chunk(joint, flow, settings.num_samples, memory_budget)
    num_chunks = math.ceil(joint.num_points / size)
    program, reports, parameters = None, [], []
    for number in range(num_chunks):
        # Every chunk has the one size that the captured program serves: the last is filled up from the first points.
        points = torch.arange(number * size, (number + 1) * size, device=joint.device) % joint.num_points
        part = Gaussian(begin.loc[points], begin.scale[points])
        chunk = FlowChunk(joint.select(points), part, flow, settings, points.tolist(), seed)
        program = chunk.climb(program, _shifted(progress, number * settings.num_steps, num_chunks * settings.num_steps))
        reports.append(chunk.report())
        parameters.append(chunk.flow_parameters)
    columns = (torch.cat(part)[: joint.num_points] for part in zip(*reports, strict=True))
    elbo_star, error, elbo_start, gain, gain_error, improved, skipped, loc, scale = columns
    own = {name: torch.cat([p[name] for p in parameters])[: joint.num_points] for name in parameters[0]}
    total = settings.num_steps * settings.num_samples + 2 * (settings.num_kept + settings.num_score)
    evaluations, q = torch.full_like(skipped, total), Gaussian(loc, scale)
    return FlowOptimum(elbo_star, error, elbo_start, gain, gain_error, improved, skipped, evaluations, q, own, flow)


def _checked(start: Gaussian, joint: LogJoint) -> Gaussian:
    """The start in the type and on the device of the model."""
    shape = (joint.num_points, joint.dim)
    if start.loc.shape != shape or start.scale.shape != shape:
        raise ValueError(
            f"expected start with loc and scale of shape {shape}, got {tuple(start.loc.shape)} and "
            f"{tuple(start.scale.shape)}"
        )
    if not (start.loc.isfinite().all() and start.scale.isfinite().all() and (start.scale > 0).all()):
        raise ValueError("expected start with finite loc and finite scale above 0, got others")
    return Gaussian(*(part.detach().to(joint.device, joint.dtype) for part in start))


def _points_per_chunk(joint: LogJoint, family: FlowFamily, num_samples: int, memory_budget: float | None) -> int:
    """Points a chunk, such that all chunks have about the same size."""
    budget = memory_budget if memory_budget is not None else (8e9 if joint.device.type == "cuda" else 512e6)
    own = family.init(1, joint.dim, Generator(joint.device), joint.dtype).values()
    data, item = sum(t[0].numel() * t.element_size() for t in joint.inputs(1)), torch.finfo(joint.dtype).bits // 8
    # A draw holds its data and some arrays of their size, z, and what each layer makes of it. A parameter is there with
    # its gradient, two moments, its start, and twice in passing.
    draw = 6 * data + item * (20 * joint.dim + 5 * sum(p.shape[-1] for p in own))
    largest = max(1, int(budget / (num_samples * draw + 7 * item * sum(p.numel() for p in own))))
    return math.ceil(joint.num_points / math.ceil(joint.num_points / largest))


def _shifted(progress: Callable[[int, int], None] | None, before: int, total: int) -> Callable[[int], None]:
    """Report the steps of one chunk as part of all."""
    return lambda done: progress(before + done, total) if progress is not None else None
