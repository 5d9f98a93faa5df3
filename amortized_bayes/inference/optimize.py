r"""The best q of a family for each point alone: q* of many points at once, with everything else held fixed.

For a factorized Gaussian on the unconstrained space, :math:`z_b = \mu_b + \sigma_b \epsilon`, Adam climbs

.. math:: L_b(\mu_b, \sigma_b) = \mathbb{E}_\epsilon\,[\log p(x_b, z_b) - \log q_b(z_b)]

one q per point, with S samples per step. The samples come as pairs :math:`\pm\epsilon`, and the gradient follows the
path of z alone (Roeder, Wu & Duvenaud, *Sticking the landing*, NeurIPS 2017): both reduce noise and add no bias.
Each point has a clock of its own, by which its step falls as a cosine. A point that gained nothing over a window, as
seen on draws kept for that, has its remaining time halved; a point whose time is up leaves its slot to the next one.
What is reported is scored on fresh samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amortized_bayes.inference.settings import LocalSettings
from amortized_bayes.inference.slots import Slots
from amortized_bayes.joint import Gaussian, LogJoint, draw, gaussian_start, global_seed, log_joint, points_per_chunk
from amortized_bayes.seeding import torch_generator
from amortized_bayes.types import Guide, Model

__all__ = ["LocalOptimum", "LocalSettings", "optimize_local"]


class LocalOptimum(NamedTuple):
    """q* of B points, ``(B,)`` each unless said otherwise, in nats.

    Args:
        elbo_star: L[q*] of the first run, on fresh samples.
        standard_error: Monte Carlo error of ``elbo_star``.
        residual: what a Newton step would still gain, from the gradient: ½|g_μ|² + ¼|g_log σ|², g_μ in units of the
            scale of q*. Its estimate is unbiased and may lie below zero.
        residual_error: its standard error, by the jackknife.
        q: q* of the first run, ``(B, D)`` each, on the unconstrained space.
        evaluations: decoder evaluations, those for scoring among them, over all restarts.
        stopped_early: whether the gain had ceased before the time was up.
        elbo_best: ELBO of the best of the restarts, each chosen on other samples; ``None`` for a single run.
        best_error: its Monte Carlo error.
        spread: standard deviation over restarts of the final ELBO; ``None`` for a single run.
    """

    elbo_star: Tensor
    standard_error: Tensor
    residual: Tensor
    residual_error: Tensor
    q: Gaussian
    evaluations: Tensor
    stopped_early: Tensor
    elbo_best: Tensor | None = None
    best_error: Tensor | None = None
    spread: Tensor | None = None


def optimize_local(
    model: Model,
    guide: Guide | Gaussian | None,
    *args: Any,
    settings: LocalSettings | None = None,
    plate: str = "data",
    fixed: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **kwargs: Any,
) -> LocalOptimum:
    """Find the best factorized Gaussian of each point, given the model and the latents outside the plate.

    Args:
        model: Pyro program with a plate over data points; its parameters stay as they are.
        guide: where to start: a Pyro program (its q, or a Gaussian fitted to its draws), Gaussians of one's own on the
            unconstrained space, or ``None`` for the prior's moments.
        args: arguments of model and guide, data of B points.
        settings: how to find q*.
        plate: name of the plate over data points.
        fixed: values of the latents outside the plate, as from :func:`amortized_bayes.joint.draw_shared`.
        seed: of all draws; torch's global generator is left as it was.
        progress: called with runs done and runs in all.
        kwargs: keyword arguments of model and guide.

    Raises:
        ValueError: as :func:`amortized_bayes.joint.log_joint`, or a guide that does not fit.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> found = ab.optimize_local(model, guide, x, settings=ab.LocalSettings(max_steps=50))
        >>> found.elbo_star.shape
        torch.Size([4])
    """
    settings = settings or LocalSettings()
    joint = log_joint(model, *args, plate=plate, fixed=fixed, **kwargs)
    size = points_per_chunk(joint, settings.num_samples, settings.memory_budget)
    with global_seed(seed, "start"):
        start = _start(joint, guide, settings.num_fit, size)
    generator = torch_generator(seed, "q*", device=joint.device)
    runs = _restarts(start, settings, generator)
    points = torch.arange(joint.num_points, device=joint.device).repeat(settings.num_restarts)
    slots = Slots(joint, points, runs, _unit(start), settings, generator, size)
    slots.run(progress)
    return _report(joint, points, slots, size, generator)


def _start(joint: LogJoint, guide: Guide | Gaussian | None, num_fit: int, size: int) -> Gaussian:
    """Start of each point, ``(B, D)``."""
    if isinstance(guide, Gaussian):
        shape = (joint.num_points, joint.dim)
        if guide.loc.shape != shape or guide.scale.shape != shape or not (guide.scale > 0).all():
            raise ValueError(
                f"expected start with loc and positive scale of shape {shape}, got {tuple(guide.loc.shape)} and "
                f"{tuple(guide.scale.shape)}"
            )
        return guide
    parts = []
    for part in torch.arange(joint.num_points).split(size):
        some = joint.select(part)
        if guide is None:
            draws = some.sample_prior(num_fit)
            parts.append(Gaussian(draws.mean(0), draws.std(0)))
        else:
            parts.append(gaussian_start(some, guide, num_fit))
    return Gaussian(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _restarts(start: Gaussian, settings: LocalSettings, generator: torch.Generator) -> Gaussian:
    """The start itself, and R − 1 with moved means, ``(R·B, D)``."""
    loc = draw(Gaussian(start.loc, settings.restart_spread * start.scale), settings.num_restarts, generator)
    loc[0] = start.loc
    return Gaussian(loc.flatten(0, 1), start.scale.repeat(settings.num_restarts, 1))


def _unit(start: Gaussian) -> Tensor:
    """Spread of each latent over draws and points, ``(D,)``: the scale of a step."""
    between = start.loc.var(0, correction=0)
    return (start.scale.square().mean(0) + between).sqrt()


@torch.no_grad()
def _report(joint: LogJoint, points: Tensor, slots: Slots, size: int, generator: torch.Generator) -> LocalOptimum:
    settings, count = slots.settings, joint.num_points
    value, error = _score(joint, points, slots.best, settings.num_score, size * settings.num_samples, generator)
    residual, residual_error = slots.residuals(settings.num_residual, count)
    per_run = slots.evaluations + settings.num_score
    evaluations = per_run.reshape(settings.num_restarts, -1).sum(0) + slots.residual_evaluations
    q = Gaussian(slots.best.loc[:count], slots.best.scale[:count])
    early = slots.stopped_early[:count]
    found = LocalOptimum(value[:count], error[:count], residual, residual_error, q, evaluations, early)
    if settings.num_restarts == 1:
        return found
    chosen = slots.best_score.reshape(settings.num_restarts, -1).argmax(0)
    chosen = chosen * count + torch.arange(count, device=points.device)
    spread = value.reshape(settings.num_restarts, -1).std(0)
    return found._replace(elbo_best=value[chosen], best_error=error[chosen], spread=spread)


def _score(
    joint: LogJoint, points: Tensor, q: Gaussian, num_draws: int, max_rows: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """ELBO of each run on fresh draws and its standard error, ``(R·B,)`` twice."""
    values = []
    for run in torch.arange(len(points), device=points.device).split(max(1, max_rows // 50)):
        some = joint.select(points[run])
        loc, scale = q.loc[run], q.scale[run]
        weights = []
        for draws in torch.arange(num_draws).split(50):
            noise = torch.empty(len(draws), *loc.shape, dtype=loc.dtype, device=loc.device).normal_(generator=generator)
            log_q = -(0.5 * noise.square() + scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
            weights.append((some(loc + scale * noise) - log_q).double())
        values.append(torch.cat(weights))
    log_w = torch.cat(values, -1)
    return log_w.mean(0), log_w.std(0) / math.sqrt(num_draws)
