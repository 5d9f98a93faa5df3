"""All bounds at the same points of one model: L[q], L[q*] of several families, IWAE, AIS and its certificate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortized_bayes.evaluation.ais import ais
from amortized_bayes.evaluation.bdmc import bdmc
from amortized_bayes.evaluation.bounds import iwae
from amortized_bayes.evaluation.gaps import Estimate, Gap, log_evidence, paired_gap
from amortized_bayes.evaluation.settings import AISSettings, CertificateSettings
from amortized_bayes.evaluation.streaming import weight_blocks
from amortized_bayes.experiments.bounds_settings import BoundsConfig
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.setup import flow_settings
from amortized_bayes.experiments.spec import GAPS, Arrays, Job, Measured, Work, measured
from amortized_bayes.experiments.trained import Trained
from amortized_bayes.flows import FLOWS
from amortized_bayes.inference.flow_search import FlowSearchSettings, optimize_flow
from amortized_bayes.inference.optimize import LocalSettings, optimize_local
from amortized_bayes.joint import global_seed, joint_density
from amortized_bayes.keeping import known
from amortized_bayes.per_point import mean_over_points
from amortized_bayes.seeding import numpy_generator
from amortized_bayes.types import Factor, Guide, Model

__all__ = [
    "CERTIFICATE",
    "ELBO_DRAWS",
    "PointBounds",
    "bound_rows",
    "bounds_job",
    "bounds_work",
    "certificate",
    "chains_of",
    "choose",
    "class_rows",
    "decoder_bounds",
    "elbo_of",
    "gaps_of",
    "guide_bounds",
    "images_at",
    "model_bounds",
    "same_points",
    "shared_bounds",
    "some_points",
    "split_bounds",
]

PointBounds = dict[str, np.ndarray]
"""By name, values ``(B,)`` in nats, and under ``<name>_error`` their Monte Carlo standard errors."""
STAR = "elbo_star_"
"""Before the family, in names of arrays, of the best q of each point."""
ELBO_DRAWS = 1_000
MAX_ROWS = 20_000
CERTIFICATE = "certificate"
"""What it is called while it runs."""


def choose(images: Tensor, count: int, seed: int, *names: str) -> np.ndarray:
    """Places of ``count`` images, after a shuffle by the stream ``names`` of ``seed``, in order."""
    return np.sort(numpy_generator(seed, *(names or ("points",))).permutation(len(images))[:count])


def some_points(trained: Trained, split: str, count: int, seed: int, *names: str) -> tuple[np.ndarray, Tensor]:
    """Places of some images of a split, as :func:`choose` finds them, and the images there, as floats."""
    images = getattr(trained.data, split)
    places = choose(images, count, seed, *names)
    return places, images_at(images, places)


def same_points(model: VAEConfig, key: str, lab: Lab) -> tuple[Trained, Tensor, dict[str, np.ndarray]]:
    """A trained model, the training images that the job ``key`` chose, and the arrays that it left."""
    trained, found = lab.trained(model), lab.arrays(key)
    return trained, images_at(trained.data.train, found["places"]), found


def images_at(images: Tensor, places: np.ndarray) -> Tensor:
    """The images at some places, as floats."""
    return images[torch.from_numpy(places).to(images.device)].float()


def elbo_of(model: Model, guide: Guide, x: Tensor, seed: int, num_draws: int = ELBO_DRAWS) -> PointBounds:
    """L[q] of a guide."""

    def compute() -> tuple[Tensor, Tensor]:
        with global_seed(seed, "elbo"):
            log_w = torch.cat(list(weight_blocks(joint_density(model, x), guide, num_draws, MAX_ROWS))).double()
        return log_w.mean(0), log_w.std(0) / math.sqrt(len(log_w))

    return _named("elbo", Estimate(*known("elbo", compute)))


def shared_bounds(trained: Trained, x: Tensor, config: BoundsConfig, seed: int, lab: Lab) -> PointBounds:
    """What belongs to decoder and points alone: the best q of each family, and log p(x).

    The Gaussian is searched from the guide's answer, the others from the best Gaussian.
    """
    model, guide = trained.model, trained.guide
    settings = LocalSettings(max_steps=config.local_steps, max_rounds=config.local_rounds, num_score=config.score)
    begin = optimize_local(
        model,
        guide,
        x,
        settings=settings,
        seed=seed,
        progress=partial(lab.watch, "q* gaussian"),
    )
    found = _named(f"{STAR}gaussian", Estimate(begin.elbo_star, begin.standard_error))
    for family in config.best_families[1:]:
        best = optimize_flow(
            model,
            begin,
            x,
            settings=flow_settings(trained.config, family),
            search=FlowSearchSettings(num_samples=10, num_steps=config.flow_steps, num_score=config.score),
            seed=seed,
            progress=partial(lab.watch, f"q* {family}"),
        )
        found |= _named(f"{STAR}{family}", Estimate(best.elbo_star, best.standard_error))
    lower = ais(model, guide, x, settings=chains_of(config), seed=seed, progress=partial(lab.watch, "ais"))

    def weighted() -> tuple[Tensor, Tensor | None]:
        with global_seed(seed, "iwae"):
            bound = iwae(model, guide, x, num_particles=config.particles)
        return bound.value, bound.standard_error

    found |= _named("log_p_lower", Estimate(lower.log_p, lower.standard_error))
    found |= _named("iwae", Estimate(*known("iwae", weighted)))
    return found


def certificate(trained: Trained, config: BoundsConfig, lab: Lab) -> Measured:
    """How far AIS is from log p(x) at points that the model simulates: of the model, whichever points are measured."""
    seed = trained.config.seed
    both = bdmc(
        trained.model,
        trained.guide,
        some_points(trained, "train", config.simulated, seed)[1],
        settings=chains_of(config),
        certificate=CertificateSettings(config.simulated),
        seed=seed,
        progress=partial(lab.watch, CERTIFICATE),
    )
    return Measured("certificate_gap", both.mean_gap, both.gap_error, "points")


def bounds_job(factors: Mapping[str, Factor], model: VAEConfig, points: int, config: BoundsConfig, lab: Lab) -> Job:
    """Measure :func:`model_bounds` of a model, which is trained first."""
    return Job(
        factors,
        lambda: model_bounds(model, points, config, lab),
        work=bounds_work(config, model, points, lab),
        needs=[model],
        disk=32.0 * points * (6 + len(config.best_families)),
    )


def model_bounds(model: VAEConfig, points: int, config: BoundsConfig, lab: Lab) -> Iterator[Measured | Arrays]:
    """All bounds of a trained model at training points, and its gaps with the best q of its own family."""
    trained = lab.trained(model)
    yield from split_bounds(trained, "train", points, config, lab)
    yield certificate(trained, config, lab)


def split_bounds(
    trained: Trained, split: str, points: int, config: BoundsConfig, lab: Lab
) -> Iterator[Measured | Arrays]:
    """Bounds of a model at points of a split, and its gaps with the best q of its own family; no certificate."""
    seed = trained.config.seed
    places, x = some_points(trained, split, points, seed)
    found = elbo_of(trained.model, trained.guide, x, seed, config.score)
    shared = shared_bounds(trained, x, config, seed, lab)
    yield from guide_bounds(found | shared, {}, trained.config.family, places=places)


def decoder_bounds(model: VAEConfig, points: int, config: BoundsConfig, lab: Lab) -> Iterator[Measured | Arrays]:
    """What belongs to decoder and points alone, for guides that are measured at these points later."""
    trained = lab.trained(model)
    places, x = some_points(trained, "train", points, model.seed)
    found = shared_bounds(trained, x, config, model.seed, lab)
    yield from bound_rows(found)
    yield certificate(trained, config, lab)
    yield Arrays({"places": places, **found, **lab.labels(trained, "train", places)})


def guide_bounds(
    found: PointBounds, before: PointBounds, family: str, **more: np.ndarray
) -> Iterator[Measured | Arrays]:
    """Bounds of a guide and its gaps, overall and by class, beside what was found before; ``more`` is kept."""
    gaps = gaps_of({**before, **found}, family)
    arrays = {**found, **{name: gap.value.numpy() for name, gap in gaps.items()}}
    yield from bound_rows(found)
    yield from (measured(name, (gap.mean, gap.mean_error)) for name, gap in gaps.items())
    yield from class_rows(arrays, before.get("labels"))
    yield Arrays({**more, **arrays})


def bounds_work(config: BoundsConfig, model: VAEConfig, points: int, lab: Lab) -> list[Work]:
    """Costs of :func:`shared_bounds` and :func:`certificate`, in decoder evaluations with gradient."""

    def evaluations(stage: str, each: float) -> Work:
        return lab.evaluation_work(stage, model, points * each)

    gradients = config.chains * chains_of(config).num_gradients
    return [
        evaluations("q* gaussian", 10 * config.local_steps + config.score),
        *(evaluations(f"q* {f}", FLOWS[f].search_cost * 10 * config.flow_steps) for f in config.best_families[1:]),
        evaluations("ais", 1.2 * gradients),
        evaluations(CERTIFICATE, 2.4 * gradients * config.simulated / points + config.particles / 2),
    ]


def chains_of(config: Any) -> AISSettings:
    """How AIS chains walk, from the flags of an experiment."""
    return AISSettings(config.chains, config.temperatures, config.leapfrog, config.start, config.mass)


def gaps_of(found: PointBounds, family: str) -> dict[str, Gap]:
    """The three gaps with the best q of ``family`` in the middle, paired by point."""
    log_p = log_evidence(_estimate(found, "log_p_lower"), _estimate(found, "iwae")).chosen
    best, own = _estimate(found, f"{STAR}{family.removesuffix('-contextual')}"), _estimate(found, "elbo")
    return {
        "approximation_gap": paired_gap(log_p, best),
        "amortization_gap": paired_gap(best, own),
        "inference_gap": paired_gap(log_p, own),
    }


def bound_rows(found: Mapping[str, np.ndarray]) -> Iterator[Measured]:
    """Means of all bounds with standard errors over points."""
    for name, values in found.items():
        if not name.endswith("_error"):
            searched = {"searched": name.removeprefix(STAR)} if name.startswith(STAR) else {}
            yield measured("elbo_star" if searched else name, mean_over_points(values), **searched)


def class_rows(arrays: Mapping[str, np.ndarray], labels: np.ndarray | None) -> Iterator[Measured]:
    """Means of each gap by class of two points or more; nothing without labels."""
    for label in np.unique(labels) if labels is not None else []:
        here = labels == label
        if here.sum() > 1:
            yield from (measured(name, mean_over_points(arrays[name][here]), label=int(label)) for name in GAPS)


def _named(name: str, estimate: Estimate) -> PointBounds:
    assert estimate.standard_error is not None
    value, error = (part.double().cpu().numpy() for part in (estimate.value, estimate.standard_error))
    return {name: value, f"{name}_error": error}


def _estimate(found: PointBounds, name: str) -> Estimate:
    return Estimate(torch.from_numpy(found[name]), torch.from_numpy(found[f"{name}_error"]))
