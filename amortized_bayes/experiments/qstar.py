"""How far q*, the best q of a point, can be trusted: restarts, initial spreads, starts and budgets.

``python run_experiments.py qstar CHECKPOINT`` runs preset *quick*: 50 points, in about three minutes on two cores for
the model of ``train``. Expect searches from the encoder's answer, moved by half a scale, within 0.1 nats of the
reference after 300 steps (4,500 decoder evaluations), and those from the prior far behind at that budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, Literal

from amortized_bayes.configuration import AtLeast, Different, Even, Settings
from amortized_bayes.experiments.checkpoints import CheckpointName, checkpoint_config, datasets, prepare
from amortized_bayes.experiments.settings import model_factors
from amortized_bayes.experiments.spec import Arrays, Drawn, Job, Measured, Table, measured
from amortized_bayes.limits import Seed

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab
    from amortized_bayes.experiments.searching import Search

__all__ = ["FIGURES", "PRESETS", "TABLES", "Config", "datasets", "jobs", "prepare"]

PAIRS = Even("since draws come in pairs")


@dataclass(frozen=True)
class Config(Settings):
    """Test how far q*, the best q of a point, can be trusted: restarts, initial spreads, starts and budgets.

    Args:
        checkpoint: Run of `train` to measure: its path, its name, or latest.
        split: Which points to measure.
        points: Number of points, after a seeded shuffle; all if there are fewer.
        restarts: Searches per point from each start, with shifted means.
        spreads: Sizes of these shifts, in scales of q.
        starts: Where searches start: the encoder's answer, or the prior.
        budgets: Steps of a search.
        samples: Draws of each q per step.
        reference_steps: Steps of the reference, which starts at the encoder's answer.
        reference_samples: Draws of each q per step of the reference.
        score: Fresh draws that score each q.
        seed: Random seed for all draws.
    """

    checkpoint: CheckpointName = "latest"
    split: Literal["train", "test"] = "train"
    points: Annotated[int, AtLeast(2)] = 50
    restarts: Annotated[int, AtLeast(2)] = 3
    spreads: Annotated[tuple[float, ...], Different(), AtLeast(0)] = (0.5, 2.0)
    starts: Annotated[tuple[Literal["encoder", "prior"], ...], Different()] = ("encoder", "prior")
    budgets: Annotated[tuple[int, ...], Different(), AtLeast(10)] = (30, 100, 300, 1_000)
    samples: Annotated[int, AtLeast(4), PAIRS] = 10
    reference_steps: Annotated[int, AtLeast(10)] = 5_000
    reference_samples: Annotated[int, AtLeast(4), PAIRS] = 20
    score: Annotated[int, AtLeast(2)] = 1_000
    seed: Seed = 0


PRESETS = {
    "quick": Config(),
    "paper": Config(
        points=1_000,
        restarts=10,
        spreads=(0.5, 1.0, 2.0),
        budgets=(30, 100, 300, 1_000, 3_000, 10_000),
        reference_steps=20_000,
        reference_samples=100,
        score=5_000,
    ),
}

TABLES = (
    Table(
        ("start", "spread", "budget"),
        ("evaluations", "behind_reference", "residual"),
        "searches for q*: {model}",
    ),
    Table(
        ("start", "spread", "budget"), ("elbo_star", "restart_variance"), "searches for q*: {model}: more", wide=True
    ),
)
FIGURES = {"qstar": Drawn("qstar"), "restarts": Drawn("restarts")}


def jobs(config: Config, lab: Lab) -> Iterator[Job]:
    """The reference, then all searches, cheap ones first."""
    from amortized_bayes.experiments.searching import Search

    model = checkpoint_config(config.checkpoint, lab)
    model.require_continuous()
    searches = [Search("reference", 0.0, config.reference_steps, config.reference_samples, 1, config.score)]
    for budget, start, spread in product(config.budgets, config.starts, config.spreads):
        searches.append(Search(start, spread, budget, config.samples, config.restarts, config.score))
    first = ""
    for search in searches:
        cost = config.points * search.restarts * (search.budget * search.samples + config.score)
        job = Job(
            {**model_factors(model), **search.factors},
            lambda search=search, first=first: _search(config, search, first, lab),
            work=[lab.evaluation_work("q*", model, cost)],
            reads=[config.checkpoint],
            after=[first] if first else [],
            disk=40.0 * config.points * search.restarts,
        )
        first = first or job.key
        yield job


def _search(config: Config, search: Search, reference: str, lab: Lab) -> Iterator[Measured | Arrays]:
    """What a search found: means over restarts, with errors over points."""
    import numpy as np

    from amortized_bayes.experiments.bounds import some_points
    from amortized_bayes.experiments.searching import search_points
    from amortized_bayes.per_point import mean_over_points

    trained = lab.checkpoint(lab.run_named(config.checkpoint))
    places, x = some_points(trained, config.split, config.points, config.seed, "qstar")
    found = search_points(trained, x, search, config.seed, lab)
    values = {name: found[name].mean(0) for name in ("elbo_star", "residual", "evaluations")}
    if reference:
        values["behind_reference"] = (lab.arrays(reference)["elbo_star"] - found["elbo_star"]).mean(0)
        # the spread over restarts, freed of the scoring's own noise
        values["restart_variance"] = found["elbo_star"].var(0, ddof=1) - np.square(found["error"]).mean(0)
    yield from (measured(name, mean_over_points(value)) for name, value in values.items())
    yield Arrays({"places": places, **found})
