r"""The best flow of each point alone, from its best factorized Gaussian on.

Every one of B points has a flow of its own, :math:`q_b(z) = q(z; \theta_b)`, with everything else held fixed. It is the
flow of a guide with the same :class:`~amortized_bayes.flows.FlowSettings`
(:class:`~amortized_bayes.inference.flow_points.PointFlows`), so that L[q*flow] − L[q] is the cost of sharing
parameters, with no difference of families in it. Started at the Gaussian, Adam climbs

.. math:: L_b(\theta_b) = \mathbb{E}_\epsilon\,[\log p(x_b, z_b) - \log q_b(z_b)], \qquad z_b = z(\epsilon; \theta_b),

for all points at once: the gradient of :math:`\sum_b L_b` with respect to :math:`\theta_b` is that of its own term. A
flow shared by the points of a batch would end below the Gaussian; one that contains the Gaussian cannot, and here does
not (Cremer, Li & Duvenaud, *Inference Suboptimality in Variational Autoencoders*, ICML 2018, compare the two).

The draws of a point come from streams of its own: its neighbours, and the chunk it is in, do not change its answer.
Whether the flow or its start is chosen is decided on draws kept for that; both are scored on fresh ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from amortized_bayes.calls import PerPointNames
from amortized_bayes.entrance import enter
from amortized_bayes.flows import FlowSettings
from amortized_bayes.inference.coupling_chunk import CouplingChunk, kernel_serves
from amortized_bayes.inference.flow_climb import FlowChunk
from amortized_bayes.inference.flow_points import PointFlows, gaussian_draws
from amortized_bayes.inference.optimize import LocalOptimum
from amortized_bayes.inference.settings import FlowSearchSettings
from amortized_bayes.joint import Gaussian, LogJoint, joint_density
from amortized_bayes.keeping import known
from amortized_bayes.limits import Seed, limited
from amortized_bayes.memory import check_memory
from amortized_bayes.signatures import own_options
from amortized_bayes.types import Model

__all__ = ["FlowOptimum", "FlowSearchSettings", "optimize_flow"]


class FlowOptimum(NamedTuple):
    """q*flow of B points, ``(B,)`` each unless said otherwise, in nats.

    Args:
        elbo_star: L[q*flow], on fresh draws.
        standard_error: its Monte Carlo error.
        elbo_start: L of the Gaussian that the search started from, on the same draws.
        gain: ``elbo_star`` − ``elbo_start``, paired draw by draw: 0 where the start was chosen.
        gain_error: its Monte Carlo error.
        improved: whether the flow was chosen, because it was better by more than the error on draws kept for that.
        num_skipped: steps that were left out for a gradient with a NaN or an infinity in it.
        q: location and scale of the Gaussian that the flow moves, ``(B, D)`` each, on the unconstrained space.
        parameters: the flow's own, ``(B, ...)`` each; without meaning where the start was chosen.
        flows: the family of which they are members.
        evaluations: decoder evaluations of each point, those for scoring among them: one number.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model, x = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5), torch.zeros(4, 3)
        >>> start = ab.optimize_local(model, None, x, settings=ab.LocalSettings(max_steps=10))
        >>> found = ab.optimize_flow(model, start, x, search=ab.FlowSearchSettings(num_steps=10))
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
    q: Gaussian
    parameters: dict[str, Tensor]
    flows: PointFlows
    evaluations: int

    @torch.no_grad()
    def sample(self, num_samples: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws z ``(S, B, D)`` and log q of each, or what stands for it, ``(S, B)``: importance weights take both."""
        noise = self.q.loc.new_empty(num_samples, len(self.q.loc), self.flows.noise_dim).normal_(generator=generator)
        z, log_q = self.flows.sample(self.parameters, self.q, noise)
        start, log_start = gaussian_draws(self.q, noise[..., : self.flows.dim])
        return torch.where(self.improved[:, None], z, start), torch.where(self.improved, log_q, log_start)


@own_options
@limited
def optimize_flow(
    model: Model,
    start: Gaussian | LocalOptimum,
    *args: Any,
    settings: FlowSettings | None = None,
    search: FlowSearchSettings | None = None,
    plate: str | None = None,
    per_point: PerPointNames = None,
    fixed: Mapping[str, Tensor] | None = None,
    seed: Seed = 0,
    progress: Callable[[int, int], None] | None = None,
    **kwargs: Any,
) -> FlowOptimum:
    """Find the best flow of each point, given the model and the latents outside the plate.

    Args:
        model: Pyro program with a plate over data points; its parameters stay as they are.
        start: a Gaussian for each point on the unconstrained space, best the q* of
            :func:`amortized_bayes.inference.optimize.optimize_local`, or what that returns.
        args: arguments of the model: tensors, numpy arrays, and dicts and lists of them, with a row for each of B
            points, and whatever else it takes.
        settings: which flow, as for a guide (a guide's own is ``guide.settings``). A contextual family is searched in
            its plain form, which contains it; ``gaussian`` continues with the start.
        search: how to find its best member.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        fixed: values of the latents outside the plate, as from :func:`amortized_bayes.joint.draw_shared`.
        seed: random seed for all draws; torch's global generator is left as it was.
        progress: called with steps done and steps in all.
        kwargs: keyword arguments of the model.

    Raises:
        ValueError: as :func:`amortized_bayes.joint.log_joint`, or a start that does not fit.
        Divergence: a flow stopped being numbers, or no point has had a gradient for 100 steps.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model, x = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5), torch.zeros(4, 3)
        >>> start = ab.optimize_local(model, None, x, settings=ab.LocalSettings(max_steps=50))
        >>> settings = ab.FlowSettings("realnvp", num_flows=2, hidden=(32,))
        >>> found = ab.optimize_flow(model, start, x, settings=settings, search=ab.FlowSearchSettings(num_steps=300))
        >>> bool((found.gain > 0.3).all())
        True
    """
    search = search or FlowSearchSettings()
    entered = enter(optimize_flow, model, None, args, kwargs, plate=plate, per_point=per_point)
    joint = joint_density(entered.model, *entered.args, plate=entered.plate, fixed=fixed, **entered.kwargs)
    begin = _checked(start.q if isinstance(start, LocalOptimum) else start, joint)
    flows = PointFlows(joint.dim, settings or FlowSettings(), begin.loc)
    kind = CouplingChunk if kernel_serves(joint, flows, search) else FlowChunk
    size = min(_points_per_chunk(joint, flows, search), kind.most_points(flows) or joint.num_points)
    num_chunks = math.ceil(joint.num_points / size)
    size = math.ceil(joint.num_points / num_chunks)  # of one size, or the last would be filled up for nothing
    program, reports, parameters = None, [], []
    for number in range(num_chunks):
        # Every chunk has the one size that the captured program serves: the last is filled up from the first points.
        points = torch.arange(number * size, (number + 1) * size, device=joint.device) % joint.num_points
        part = Gaussian(begin.loc[points], begin.scale[points])
        chunk = kind(joint.select(points), part, flows, search, points.tolist(), seed)
        chunk.num_chunks = num_chunks
        program = chunk.climb(program, _shifted(progress, number * search.num_steps, num_chunks * search.num_steps))
        reports.append(known("flow score", chunk.report))
        parameters.append(chunk.parameters)
    columns, own = (
        {name: torch.cat([part[name] for part in parts])[: joint.num_points] for name in parts[0]}
        for parts in (reports, parameters)
    )
    q = Gaussian(columns.pop("loc"), columns.pop("scale"))
    evaluations = search.num_steps * search.num_samples + 2 * (search.num_kept + search.num_score)
    return FlowOptimum(**columns, q=q, parameters=own, flows=flows, evaluations=evaluations)


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


def _points_per_chunk(joint: LogJoint, flows: PointFlows, search: FlowSearchSettings) -> int:
    """Points per chunk, such that all chunks have about the same size."""
    budget = search.memory_budget or (8e9 if joint.device.type == "cuda" else 512e6)
    own = list(flows.point.parameters())
    data, item = sum(t[0].numel() * t.element_size() for t in joint.inputs(1)), torch.finfo(joint.dtype).bits // 8
    # A draw holds its data and, for each value of enumerated sites, some arrays of their size; z, and what each layer
    # makes of it. A parameter is there with its gradient, two moments, and twice in passing.
    draw = (1 + 5 * joint.num_values) * data + item * (20 * joint.dim + 5 * sum(p.shape[0] for p in own))
    point = search.num_samples * draw + 6 * item * sum(p.numel() for p in own)
    check_memory(point, f"the search for the flow of a point by {search.num_samples:,} draws", joint.device)
    largest = max(1, int(budget / point))
    return math.ceil(joint.num_points / math.ceil(joint.num_points / largest))


def _shifted(progress: Callable[[int, int], None] | None, before: int, total: int) -> Callable[[int], None]:
    """Report the steps of one chunk as part of all."""
    return lambda done: progress(before + done, total) if progress is not None else None
