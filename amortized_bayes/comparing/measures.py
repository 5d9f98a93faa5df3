"""What is measured of a guide, on the way and at its end."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from amortized_bayes.comparing.problem import FitProblem, Held, floats
from amortized_bayes.evaluation.bounds import Elbo, elbo, iwae, log_predictive
from amortized_bayes.evaluation.errors import (
    active_units,
    hidden_units_in_use,
    local_values,
    mean_prediction,
    mean_squared_error,
)
from amortized_bayes.guides import LocalGuide
from amortized_bayes.per_point import PerPoint, PointValues, mean_over_points, paired_difference

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


RUNG_DRAWS = 2
"""Draws at most for the ELBO below the top of the ladder."""
HELD_DRAWS = 8
"""Draws of the terms of the ELBO on test points."""


class Measure(NamedTuple):
    """A number, its standard error and what that is taken over."""

    value: float | None
    error: float | None = None
    error_over: str | None = None


def over_points(values: Tensor | np.ndarray | PerPoint) -> Measure:
    """Mean of a value per point, with the standard error over points, and over shared draws where values say theirs.

    One point alone gives no error, nor does one draw of shared latents.
    """
    return _known(*mean_over_points(values), "points")


def paired(upper: Tensor | np.ndarray | PerPoint, lower: Tensor | np.ndarray | PerPoint) -> Measure:
    """Mean of ``upper - lower``, the points being paired, and shared draws, where there were any, independent."""
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
    found = fit_elbo(problem, model, guide, min(problem.num_draws, RUNG_DRAWS))
    measures = {"elbo": over_points(found), "kl": over_points(found.kl), "active_units": _active(problem, guide)}
    if problem.held is not None:
        measures["mse_train"] = mse_of(model, guide, problem.tensor, problem.held.target)
    return measures, found


def final_measures(problem: FitProblem, model: Any, guide: LocalGuide) -> tuple[dict[str, Measure], Elbo]:
    """Numbers about the training points, and the ELBO of each, from which comparisons are made."""
    found = fit_elbo(problem, model, guide, problem.num_draws)
    measures = {
        "final_elbo": over_points(found),
        "final_kl": over_points(found.kl),
        "active_units": _active(problem, guide),
    }
    if problem.held is None:
        return measures, found
    some = problem.index[: problem.held.points]
    bound = iwae(model, guide, problem.x[some], some, num_particles=problem.held.particles, num_data=len(problem.data))
    own = (found.standard_error.double().square().sum().sqrt() / len(found.value)).item()
    error = math.hypot(own, found.shared_error)
    measures |= {
        "final_elbo_monte_carlo": _known(found.value.double().mean().item(), error, "monte carlo"),
        "final_iwae": over_points(bound),
        "final_iwae_gain": paired(bound, PointValues(found.value[some], found.shared_error)),
        "final_kl_shared": Measure(-found.shared.item()),
        "final_mse_train": mse_of(model, guide, problem.tensor, problem.held.target),
    }
    hidden = hidden_units_in_use(model, guide, problem.x, problem.index)
    measures |= {} if hidden is None else {"hidden_units": Measure(hidden)}
    return measures, found


def held_measures(
    problem: FitProblem, held: Held, model: Any, guide: LocalGuide, proposal: LocalGuide | None = None
) -> dict[str, Measure]:
    """Numbers on test points: error, terms of the ELBO, and the log predictive density, which is no ELBO.

    The log predictive density is a property of model and q(theta), while its estimate, a lower bound, falls with the
    quality of q(z). Two guides are comparable where ``proposal`` holds fresh factors beside each one's own q(theta): on
    MNIST (D = 16, a Bayesian decoder) F-VI minus A-VI came out as -0.39, -0.32 and -0.35 nats from 512, 1,600 and 6,400
    draws so, and as 1.87, 1.55 and 1.30 with the encoder's q(z), still falling. Without it ``guide`` proposes.
    """
    x = floats(held.test)
    index = torch.arange(len(x), device=x.device)
    local = {"plate": problem.plate, "local_reparametrization": problem.local_reparametrization}
    terms = elbo(model, guide, x, index, num_draws=HELD_DRAWS, analytic_kl=problem.analytic_kl, **local)
    some = index[: held.predictive_points]
    predictive = log_predictive(model, proposal or guide, x[some], some, **local)
    return {
        "final_mse_test": mse_of(model, guide, held.test, held.test_target),
        "test_log_likelihood": over_points(PointValues(terms.log_likelihood, terms.shared_error)),
        "test_kl": over_points(terms.kl),
        "log_predictive": over_points(predictive),
    }


def _active(problem: FitProblem, guide: LocalGuide) -> Measure:
    """Latents that vary over training points: a fit with none is vacuous, and nothing varies over one point."""
    if len(problem.index) < 2:
        return Measure(0)
    if not isinstance(guide, LocalGuide):  # a user's own: a draw says how far its q reaches from the mean
        means, draws = (
            local_values(guide, problem.x, problem.index, plate=problem.plate, mean=m) for m in (True, False)
        )
        scales = (draws - means).abs()
    else:
        means, scales = guide.answer(problem.x, problem.index).chunk(2, -1)
        scales = scales.exp()
    # of a fit that diverged, which its ELBO says, what is no number is not active
    return Measure(active_units(means.nan_to_num(nan=0.0), scales.nan_to_num(nan=math.inf, posinf=math.inf)))


def _known(value: float, error: float, over: str) -> Measure:
    """A number with its error, or without where one point or draw gives none."""
    return Measure(value, error, over) if math.isfinite(error) else Measure(value)
