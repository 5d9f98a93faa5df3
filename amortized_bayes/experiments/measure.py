"""What is measured of a fit: while it runs, at its end, and against the other fits of its data set and seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from amortized_bayes.evaluation.bounds import Elbo, elbo, iwae, log_predictive, mean_over_points
from amortized_bayes.evaluation.errors import active_units, mean_prediction, mean_squared_error
from amortized_bayes.experiments.setup import ImageData
from amortized_bayes.experiments.sweep import SweepConfig
from amortized_bayes.guides import LocalGuide

__all__ = [
    "VACUOUS_KL",
    "Measure",
    "final_measures",
    "held_out_measures",
    "mse_on",
    "over_points",
    "paired_difference",
    "steps_to_target",
    "train_elbo",
    "train_measures",
    "vacuous",
]

VACUOUS_KL = 1.0
"""A fit whose mean KL is below this many nats says nothing about inference: its latents are dead."""


class Measure(NamedTuple):
    """A number, its standard error and what that is taken over."""

    value: float | None
    standard_error: float | None = None
    error_over: str | None = None


def over_points(values: Tensor) -> Measure:
    """Mean of a value a point, with the standard error over points."""
    value, error = mean_over_points(values)
    return Measure(value, *_known(error, "points"))


def train_elbo(config: SweepConfig, problem: ImageData, model: nn.Module, guide: LocalGuide, num_draws: int) -> Elbo:
    """ELBO of every training point."""
    index = torch.arange(len(problem.train), device=problem.train.device)
    return elbo(
        model,
        guide,
        problem.train.float(),
        index,
        num_draws=num_draws,
        num_data=len(problem.train),
        local_reparametrization=config.decoder == "bayesian",
    )


def mse_on(model: nn.Module, guide: LocalGuide, data: Tensor, grey: Tensor) -> Measure:
    """Squared error against grey pixels, decoding mean z through mean theta."""
    index = torch.arange(len(data), device=data.device)
    return over_points(mean_squared_error(mean_prediction(model, guide, data.float(), index).observed, grey))


def train_measures(config: SweepConfig, problem: ImageData, model: nn.Module, guide: LocalGuide) -> dict[str, Measure]:
    """Numbers for the curves: one draw of the ELBO on all training points, its KL, and the error."""
    found = train_elbo(config, problem, model, guide, num_draws=1)
    return {
        "elbo": over_points(found.value),
        "kl": over_points(found.kl),
        "mse_train": mse_on(model, guide, problem.train, problem.grey_train),
    }


def final_measures(
    config: SweepConfig, problem: ImageData, model: nn.Module, guide: LocalGuide
) -> tuple[dict[str, Measure], dict[str, np.ndarray]]:
    """Numbers for the table, and per-point values that comparisons are made from."""
    found = train_elbo(config, problem, model, guide, config.elbo_draws)
    some = torch.arange(min(config.iwae_points, len(problem.train)), device=problem.train.device)
    bound = iwae(
        model,
        guide,
        problem.train[some].float(),
        some,
        num_particles=config.iwae_particles,
        num_shared=4 if config.decoder == "bayesian" else 1,
        num_data=len(problem.train),
    )
    index = torch.arange(len(problem.train), device=problem.train.device)
    latents = mean_prediction(model, guide, problem.train.float(), index).latents
    error = (found.standard_error.double().square().sum().sqrt() / len(found.value)).item()
    measures = {
        "final_elbo": over_points(found.value),
        "final_elbo_monte_carlo": Measure(found.value.double().mean().item(), *_known(error, "monte carlo")),
        "final_iwae": over_points(bound.value),
        "final_iwae_gain": over_points(bound.value - found.value[some]),
        "final_kl": over_points(found.kl),
        "final_kl_shared": Measure(-found.shared.item()),
        "active_units": Measure(active_units(latents)),
        "final_mse_train": mse_on(model, guide, problem.train, problem.grey_train),
    }
    return measures, {"elbo": found.value.float().cpu().numpy()}


def held_out_measures(
    config: SweepConfig, model: nn.Module, guide: LocalGuide, data: Tensor, grey: Tensor
) -> dict[str, Measure]:
    """Numbers on test points: error, terms of the ELBO, and the log predictive density (no ELBO, see DESIGN)."""
    index = torch.arange(len(data), device=data.device)
    bayesian = config.decoder == "bayesian"
    terms = elbo(model, guide, data.float(), index, num_draws=4, local_reparametrization=bayesian)
    some = index[: config.iwae_points]
    predictive = log_predictive(
        model,
        guide,
        data[some].float(),
        some,
        num_particles=max(2, config.iwae_particles // 4) if bayesian else config.iwae_particles,
        num_shared=8 if bayesian else 1,
    )
    return {
        "final_mse_test": mse_on(model, guide, data, grey),
        "test_log_likelihood": over_points(terms.log_likelihood),
        "test_kl": over_points(terms.kl),
        "log_predictive": over_points(predictive.value),
    }


def paired_difference(a: np.ndarray, b: np.ndarray) -> Measure:
    """Mean of a - b with its standard error over points, the points being paired."""
    return over_points(torch.from_numpy(a).double() - torch.from_numpy(b).double())


def steps_to_target(
    steps: np.ndarray, seconds: np.ndarray, elbos: np.ndarray, target: float
) -> tuple[float, float] | None:
    """Step and second at which a curve first reaches ``target``, between two reports on log axes; ``None`` if never."""
    reached = np.flatnonzero(elbos >= target)
    if not len(reached):
        return None
    i = int(reached[0])
    if i == 0:
        return float(steps[0]), float(seconds[0])
    part = (target - elbos[i - 1]) / (elbos[i] - elbos[i - 1])

    def between(values: np.ndarray) -> float:
        return float(math.exp((1 - part) * math.log(values[i - 1]) + part * math.log(values[i])))

    return between(steps), between(seconds)


def _known(error: float, over: str) -> tuple[float, str] | tuple[None, None]:
    """An error and what it is over, or nothing where one point or draw gives none."""
    return (error, over) if math.isfinite(error) else (None, None)


def vacuous(measures: Mapping[str, Measure]) -> bool:
    """Whether the latents carry less than one nat."""
    kl = measures["final_kl"].value
    return kl is not None and kl < VACUOUS_KL
