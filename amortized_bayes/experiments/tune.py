"""Learning rates of each guide from one grid, the same number of pairs for each.

``python run_experiments.py tune`` tries 9 pairs per guide on each data set, with a quarter of the epochs and a seed of
its own: about 12 minutes for both data sets on two cores. Pairs for A-VI are tried on its middle and its widest
encoder, since a rate that suits one can break the other. A local rate with which any trial diverged is out; of the
rest, the pair with the highest final ELBO (mean over trials) wins. ``sweep --tune`` runs this first, and then the sweep
with the winners. Expect local rates of 0.016 for A-VI and of 0.4 for the rows of F-VI (docs/tuning.md has all numbers).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from amortized_bayes.configuration import SettingError
from amortized_bayes.experiments.fit_settings import PAPER, FitSettings, factors, rates_field, substitutes
from amortized_bayes.experiments.guide_fits import Place
from amortized_bayes.experiments.spec import Job, Measured, Points, Table
from amortized_bayes.guides.registry import GUIDES, Fit, Rates, list_fits

if TYPE_CHECKING:
    import pandas as pd

    from amortized_bayes.experiments.lab import Lab

__all__ = [
    "FIGURES",
    "FINDINGS",
    "PRESETS",
    "SHARED",
    "TABLES",
    "TUNING_SEED",
    "Config",
    "config_of",
    "factors",
    "jobs",
    "rates_tried",
    "substitutes",
    "tuned",
    "with_winners",
]

TUNING_SEED = 10_000
"""Seed of the trials, which no reported run uses."""
SHARED = (1.6e-2, 3.2e-2, 6.4e-2)
"""Rates of q(theta) and of the model's parameters that are tried, each with every local rate of a guide's entry."""
STAGE = "trial"
DRAWS = 2

Swept = TypeVar("Swept", bound=FitSettings)


def tuned(guides: Sequence[str]) -> tuple[str, ...]:
    """The guides that have a grid, each once; one that takes its rates from another stands for that one.

    Example:
        >>> tuned(("refined", "factorized", "semi-amortized"))
        ('amortized', 'factorized')
    """
    found = (guide if GUIDES[guide].tuned_over else GUIDES[guide].like for guide in guides)
    return tuple(dict.fromkeys(name for name in found if name and GUIDES[name].tuned_over))


@dataclass(frozen=True)
class Config(FitSettings):
    """Choose learning rates, for every guide from a grid of nine pairs."""

    def check(self) -> None:
        """Refuse guides none of which has a grid, which leave nothing to try."""
        super().check()
        if not tuned(self.guides):
            known = ", ".join(name for name, entry in GUIDES.items() if entry.tuned_over)
            got = ", ".join(self.guides) or "none"
            raise SettingError(f"expected --guides with learning rates to try, such as {known}, got {got}")


PRESETS: dict[str, Config] = {"quick": Config(), "paper": Config(**PAPER)}
TABLES = (Table(("guide", "k", "shared_rate", "local_rate"), ("tune_elbo", "status"), "{dataset}: learning rates"),)
FIGURES = {
    "tune": (Points("local_rate", "tune_elbo", hue="guide", apart="shared_rate", title="ELBO by learning rates"),)
}
FINDINGS = ("best_guides",)


def config_of(config: FitSettings) -> Config:
    """The settings of a sweep that its trials share."""
    return Config(**{field.name: getattr(config, field.name) for field in fields(Config)})


def rates_tried(guide: str) -> list[Rates]:
    """The grid of a guide."""
    return [Rates(shared, local) for shared in SHARED for local in GUIDES[guide].tuned_over]


def jobs(config: Config, lab: Lab) -> list[Job]:
    """A fit for each pair of rates, of each guide with a grid on each data set."""
    found = []
    for dataset in config.dataset:
        place = Place(config, lab, dataset, TUNING_SEED)
        for guide in tuned(config.guides):
            for fit in _fits(config, guide):
                work = [place.work(STAGE, _epochs(config.epochs), fit)]
                for rates in rates_tried(guide):
                    named = {"shared_rate": rates.shared, "local_rate": rates.local}
                    about = {"dataset": place.name, **fit.factors, **named}
                    found.append(Job(about, partial(_trial, place, fit, rates), work=work))
    return found


def _fits(config: Config, guide: str) -> list[Fit]:
    """What each pair of rates is tried on."""
    widths = sorted(config.widths)
    return list_fits((guide,), tuple(dict.fromkeys((widths[len(widths) // 2], widths[-1]))))


def _epochs(epochs: int) -> int:
    return max(1, epochs // 4)


def _trial(place: Place, fit: Fit, rates: Rates) -> Iterator[Measured]:
    """Fit a guide with one pair of rates."""
    import pyro

    from amortized_bayes.comparing.fitting import train_kept
    from amortized_bayes.comparing.measures import fit_elbo, over_points
    from amortized_bayes.comparing.starting import start_fit
    from amortized_bayes.keeping import kept

    problem = place.problem()
    fitting = start_fit(problem, fit, options=place.options(fit, rates))
    training = fitting.training
    with kept("trial", training.state) as loop:
        if loop.found is not None:
            training.load_state(loop.found)
        train_kept(training, _epochs(problem.epochs) * training.batches.per_epoch, place.watch(STAGE), loop, 0)
    with pyro.validation_enabled(False), training.averaged():
        found = over_points(fit_elbo(problem, fitting.model, fitting.guide, DRAWS))
    if found.value is None or not math.isfinite(found.value):
        raise ArithmeticError(f"ELBO of {found.value} after {training.steps} steps")
    yield Measured("tune_elbo", *found, step=training.steps, seconds=training.seconds)


def with_winners(config: Swept, rows: pd.DataFrame) -> Swept:
    """The configuration of a sweep with the rates that won, from the rows of its trials.

    Raises:
        ValueError: a guide for which every trial failed.
    """
    chosen: dict[str, Any] = {"tune": False}
    others = {name: (name, *rates) for name, *rates in getattr(config, "rates_others", ())}
    for guide in tuned(config.guides):
        own = rows[rows["guide"] == guide]
        unstable = own.loc[own["status"] == "failed", "local_rate"]
        stable = own[(own["metric"] == "tune_elbo") & ~own["local_rate"].isin(unstable)]
        if stable.empty:
            raise ValueError(f"expected learning rates that work for {GUIDES[guide].label} in every trial, got none")
        scores: Any = stable.groupby(["shared_rate", "local_rate"])["value"].mean()
        shared, local = map(float, scores.idxmax())
        if hasattr(config, rates_field(guide)):
            chosen[rates_field(guide)] = (shared, local)
        else:
            others[guide] = (guide, shared, local)
    return replace(config, **chosen, rates_others=tuple(others.values()))
