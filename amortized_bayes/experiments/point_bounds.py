"""All bounds at the same points of one model: L[q], L[q*] of several families, IWAE, AIS and its certificate."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from amortized_bayes.evaluation.ais import ais
from amortized_bayes.evaluation.bdmc import bdmc
from amortized_bayes.evaluation.bounds import iwae
from amortized_bayes.evaluation.gaps import Estimate, Gap, log_evidence, paired_gap
from amortized_bayes.evaluation.settings import AISSettings
from amortized_bayes.evaluation.streaming import weight_blocks
from amortized_bayes.experiments.suboptimality import BoundsConfig
from amortized_bayes.flows import FlowSettings
from amortized_bayes.inference.flow_search import FlowSearchSettings, optimize_flow
from amortized_bayes.inference.optimize import LocalSettings, optimize_local
from amortized_bayes.joint import global_seed, log_joint
from amortized_bayes.seeding import numpy_generator
from amortized_bayes.types import Guide, Model, Row

__all__ = [
    "PointBounds",
    "at",
    "best_bounds",
    "choose",
    "evidence_bounds",
    "gap_of",
    "guide_elbo",
    "measure_rows",
    "refuse_infinite",
]

PointBounds = dict[str, np.ndarray]
"""By name, values ``(B,)`` in nats, and under ``<name>_error`` their Monte Carlo standard errors."""
ELBO_DRAWS = 1_000
MAX_ROWS = 20_000

Watch = Callable[[str, int, int], None]


def choose(images: Tensor, count: int, seed: int, *names: str) -> np.ndarray:
    """Places of ``count`` images, after a shuffle by the stream ``names`` of ``seed``, in order."""
    return np.sort(numpy_generator(seed, *(names or ("points",))).permutation(len(images))[:count])


def at(images: Tensor, places: np.ndarray) -> Tensor:
    """Images at these places, as floats."""
    return images[torch.from_numpy(places).to(images.device)].float()


def guide_elbo(model: Model, guide: Guide, x: Tensor, seed: int) -> PointBounds:
    """L[q] of a guide."""
    with global_seed(seed, "elbo"):
        log_w = torch.cat(list(weight_blocks(log_joint(model, x), guide, ELBO_DRAWS, MAX_ROWS))).double()
    return _named("elbo", log_w.mean(0), log_w.std(0) / math.sqrt(len(log_w)))


def best_bounds(model: Model, guide: Guide, x: Tensor, config: BoundsConfig, seed: int, watch: Watch) -> PointBounds:
    """L[q*] of each family: the Gaussian from the guide's answer, the others from the best Gaussian."""
    settings = LocalSettings(max_steps=config.local_steps, num_score=ELBO_DRAWS)
    begin = optimize_local(
        model, guide, x, settings=settings, seed=seed, progress=lambda done, total: watch("best gaussian", done, total)
    )
    found = _named("best_gaussian", begin.elbo_star, begin.standard_error)
    for family in config.best_families[1:]:
        best = optimize_flow(
            model,
            begin,
            x,
            settings=FlowSettings(family, num_flows=config.num_flows, hidden=(config.flow_hidden,) * 2),
            search=FlowSearchSettings(num_steps=config.flow_steps),
            seed=seed,
            progress=lambda done, total, f=family: watch(f"best {f}", done, total),
        )
        found |= _named(f"best_{family}", best.elbo_star, best.standard_error)
    return found


def evidence_bounds(
    model: Model, guide: Guide, x: Tensor, config: BoundsConfig, seed: int, watch: Watch
) -> tuple[PointBounds, tuple[float, float]]:
    """Lower bounds on log p(x) by AIS and IWAE, and the mean gap of AIS on simulated points with its error."""
    settings = AISSettings(
        num_chains=config.chains,
        num_temperatures=config.temperatures,
        num_leapfrog=config.leapfrog,
        start=config.start,
        mass=config.mass,
    )
    options = {"settings": settings, "seed": seed}
    lower = ais(model, guide, x, progress=lambda done, total: watch("ais", done, total), **options)
    both = bdmc(
        model,
        guide,
        x,
        num_points=config.simulated,
        progress=lambda done, total: watch("certificate", done, total),
        **options,
    )
    with global_seed(seed, "iwae"):
        weighted = iwae(model, guide, x, num_particles=config.particles)
    found = _named("ais", lower.log_p, lower.standard_error)
    return found | _named("iwae", weighted.value, weighted.standard_error), (both.mean_gap, both.gap_error)


def gap_of(found: PointBounds, family: str) -> dict[str, Gap]:
    """The three gaps with the best q of ``family`` in the middle, paired by point."""
    log_p = log_evidence(_estimate(found, "ais"), _estimate(found, "iwae")).chosen
    best, own = _estimate(found, f"best_{family}"), _estimate(found, "elbo")
    return {
        "approximation_gap": paired_gap(log_p, best),
        "amortization_gap": paired_gap(best, own),
        "inference_gap": paired_gap(log_p, own),
    }


def measure_rows(start: Row, found: PointBounds, gaps: dict[str, Gap]) -> list[Row]:
    """Means of all bounds and gaps with standard errors over points; negative gaps say so."""
    rows = []
    for name, values in found.items():
        if not name.endswith("_error"):
            error = float(values.std(ddof=1) / math.sqrt(len(values)))
            rows.append(start._replace(metric=name, value=float(values.mean()), standard_error=error))
    for name, gap in gaps.items():
        note = f"negative, z = {gap.mean_z:.1f}" if gap.mean < 0 else ""
        rows.append(start._replace(metric=name, value=gap.mean, standard_error=gap.mean_error, note=note))
    return [row._replace(error_over="points") for row in rows]


def refuse_infinite(found: PointBounds) -> None:
    """Raise ``ArithmeticError`` where an estimate is NaN or infinite: flows may blow up at single points."""
    for name, values in found.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ArithmeticError(f"{name} is {values[bad[0]]} at point {bad[0]}, and at {len(bad)} in all")


def _named(name: str, value: Tensor, error: Tensor) -> PointBounds:
    return {name: value.double().cpu().numpy(), f"{name}_error": error.double().cpu().numpy()}


def _estimate(found: PointBounds, name: str) -> Estimate:
    return Estimate(torch.from_numpy(found[name]), torch.from_numpy(found[f"{name}_error"]))
