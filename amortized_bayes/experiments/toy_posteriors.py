"""``toy-posteriors``: with two latents the posterior can be seen, and its evidence is a sum over a grid.

After Cremer, Li & Duvenaud (ICML 2018), section 5.1. A VAE with two latents is trained and its decoder held fixed; for
each family an encoder is trained, and the best q of each point looked for. Gaps are exact but for the draws of q:
log p(x) is the sum of p(x, z) over a grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro.poutine as poutine
import torch
from torch import Tensor

from amortized_bayes.evaluation.gaps import Estimate, paired_gap
from amortized_bayes.experiments.encoders import fit_encoder
from amortized_bayes.experiments.point_bounds import Watch, at, choose, guide_elbo
from amortized_bayes.experiments.suboptimality import ToyConfig, toy_base
from amortized_bayes.experiments.trained import Trained, obtain
from amortized_bayes.flows import FlowSettings
from amortized_bayes.inference.flow_search import FlowSearchSettings, optimize_flow
from amortized_bayes.inference.optimize import LocalOptimum, LocalSettings, optimize_local
from amortized_bayes.joint import Gaussian, global_seed, log_joint
from amortized_bayes.results import RunFolder
from amortized_bayes.seeding import torch_generator
from amortized_bayes.types import Guide, Row

__all__ = ["DRAWN", "Grid", "log_evidence_on_grid", "run_toy"]

DRAWN = 4
"""Points of the picture."""
SCORE_DRAWS = 5_000
"""Fresh draws that each best q is scored on."""
DRAWS = 20_000
"""Draws of each q in it."""
PRIOR_REACH = 5.0
"""Half the side of the coarse grid over the prior, on which all modes are found."""
COARSE_CELLS = 150
NEGLIGIBLE = 25.0
"""Cells of the coarse grid this many nats below the highest are left out of the fine one."""


def run_toy(
    config: ToyConfig,
    folder: RunFolder,
    *,
    out: Path,
    device: torch.device,
    data_dir: Path | None = None,
    watch: Watch = lambda *_: None,
) -> Iterator[Row]:
    """Measure what an open, writable run does not hold yet, keep grids and draws in it, and yield the new rows.

    Raises:
        TrainingFailed: the VAE diverged.
        ValueError: data that cannot be had.
    """
    folder.drop_unfinished_rows()
    trained = obtain(toy_base(config), out, device=device, data_dir=data_dir, watch=watch)
    places = choose(trained.data.train, config.points, config.seed)
    x = at(trained.data.train, places)
    if "posterior" not in folder.done():
        grid = log_evidence_on_grid(trained, x, config.grid, watch)
        folder.save_arrays("posterior", places=places, **grid._asdict())
        folder.mark_done("posterior")
    truth = folder.load_arrays("posterior")
    log_p = torch.from_numpy(truth["log_p"])
    best = _best_gaussian(config, trained, x, truth, watch)
    for family in config.families:
        for way in ("amortized", "best"):
            key = f"{way}_{family}"
            if key in folder.done():
                continue
            try:
                if way == "amortized":
                    value, draws = _amortized(config, trained, family, x, watch)
                else:
                    value, draws = _best(config, trained, family, x, best, watch)
            except ArithmeticError as error:
                failed = _start(config, trained, family)._replace(metric="failure", status="failed", note=str(error))
                folder.append(failed, key)
                yield failed
            else:
                gap = paired_gap(Estimate(log_p), value)
                folder.save_arrays(key, elbo=value.value.numpy(), draws=draws[:, :DRAWN].cpu().numpy())
                row = _start(config, trained, family)._replace(
                    metric=f"{way}_gap", value=gap.mean, standard_error=gap.mean_error, error_over="points"
                )
                folder.append(row, key)
                yield row
            folder.mark_done(key)


class Grid(NamedTuple):
    """Posteriors of B points on grids of their own.

    Args:
        log_p: log p(x) by the midpoint rule, ``(B,)`` in nats.
        mean: of the posterior, ``(B, 2)``.
        scale: standard deviations, ``(B, 2)``.
        axes: coordinates of the cells of the points that are drawn, ``(4, 2, G)``.
        density: per unit of area, of the same points, ``(4, G, G)``.
    """

    log_p: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    density: np.ndarray


def log_evidence_on_grid(trained: Trained, x: Tensor, cells: int, watch: Watch = lambda *_: None) -> Grid:
    """Evidence of each point: a coarse grid over the prior finds where the mass is, a fine one there sums it up."""
    steps = (torch.arange(COARSE_CELLS, device=x.device) + 0.5) / COARSE_CELLS * 2 - 1
    coarse = (PRIOR_REACH * steps).expand(2, -1)
    size = 2 * PRIOR_REACH / COARSE_CELLS
    found: list[tuple[np.ndarray, ...]] = []
    axes, densities = [], []
    for point in range(len(x)):
        rough = _log_joint_on(trained, x[point : point + 1], coarse)
        near = (rough > rough.max() - NEGLIGIBLE).nonzero()
        low = torch.stack([coarse[d, near[:, d]].min() for d in (0, 1)]) - size
        high = torch.stack([coarse[d, near[:, d]].max() for d in (0, 1)]) + size
        middle = (torch.arange(cells, device=x.device) + 0.5) / cells
        axis = low[:, None] + (high - low)[:, None] * middle
        fine = _log_joint_on(trained, x[point : point + 1], axis)
        area = (axis[:, 1] - axis[:, 0]).double().prod()
        evidence = fine.logsumexp((0, 1)) + area.log()
        density = (fine - evidence).exp()
        mean = torch.stack([(density.sum(1 - d) * axis[d].double()).sum() * area for d in (0, 1)])
        square = torch.stack([(density.sum(1 - d) * axis[d].double().square()).sum() * area for d in (0, 1)])
        found.append(tuple(t.cpu().numpy() for t in (evidence, mean, (square - mean.square()).clamp(min=1e-12).sqrt())))
        if point < DRAWN:
            axes.append(axis.double().cpu().numpy())
            densities.append(density.cpu().numpy())
        watch("grid", point + 1, len(x))
    log_p, mean, scale = (np.stack(part) for part in zip(*found, strict=True))
    return Grid(log_p, mean, scale, np.stack(axes), np.stack(densities))


@torch.no_grad()
def _log_joint_on(trained: Trained, x: Tensor, axis: Tensor) -> Tensor:
    """Joint log density of one point on the product of two axes ``(2, G)``, as ``(G, G)``, float64."""
    z = torch.cartesian_prod(axis[0], axis[1]).to(x.dtype)
    joint = log_joint(trained.model, x)
    log_p = torch.cat([joint(part[:, None])[:, 0] for part in z.split(20_000)]).double()
    return log_p.reshape(axis.shape[1], axis.shape[1])


def _best_gaussian(
    config: ToyConfig, trained: Trained, x: Tensor, truth: dict[str, np.ndarray], watch: Watch
) -> LocalOptimum:
    """The better of two searches for each point, from the encoder's answer and from the posterior's moments.

    An encoder may point to the wrong mode, where no search leaves it. The choice is made on one set of draws, and what
    is reported is scored on others.
    """
    moments = Gaussian(*(torch.from_numpy(truth[name]).to(x) for name in ("mean", "scale")))
    settings = LocalSettings(max_steps=config.steps, tolerance=0.0, num_score=SCORE_DRAWS)
    searches = [
        optimize_local(
            trained.model,
            start,
            x,
            settings=settings,
            seed=config.seed,
            progress=lambda done, total: watch("best gaussian", done, total),
        )
        for start in (trained.guide, moments)
    ]
    second = (searches[1].elbo_star > searches[0].elbo_star)[:, None]
    q = Gaussian(*(torch.where(second, b, a) for a, b in zip(searches[0].q, searches[1].q, strict=True)))
    generator = torch_generator(config.seed, "score", device=x.device)
    joint, total, square = log_joint(trained.model, x), 0.0, 0.0
    with torch.no_grad():
        for _ in range(SCORE_DRAWS // 50):
            noise = torch.empty(50, *q.loc.shape, dtype=x.dtype, device=x.device).normal_(generator=generator)
            log_q = torch.distributions.Normal(q.loc, q.scale).log_prob(q.loc + q.scale * noise).sum(-1)
            weights = (joint(q.loc + q.scale * noise) - log_q).double()
            total, square = total + weights.sum(0), square + weights.square().sum(0)
    assert isinstance(total, Tensor)
    assert isinstance(square, Tensor)
    mean = total / SCORE_DRAWS
    error = ((square / SCORE_DRAWS - mean.square()).clamp(min=0) / SCORE_DRAWS).sqrt()
    return searches[0]._replace(elbo_star=mean, standard_error=error, q=q)


def _amortized(config: ToyConfig, trained: Trained, family: str, x: Tensor, watch: Watch) -> tuple[Estimate, Tensor]:
    """ELBO of an encoder of this family, and its draws ``(S, B, 2)``."""
    wanted = replace(trained.config, family=family, num_flows=4)
    guide: Guide = fit_encoder(
        trained, wanted, config.encoder_epochs, 2e-3, lambda done, total: watch(f"encoder {family}", done, total)
    )
    found = guide_elbo(trained.model, guide, x, config.seed)
    few = x[:DRAWN].repeat(DRAWS, 1)
    with torch.no_grad(), global_seed(config.seed, "draws", family):
        trace = poutine.trace(guide).get_trace(few)
    node: Any = trace.nodes["z"]
    draws = node["value"].reshape(DRAWS, -1, 2)
    return Estimate(torch.from_numpy(found["elbo"]), torch.from_numpy(found["elbo_error"])), draws


def _best(
    config: ToyConfig, trained: Trained, family: str, x: Tensor, best: LocalOptimum, watch: Watch
) -> tuple[Estimate, Tensor]:
    """ELBO of the best q of this family for each point, and its draws ``(S, B, 2)``."""
    generator = torch_generator(config.seed, "draws", family, device=x.device)
    if family == "gaussian":
        noise = torch.empty(DRAWS, *best.q.loc.shape, dtype=x.dtype, device=x.device).normal_(generator=generator)
        return Estimate(best.elbo_star.double(), best.standard_error), best.q.loc + best.q.scale * noise
    found = optimize_flow(
        trained.model,
        best,
        x,
        settings=FlowSettings(family, num_flows=4),
        search=FlowSearchSettings(num_steps=config.steps, num_score=SCORE_DRAWS),
        seed=config.seed,
        progress=lambda done, total: watch(f"best {family}", done, total),
    )
    return Estimate(found.elbo_star.double(), found.standard_error), found.sample(DRAWS, generator)[0]


def _start(config: ToyConfig, trained: Trained, family: str) -> Row:
    name = f"{trained.config.name}, 2 latents"
    return Row("toy-posteriors", trained.data.name, name, family, None, config.seed, 0, 0.0, "", None)
