"""What is measured of a guide, on the way and at its end."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from amortized_bayes.comparing.problem import FitProblem, Held, floats
from amortized_bayes.evaluation.bounds import Elbo, elbo, iwae, log_predictive
from amortized_bayes.evaluation.errors import active_units, mean_prediction, mean_squared_error
from amortized_bayes.guides import LocalGuide
from amortized_bayes.per_point import mean_over_points, paired_difference

__all__ = [
    "Measure",
    "final_measures",
    "fit_elbo",
    "held_measures",
    "mse_of",
    "over_points",
    "paired",
    "rung_measures",
]


class Measure(NamedTuple):
    """A number, its standard error and what that is taken over."""

    value: float | None
    error: float | None = None
    error_over: str | None = None


def over_points(values: Tensor | np.ndarray) -> Measure:
    """Mean of a value per point, with the standard error over points; one point alone gives none."""
    return _known(*mean_over_points(values), "points")


def paired(upper: Tensor | np.ndarray, lower: Tensor | np.ndarray) -> Measure:
    """Mean of ``upper - lower``, the points being paired."""
    return _known(*paired_difference(upper, lower), "points")


def fit_elbo(problem: FitProblem, model: Any, guide: LocalGuide, num_draws: int) -> Elbo:
    """ELBO of every training point."""
    return elbo(
        model,
        guide,
        problem.x,
        problem.index,
        num_draws=num_draws,
        plate=problem.plate,
        num_data=len(problem.data),
        analytic_kl=problem.analytic_kl,
        local_reparametrization=problem.local_reparametrization,
    )


def mse_of(model: Any, guide: LocalGuide, data: Tensor, target: Tensor) -> Measure:
    """Squared error of predictions, decoding mean z through mean theta."""
    index = torch.arange(len(data), device=data.device)
    return over_points(mean_squared_error(mean_prediction(model, guide, floats(data), index).observed, target))


def rung_measures(problem: FitProblem, model: Any, guide: LocalGuide) -> tuple[dict[str, Measure], Elbo]:
    """Numbers about the training points at one budget, and the ELBO of each point."""
    found = fit_elbo(problem, model, guide, problem.num_draws)
    means = mean_prediction(model, guide, problem.x, problem.index, plate=problem.plate)
    measures = {
        "elbo": over_points(found.value),
        "kl": over_points(found.kl),
        "active_units": Measure(active_units(means.latents)),
    }
    if problem.held is not None:
        measures["mse_train"] = over_points(mean_squared_error(means.observed, problem.held.target))
    return measures, found


def final_measures(problem: FitProblem, model: Any, guide: LocalGuide) -> tuple[dict[str, Measure], Elbo]:
    """Numbers about the training points, and the ELBO of each, from which comparisons are made."""
    found = fit_elbo(problem, model, guide, problem.num_draws)
    latents = mean_prediction(model, guide, problem.x, problem.index, plate=problem.plate).latents
    measures = {
        "final_elbo": over_points(found.value),
        "final_kl": over_points(found.kl),
        "active_units": Measure(active_units(latents)),
    }
    if problem.held is None:
        return measures, found
    some = problem.index[: problem.held.points]
    bound = iwae(
        model,
        guide,
        problem.x[some],
        some,
        num_particles=problem.held.particles,
        num_shared=4 if guide.shared is not None else 1,
        num_data=len(problem.data),
    )
    error = (found.standard_error.double().square().sum().sqrt() / len(found.value)).item()
    measures |= {
        "final_elbo_monte_carlo": _known(found.value.double().mean().item(), error, "monte carlo"),
        "final_iwae": over_points(bound.value),
        "final_iwae_gain": over_points(bound.value - found.value[some]),
        "final_kl_shared": Measure(-found.shared.item()),
        "final_mse_train": mse_of(model, guide, problem.data, problem.held.target),
    }
    return measures, found


def held_measures(problem: FitProblem, held: Held, model: Any, guide: LocalGuide) -> dict[str, Measure]:
    """Numbers on test points: error, terms of the ELBO, and the log predictive density, which is no ELBO."""
    shared = guide.shared is not None
    x = floats(held.test)
    index = torch.arange(len(x), device=x.device)
    terms = elbo(model, guide, x, index, num_draws=4, local_reparametrization=problem.local_reparametrization)
    some = index[: held.points]
    predictive = log_predictive(
        model,
        guide,
        x[some],
        some,
        num_particles=max(2, held.particles // 4) if shared else held.particles,
        num_shared=8 if shared else 1,
    )
    return {
        "final_mse_test": mse_of(model, guide, held.test, held.test_target),
        "test_log_likelihood": over_points(terms.log_likelihood),
        "test_kl": over_points(terms.kl),
        "log_predictive": over_points(predictive.value),
    }


def _known(value: float, error: float, over: str) -> Measure:
    """A number with its error, or without where one point or draw gives none."""
    return Measure(value, error, over) if math.isfinite(error) else Measure(value)
