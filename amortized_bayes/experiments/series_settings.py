"""Settings that the experiments on the models of ``models/series.py`` share. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from amortized_bayes.configuration import AtLeast, Different, Settings
from amortized_bayes.labels import SEES

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab
    from amortized_bayes.experiments.series_fits import Problem

__all__ = ["SHOWN_WIDTHS", "SeriesSettings", "datasets", "problem_of"]

SeriesName = Literal["linear", "nonlinear", "two-levels", "saw", "random-walk", "gaussian-process"]
SHOWN_WIDTHS = (0, 1, 2, 4, 8, 16, 32)
"""Of which there are columns."""


@dataclass(frozen=True)
class SeriesSettings(Settings):
    """Models of which it is known what f must see.

    Args:
        models: Models by name; f sees its own point, and rows about it where the model ties points.
        widths: Hidden units k of f, in one layer; 0 makes it linear.
        points: N, data points drawn from each model.
        seeds: One run per seed; seeds choose data, first weights and draws.
    """

    models: Annotated[tuple[SeriesName, ...], Different()] = tuple(SEES)  # pyright: ignore[reportAssignmentType]
    widths: Annotated[tuple[int, ...], Different(), AtLeast(0, 10_000)] = (0, 1, 4, 16)
    points: Annotated[int, AtLeast(10, 100_000)] = 200
    seeds: Annotated[tuple[int, ...], Different(), AtLeast(0)] = (0, 1)


def datasets(config: SeriesSettings, lab: Lab) -> tuple[str, ...]:
    """No data: they are drawn from the models."""
    del config, lab
    return ()


def problem_of(lab: Lab, name: str, points: int, seed: int) -> Problem:
    """A model with its data, kept for the jobs that share it."""
    from amortized_bayes.experiments.series_fits import Problem, case

    return lab.recent(("series", name, points, seed), lambda: Problem(case(name, points, seed)))
