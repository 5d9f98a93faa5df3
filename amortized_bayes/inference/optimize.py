r"""The best q of a family for each point alone: q* of many points at once, with everything else held fixed.

For a factorized Gaussian on the unconstrained space, :math:`z_b = \mu_b + \sigma_b \epsilon`, Adam climbs

.. math:: L_b(\mu_b, \sigma_b) = \mathbb{E}_\epsilon\,[\log p(x_b, z_b) - \log q_b(z_b)]

one q per point, with S samples per step. The samples come as pairs :math:`\pm\epsilon`, and the gradient follows the
path of z alone (Roeder, Wu & Duvenaud, *Sticking the landing*, NeurIPS 2017): both reduce noise and add no bias.
Each point has a clock of its own, by which its step falls as a cosine. A point that gained nothing over a window, as
seen on draws kept for that, has its remaining time halved; a point whose time is up leaves its slot to the next one.
A point whose residual is then above the tolerance goes on for another round, up to a cap, so that a start many scales
away does no harm. What is reported is scored on fresh samples.

The family may also be the guide's own, where that has a name
(:class:`~amortized_bayes.inference.own_family.OwnFamily`): Gaussians of full covariance, Gammas, Dirichlets, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from amortized_bayes.calls import PerPointNames
from amortized_bayes.entrance import enter
from amortized_bayes.inference.families import Diagonal, Family
from amortized_bayes.inference.members import score, start_of
from amortized_bayes.inference.own_family import OwnFamily
from amortized_bayes.inference.settings import LocalSettings
from amortized_bayes.inference.slots import Slots
from amortized_bayes.joint import (
    Factor,
    Gaussian,
    LogJoint,
    global_seed,
    joint_density,
    points_per_chunk,
    read_family,
)
from amortized_bayes.keeping import known
from amortized_bayes.limits import Seed, limited
from amortized_bayes.seeding import torch_generator
from amortized_bayes.signatures import own_options
from amortized_bayes.types import Guide, Model

__all__ = ["LocalOptimum", "LocalSettings", "optimize_local"]


class LocalOptimum(NamedTuple):
    """q* of B points, ``(B,)`` each unless said otherwise, in nats.

    Args:
        elbo_star: L[q*] of the first run, on fresh samples.
        standard_error: Monte Carlo error of ``elbo_star``.
        residual: what a Newton step would still gain, from the gradient: half its squared length where the Fisher
            information is the identity; ½|g_μ|² + ¼|g_log σ|² of a factorized Gaussian, g_μ in units of the scale of
            q*. Its estimate is unbiased and may lie below zero.
        residual_error: its standard error, by the jackknife over batches of draws.
        q: mean and scale of q* of the first run, ``(B, D)`` each, on the unconstrained space.
        evaluations: decoder evaluations, those for scoring among them, over all restarts.
        stopped_early: whether the gain had ceased before the time was up.
        elbo_best: ELBO of the best of the restarts, each chosen on other samples; ``None`` for a single run.
        best_error: its Monte Carlo error.
        spread: standard deviation over restarts of the final ELBO; ``None`` for a single run.
        family: family in which q* is the best, by name.
        contains: whether that family contains the guide's, which is smaller (Gaussians of low rank).
        factors: q* by site, where the family is the guide's own (of sites that are drawn together by their names,
            ``"a & b"``): a batch ``(B, E)`` of distributions of which q* is the product over E, Gaussians on the
            unconstrained space and others on the site's support. ``None`` elsewhere.
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
    family: str = "gaussian"
    contains: bool = False
    factors: dict[str, Distribution] | None = None


@own_options
@limited
def optimize_local(
    model: Model,
    guide: Guide | Gaussian | None,
    *args: Any,
    settings: LocalSettings | None = None,
    family: Literal["gaussian", "own"] = "gaussian",
    plate: str | None = None,
    per_point: PerPointNames = None,
    fixed: Mapping[str, Tensor] | None = None,
    seed: Seed = 0,
    progress: Callable[[int, int], None] | None = None,
    **kwargs: Any,
) -> LocalOptimum:
    """Find the best q of each point in a family, given the model and the latents outside the plate.

    Args:
        model: Pyro program with a plate over data points; its parameters stay as they are.
        guide: where to start: a Pyro program (its q, or a Gaussian fitted to its draws), your own Gaussians on the
            unconstrained space, or ``None`` for the prior's moments.
        args: arguments of both programs: tensors, numpy arrays, and dicts and lists of them, with a row for each of B
            points, and whatever else the programs take.
        settings: how to find q*.
        family: ``"gaussian"``, factorized on the unconstrained space, or ``"own"``: that of the guide, a product over
            its sites of Gaussians, of full covariance where the guide's are, and of Gamma, Beta, Dirichlet, Weibull,
            Laplace, Student t and their like by their own parameters; sites that it draws together have one Gaussian.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        fixed: values of the latents outside the plate, as from :func:`amortized_bayes.joint.draw_shared`.
        seed: random seed for all draws; torch's global generator is left as it was.
        progress: called with runs done and runs in all.
        kwargs: keyword arguments of model and guide.

    Raises:
        ValueError: as :func:`amortized_bayes.joint.log_joint`, a guide that does not fit, or one whose own family was
            asked for and has no name (mixtures, flows, auxiliary variables, sites that depend on each other).
        Divergence: a q stopped being numbers, or no draw of any has a density any more.

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
    entered = enter(optimize_local, model, guide, args, kwargs, plate=plate, per_point=per_point)
    guide = entered.guide
    joint = joint_density(entered.model, *entered.args, plate=entered.plate, fixed=fixed, **entered.kwargs)
    size = points_per_chunk(joint, settings.num_samples, settings.memory_budget)
    with global_seed(seed, "start"):
        kind, start = _family(joint, guide, family, settings.num_fit, size)
    generator = torch_generator(seed, "q*", device=joint.device)
    runs = kind.scatter(start, settings.num_restarts, settings.restart_spread, generator)
    points = torch.arange(joint.num_points, device=joint.device).repeat(settings.num_restarts)
    slots = Slots(joint, points, kind, runs, settings, generator, size)
    with global_seed(seed, "draws"):
        slots.run(progress)
        if not kind.common:
            _choose(joint, slots, runs, size * settings.num_samples, generator)
        return _report(joint, slots, size, generator)


def _family(
    joint: LogJoint, guide: Guide | Gaussian | None, family: str, num_fit: int, size: int
) -> tuple[Family, Tensor]:
    """The family, and the member of each point to start at, ``(B, W)``."""
    if family == "gaussian":
        start = start_of(joint, guide, num_fit, size)
        diagonal = Diagonal(_unit(start))
        return diagonal, diagonal.rows(start)
    if guide is None or isinstance(guide, Gaussian):
        raise ValueError("expected a guide whose family is to be searched, got none")
    parts = [read_family(joint.select(part), guide) for part in torch.arange(joint.num_points).split(size)]
    if any(part is None for part in parts):
        raise ValueError("expected a guide whose family has a name, got another; family='gaussian' is always there")
    sites = zip(*(part for part in parts if part is not None), strict=True)
    own = OwnFamily([Factor.join(same, joint.dtype) for same in sites])
    bad = (~own.start.isfinite().all(-1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"the guide's parameters are not finite at point {bad[0]}")
    return own, own.start


def _unit(start: Gaussian) -> Tensor:
    """Spread of each latent over draws and points, ``(D,)``: the scale of a step."""
    between = start.loc.var(0, correction=0)
    return (start.scale.square().mean(0) + between).sqrt()


@torch.no_grad()
def _choose(joint: LogJoint, slots: Slots, start: Tensor, max_rows: int, generator: torch.Generator) -> None:
    """Take each run's last member, or its start where the last is worse by more than two errors.

    Kept draws, which decide elsewhere, are few, and not common to both where torch draws them by itself: a start that
    is off by a tenth of a nat may look better.
    """
    before, last = known(
        "q* choice",
        lambda: [_score(joint, slots, rows, max_rows, generator) for rows in (start, slots.rows)],
        generator,
    )
    stays = last[0] - before[0] >= -2 * torch.hypot(last[1], before[1])  # a NaN does not
    measured, slots.best = slots.best, torch.where(stays[:, None], slots.rows, start)
    slots.evaluations += 2 * slots.settings.num_score
    slots.measure((slots.best != measured).any(-1).nonzero().flatten())


@torch.no_grad()
def _report(joint: LogJoint, slots: Slots, size: int, generator: torch.Generator) -> LocalOptimum:
    settings, family, count = slots.settings, slots.family, joint.num_points
    rows = size * settings.num_samples
    value, error = known("q* score", lambda: _score(joint, slots, slots.best, rows, generator), generator)
    residual, residual_error = slots.residual[:count], slots.residual_error[:count]
    evaluations = (slots.evaluations + settings.num_score).reshape(settings.num_restarts, -1).sum(0)
    early, best = slots.stopped_early[:count], slots.best[:count]
    q = family.moments(best)
    found = LocalOptimum(value[:count], error[:count], residual, residual_error, q, evaluations, early)
    if isinstance(family, OwnFamily):
        found = found._replace(contains=family.contains, factors=family.distributions(best))
    found = found._replace(family=family.name)
    if settings.num_restarts == 1:
        return found
    chosen = slots.best_score.reshape(settings.num_restarts, -1).argmax(0)
    chosen = chosen * count + torch.arange(count, device=slots.points.device)
    spread = value.reshape(settings.num_restarts, -1).std(0)
    return found._replace(elbo_best=value[chosen], best_error=error[chosen], spread=spread)


def _score(
    joint: LogJoint, slots: Slots, members: Tensor, max_rows: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """ELBO of a member for each run on fresh draws and its standard error, ``(R·B,)`` twice."""
    log_w = score(joint, slots.family, slots.points, members, slots.settings.num_score, max_rows, generator)
    return log_w.mean(0), log_w.std(0) / math.sqrt(len(log_w))
