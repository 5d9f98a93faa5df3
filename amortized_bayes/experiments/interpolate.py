"""The family gap without training A-VI: f is fitted to the optimum of F-VI by regression, and its answers are scored.

A-VI can do what F-VI does where one f gives each point its optimum (Margossian & Blei, *Amortized Variational
Inference: When and Why?*, UAI 2024). The forecast is the mean residual of f, the divergence from each point's optimum;
beside it stands the ELBO that f's answers really lose, exact for Gaussian models and by quadrature for the nonlinear
one. They are equal where points are independent given what they share and f's answers leave theta alone.

``python run_experiments.py interpolate`` runs preset *quick*: about three minutes on two cores. Expect forecasts below
0.01 nats per point where ``when-and-why`` finds gaps as small, and the same order of inputs elsewhere. *paper* has its
sizes. For a model of one's own: ``amortized_bayes.inference.interpolation.interpolate`` (docs/when_and_why.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from amortized_bayes.configuration import Above, AtLeast
from amortized_bayes.experiments.series_settings import SHOWN_WIDTHS, SeriesSettings, datasets, problem_of
from amortized_bayes.experiments.spec import Column, Drawn, Job, Measured, Table, Work, measured
from amortized_bayes.labels import SEES
from amortized_bayes.per_point import mean_over_points

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab

__all__ = ["FIGURES", "PRESETS", "TABLES", "Config", "datasets", "jobs"]

FIT = "regression"
"""Stage of the progress."""


@dataclass(frozen=True)
class Config(SeriesSettings):
    """Forecast the family gap by regression on F-VI's optimum (after Margossian & Blei 2024).

    Args:
        steps: Steps of Adam on all points; L-BFGS continues from there.
        learning_rate: Initial learning rate of Adam.
    """

    steps: Annotated[int, AtLeast(1)] = 1_000
    learning_rate: Annotated[float, Above(0)] = 0.02


PRESETS = {
    "quick": Config(),
    "paper": Config(widths=(0, 1, 2, 4, 8, 16, 32), points=1_000, steps=5_000, seeds=(0, 1, 2, 3, 4)),
}
TABLES = tuple(
    Table(
        ("dataset", "sees"),
        tuple(Column(metric, {"k": k}, f"k = {k}" if k else "linear f") for k in SHOWN_WIDTHS),
        title,
        apart=(),
    )
    for metric, title in (
        ("forecast", "Forecast of the family gap, by what f sees and how wide it is"),
        ("forecast_exact", "ELBO that these answers lose beside F-VI's optimum"),
    )
)
FIGURES = {
    "interpolate": Drawn(
        "gaps_by_input",
        {"metric": "forecast", "heading": "What an f loses that was fitted to F-VI's optimum: a forecast"},
    )
}


def jobs(config: Config, lab: Lab) -> Iterator[Job]:
    """A regression per job."""
    for seed in config.seeds:
        for name in config.models:
            for sees in SEES[name]:
                for k in config.widths:
                    factors = {"dataset": name, "seed": seed, "sees": sees, "k": k}
                    size = config.points * max(k, 1) * (2 * config.points if sees == "whole" else 10)
                    work = [Work(FIT, 1, partial(_seconds, config.steps, size), "habit")]
                    yield Job(factors, partial(_regress, config, lab, name, seed, sees, k), work=work)


def _seconds(steps: int, size: int) -> float:
    """Of a regression whose first layer takes so many multiplications."""
    return (steps + 300) * (1e-3 + 1e-9 * size)


def _regress(config: Config, lab: Lab, name: str, seed: int, sees: str, k: int) -> Iterator[Measured]:
    """Fit f, and say what its answers lose: by their residuals, and in truth."""
    from amortized_bayes.inference.interpolation import interpolate

    problem: Any = problem_of(lab, name, config.points, seed)
    options = {"num_steps": config.steps, "learning_rate": config.learning_rate, "seed": seed}
    found = interpolate(problem.case.inputs[sees], problem.truth.local_best(), width=k, **options)
    lab.watch(FIT, 1, 1)
    yield measured("forecast", mean_over_points(found.residual.numpy()))
    yield Measured("forecast_exact", float(problem.truth.answer(found.answers).lost) / problem.num_data)
