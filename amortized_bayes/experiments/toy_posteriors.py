"""``toy-posteriors``: with two latents the posterior can be seen, and its evidence is a sum over a grid.

After Cremer, Li & Duvenaud (ICML 2018), section 5.1. A VAE with two latents is trained and its decoder held fixed; for
each family an encoder is trained, and the best q of each point looked for. Gaps are exact but for the draws of q:
log p(x) is the sum of p(x, z) over a grid around the posterior.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro.poutine as poutine
import torch
from torch import Tensor

from amortized_bayes.evaluation.gaps import Estimate, paired_gap
from amortized_bayes.experiments.encoders import fit_encoder
from amortized_bayes.experiments.point_bounds import Watch, at, choose, guide_elbo
from amortized_bayes.experiments.suboptimality import ToyConfig, toy_base
from amortized_bayes.experiments.trained import Trained, obtain
from amortized_bayes.inference.flow_families import FamilyName
from amortized_bayes.inference.flow_search import FlowSearchSettings, optimize_flow
from amortized_bayes.inference.optimize import LocalOptimum, LocalSettings, optimize_local
from amortized_bayes.joint import global_seed, log_joint
from amortized_bayes.results import RunFolder
from amortized_bayes.seeding import torch_generator
from amortized_bayes.types import Guide, Row

__all__ = ["DRAWN", "log_evidence_on_grid", "run_toy"]

DRAWN = 4
"""Points of the picture."""
DRAWS = 20_000
"""Draws of each q in it."""
REACH = 12.0
"""Half the side of the grid, in scales of the best Gaussian; what mass a posterior has beyond is not seen."""


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
    settings = LocalSettings(max_steps=config.steps, tolerance=0.0, num_score=5_000)
    best = optimize_local(
        trained.model,
        trained.guide,
        x,
        settings=settings,
        seed=config.seed,
        progress=lambda done, total: watch("best gaussian", done, total),
    )
    if "posterior" not in folder.done():
        log_p, axes, density = log_evidence_on_grid(trained, x, best, config.grid, watch)
        folder.save_arrays("posterior", log_p=log_p, axes=axes[:DRAWN], density=density[:DRAWN], places=places)
        folder.mark_done("posterior")
    log_p = torch.from_numpy(folder.load_arrays("posterior")["log_p"])
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


def log_evidence_on_grid(
    trained: Trained, x: Tensor, best: LocalOptimum, cells: int, watch: Watch = lambda *_: None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log p(x) of each point by the midpoint rule, and the posterior density on its grid.

    Returns:
        ``(B,)`` in nats; the coordinates of the cells, ``(B, 2, G)``; the density, ``(B, G, G)`` per unit of area.
    """
    found, axes, density = [], [], []
    for point in range(len(x)):
        loc, scale = best.q.loc[point].double(), best.q.scale[point].double()
        steps = (torch.arange(cells, device=x.device) + 0.5) / cells * 2 - 1
        axis = loc[:, None] + REACH * scale[:, None] * steps  # (2, G)
        z = torch.cartesian_prod(axis[0], axis[1]).to(x.dtype)
        joint = log_joint(trained.model, x[point : point + 1])
        with torch.no_grad():
            log_p = torch.cat([joint(part[:, None])[:, 0] for part in z.split(20_000)]).double()
        area = (axis[:, 1] - axis[:, 0]).prod()
        evidence = log_p.logsumexp(0) + area.log()
        found.append(evidence.item())
        axes.append(axis.cpu().numpy())
        watch("grid", point + 1, len(x))
        density.append((log_p - evidence).exp().reshape(cells, cells).cpu().numpy())
    return np.array(found), np.stack(axes), np.stack(density)


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
    config: ToyConfig, trained: Trained, family: FamilyName, x: Tensor, best: LocalOptimum, watch: Watch
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
        family=family,
        num_flows=4,
        settings=FlowSearchSettings(num_steps=config.steps, num_score=5_000),
        seed=config.seed,
        progress=lambda done, total: watch(f"best {family}", done, total),
    )
    return Estimate(found.elbo_star.double(), found.standard_error), found.sample(DRAWS, generator)[0]


def _start(config: ToyConfig, trained: Trained, family: str) -> Row:
    name = f"{trained.config.name}, 2 latents"
    return Row("toy-posteriors", trained.data.name, name, family, None, config.seed, 0, 0.0, "", None)
