"""Posteriors over two latents: their evidence by a grid, and what each family makes of them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro.poutine as poutine
import torch
from torch import Tensor

from amortized_bayes.evaluation.gaps import Estimate, paired_gap
from amortized_bayes.experiments.bounds import PointBounds
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.setup import flow_settings
from amortized_bayes.experiments.spec import Measured, measured
from amortized_bayes.experiments.trained import Trained
from amortized_bayes.inference.flow_search import FlowSearchSettings, optimize_flow
from amortized_bayes.inference.optimize import LocalOptimum, LocalSettings, optimize_local
from amortized_bayes.joint import Gaussian, draw, global_seed, joint_density
from amortized_bayes.seeding import torch_generator
from amortized_bayes.types import Guide, Model

__all__ = ["DRAWN", "Grid", "best_gaussian", "best_of_family", "draws_of", "gap_to", "log_evidence_on_grid"]

DRAWN = 4
"""Points of the picture."""
DRAWS = 20_000
"""Draws of each q in it."""
SCORE_DRAWS = 5_000
"""Fresh draws that each best q is scored on."""
PRIOR_REACH = 5.0
"""Half the side of the coarse grid over the prior, on which all modes are found."""
COARSE_CELLS = 150
NEGLIGIBLE = 25.0
"""Cells of the coarse grid this many nats below the highest are left out of the fine one."""


class Grid(NamedTuple):
    """Posteriors of B points on grids of their own.

    Args:
        log_p: log p(x) by the midpoint rule, ``(B,)`` in nats.
        mean: mean of the posterior, ``(B, 2)``.
        scale: standard deviations, ``(B, 2)``.
        axes: coordinates of the cells of the points that are drawn, ``(4, 2, G)``.
        density: per unit of area, of the same points, ``(4, G, G)``.
    """

    log_p: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    density: np.ndarray


def log_evidence_on_grid(model: Model, x: Tensor, cells: int, lab: Lab) -> Grid:
    """Evidence of each point: a coarse grid over the prior finds where the mass is, a fine one there sums it up."""
    steps = (torch.arange(COARSE_CELLS, device=x.device) + 0.5) / COARSE_CELLS * 2 - 1
    coarse = (PRIOR_REACH * steps).expand(2, -1)
    size = 2 * PRIOR_REACH / COARSE_CELLS
    found: list[tuple[np.ndarray, ...]] = []
    axes, densities = [], []
    for point in range(len(x)):
        rough = _log_joint_on(model, x[point : point + 1], coarse)
        near = (rough > rough.max() - NEGLIGIBLE).nonzero()
        low = torch.stack([coarse[d, near[:, d]].min() for d in (0, 1)]) - size
        high = torch.stack([coarse[d, near[:, d]].max() for d in (0, 1)]) + size
        middle = (torch.arange(cells, device=x.device) + 0.5) / cells
        axis = low[:, None] + (high - low)[:, None] * middle
        fine = _log_joint_on(model, x[point : point + 1], axis)
        area = (axis[:, 1] - axis[:, 0]).double().prod()
        evidence = fine.logsumexp((0, 1)) + area.log()
        density = (fine - evidence).exp()
        mean = torch.stack([(density.sum(1 - d) * axis[d].double()).sum() * area for d in (0, 1)])
        square = torch.stack([(density.sum(1 - d) * axis[d].double().square()).sum() * area for d in (0, 1)])
        found.append(tuple(t.cpu().numpy() for t in (evidence, mean, (square - mean.square()).clamp(min=1e-12).sqrt())))
        if point < DRAWN:
            axes.append(axis.double().cpu().numpy())
            densities.append(density.cpu().numpy())
        lab.watch("grid", point + 1, len(x))
    log_p, mean, scale = (np.stack(part) for part in zip(*found, strict=True))
    return Grid(log_p, mean, scale, np.stack(axes), np.stack(densities))


@torch.no_grad()
def _log_joint_on(model: Model, x: Tensor, axis: Tensor) -> Tensor:
    """Joint log density of one point on the product of two axes ``(2, G)``, as ``(G, G)``, float64."""
    z = torch.cartesian_prod(axis[0], axis[1]).to(x.dtype)
    joint = joint_density(model, x)
    log_p = torch.cat([joint(part[:, None])[:, 0] for part in z.split(20_000)]).double()
    return log_p.reshape(axis.shape[1], axis.shape[1])


def best_gaussian(trained: Trained, x: Tensor, truth: dict[str, np.ndarray], steps: int, lab: Lab) -> LocalOptimum:
    """The better of two searches for each point, from the encoder's answer and from the posterior's moments.

    An encoder may point to the wrong mode, where no search leaves it. The choice is made on one set of draws, and what
    is reported is scored on others.
    """
    moments = Gaussian(*(torch.from_numpy(truth[name]).to(x) for name in ("mean", "scale")))
    settings = LocalSettings(max_steps=steps, max_rounds=1, tolerance=0.0, num_score=SCORE_DRAWS)
    searches = [
        optimize_local(
            trained.model,
            start,
            x,
            settings=settings,
            seed=trained.config.seed,
            progress=partial(lab.watch, "q* gaussian"),
        )
        for start in (trained.guide, moments)
    ]
    second = (searches[1].elbo_star > searches[0].elbo_star)[:, None]
    q = Gaussian(*(torch.where(second, b, a) for a, b in zip(searches[0].q, searches[1].q, strict=True)))
    generator = torch_generator(trained.config.seed, "score", device=x.device)
    joint, normal = joint_density(trained.model, x), torch.distributions.Normal(q.loc, q.scale)
    with torch.no_grad():
        blocks = (draw(q, 50, generator) for _ in range(SCORE_DRAWS // 50))
        log_w = torch.cat([(joint(z) - normal.log_prob(z).sum(-1)).double() for z in blocks])
    error = log_w.std(0, correction=0) / math.sqrt(SCORE_DRAWS)
    return searches[0]._replace(elbo_star=log_w.mean(0), standard_error=error, q=q)


def best_of_family(
    trained: Trained, wanted: VAEConfig, x: Tensor, gaussian: LocalOptimum, steps: int, lab: Lab
) -> dict[str, np.ndarray]:
    """ELBO of the best q of a family for each point, and draws ``(S, 4, 2)`` of the points that are drawn."""
    family, seed = wanted.family, trained.config.seed
    generator = torch_generator(seed, "draws", family, device=x.device)
    if family == "gaussian":
        found, draws = gaussian, draw(gaussian.q, DRAWS, generator)
    else:
        found = optimize_flow(
            trained.model,
            gaussian,
            x,
            settings=flow_settings(wanted, family),
            search=FlowSearchSettings(num_samples=10, num_steps=steps, num_score=SCORE_DRAWS),
            seed=seed,
            progress=partial(lab.watch, f"q* {family}"),
        )
        draws = found.sample(DRAWS, generator)[0]
    values = {"elbo": found.elbo_star.double(), "elbo_error": found.standard_error, "draws": draws[:, :DRAWN]}
    return {name: value.cpu().numpy() for name, value in values.items()}


def draws_of(guide: Guide, x: Tensor, seed: int, family: str) -> np.ndarray:
    """Draws of a guide at points ``(B, P)``, ``(S, B, 2)``."""
    with torch.no_grad(), global_seed(seed, "draws", family):
        trace = poutine.trace(guide).get_trace(x.repeat(DRAWS, 1))
    node: Any = trace.nodes["z"]
    return node["value"].reshape(DRAWS, -1, 2).cpu().numpy()


def gap_to(log_p: np.ndarray, found: PointBounds, metric: str) -> Measured:
    """What an ELBO loses against the evidence, paired by point."""
    own = Estimate(torch.from_numpy(found["elbo"]), torch.from_numpy(found["elbo_error"]))
    gap = paired_gap(Estimate(torch.from_numpy(log_p)), own)
    return measured(metric, (gap.mean, gap.mean_error))
