"""The sweep: how wide must the encoder be, what does amortizing cost, and what does it save?

For each data set and seed one model is fitted with constant VI, with A-VI of every width k, with F-VI, and with F-VI
started at the best A-VI solution, each on a ladder of budgets (``comparing/problem.py``).

``python run_experiments.py sweep`` runs preset *quick*: about 10 minutes for both data sets on two cores. On MNIST
expect k = 256 one nat behind the best F-VI, k = 16 seven (docs/results.md has the table).
``python run_experiments.py sweep --preset paper`` runs the setting of Margossian & Blei (*Amortized Variational
Inference: When and Why?*, UAI 2024) with its known bugs fixed: about a day on one thread (docs/tuning.md). It has not
run on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from amortized_bayes.configuration import Above, AtLeast, Different, SettingError
from amortized_bayes.experiments.fit_settings import PAPER, FitSettings, factors, substitutes
from amortized_bayes.experiments.guide_fits import Place
from amortized_bayes.experiments.guide_jobs import GuideJobs
from amortized_bayes.experiments.spec import Column, Drawn, Job, Table
from amortized_bayes.guides.registry import GUIDES, SHARES

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab

__all__ = ["FIGURES", "FINDINGS", "PRESETS", "TABLES", "Config", "factors", "jobs", "prepare", "substitutes"]

Pair = Annotated[tuple[float, float], Above(0)]


@dataclass(frozen=True)
class Config(FitSettings):
    """Sweep encoder widths against F-VI and constant VI.

    Args:
        seeds: One run per seed; seeds choose images, pixels, starts and draws.
        rates_amortized: Learning rates of A-VI, of q(theta) and of the encoder.
        rates_factorized: Learning rates of F-VI, of q(theta) and of the rows.
        rates_constant: Learning rates of constant VI, of q(theta) and of the shared vector.
        rates_others: Learning rates of other guides, each as name, rate of q(theta), local rate.
        tune: Choose the learning rates first, from the grid of `tune`.
        elbo_draws: Number of draws for the final ELBO.
        iwae_particles: Number of particles for IWAE.
        iwae_points: Number of training points on which it is measured.
        predictive_points: Number of test points on which the log predictive density is measured.
    """

    seeds: Annotated[tuple[int, ...], Different(), AtLeast(0, math.inf)] = (0,)
    rates_amortized: Pair = GUIDES["amortized"].rates
    rates_factorized: Pair = GUIDES["factorized"].rates
    rates_constant: Pair = GUIDES["constant"].rates
    rates_others: tuple[tuple[str, float, float], ...] = ()
    tune: bool = False
    elbo_draws: Annotated[int, AtLeast(1)] = 10
    iwae_particles: Annotated[int, AtLeast(1)] = 50
    iwae_points: Annotated[int, AtLeast(1)] = 500
    predictive_points: Annotated[int, AtLeast(1)] = 200

    def check(self) -> None:
        """Refuse learning rates of no guide, or that are none."""
        super().check()
        for name, *rates in self.rates_others:
            if name not in GUIDES or min(rates) <= 0:
                raise SettingError(f"expected --rates-others with a guide and two rates above 0, got {[name, *rates]}")


PREDICTIVE = 512
"""Draws of the log predictive density of a point."""
PUBLISHED_RATES = (1e-3, 1e-3)
PRESETS: dict[str, Config] = {
    "quick": Config(),
    "paper": Config(
        **PAPER,
        seeds=(0, 1, 2, 3, 4),
        rates_amortized=PUBLISHED_RATES,
        rates_factorized=PUBLISHED_RATES,
        rates_constant=PUBLISHED_RATES,
    ),
}
"""Settings by name. *quick*'s rates come from ``tune`` (docs/tuning.md), *paper*'s are published."""
TABLES = (
    Table(
        ("guide", "k"),
        ("final_elbo", "family_gap", "gap_closed", "unconverged_by", "final_kl", "active_units", "status"),
        "{dataset}, seed {seed}",
    ),
    Table(
        ("guide", "k"),
        (
            "hidden_units",
            "final_iwae_gain",
            "final_mse_train",
            "final_mse_test",
            "log_predictive",
            "seconds_per_step",
        ),
        "{dataset}, seed {seed}: more",
        wide=True,
    ),
    Table(
        ("guide", "k"),
        tuple(Column("seconds_to_share", {"share": share}, f"s to {share:.0%}") for share in SHARES),
        "{dataset}, seed {seed}: seconds until a share of the gap between constant VI and the reference is closed",
        wide=True,
    ),
)
FIGURES = {
    "{dataset}_elbo": Drawn("curves", {"metric": "behind_reference"}),
    "{dataset}_mse": Drawn("curves", {"metric": "mse_train"}),
    "{dataset}_mse_test": Drawn("curves", {"metric": "mse_test"}),
    "{dataset}_comp": Drawn("curves", {"metric": "share_closed"}),
    "{dataset}_points": Drawn("point_elbos"),
    "re{number}": Drawn("reconstructions"),
    "family_gap": Drawn("family_gap"),
    "memory": Drawn("memory"),
}
FINDINGS = ("sweep",)


def prepare(config: Config, lab: Lab) -> Config:
    """The configuration with learning rates that ``tune`` chose, where that is asked for."""
    if not config.tune:
        return config
    from amortized_bayes.experiments import tune

    folder = lab.nested("tune", tune.config_of(config))
    return replace(config, tune=False) if folder is None else tune.with_winners(config, folder.rows())


def jobs(config: Config, lab: Lab) -> list[Job]:
    """All fits of each data set and seed, and the comparison."""
    places = [Place(config, lab, dataset, seed) for dataset in config.dataset for seed in config.seeds]
    numbers = (config.elbo_draws, config.iwae_particles, config.iwae_points, config.predictive_points)

    def evaluated(place: Place) -> float:
        held = config.iwae_particles * config.iwae_points + PREDICTIVE * config.predictive_points
        return config.elbo_draws * place.sizes.num_data + held

    return [
        job for place in places for job in GuideJobs(place, partial(place.problem, *numbers), evaluated(place)).jobs()
    ]
