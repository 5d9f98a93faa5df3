"""When can A-VI do what F-VI does, and what must f see for it? Models of which the answer is known.

After Margossian & Blei (*Amortized Variational Inference: When and Why?*, UAI 2024). Constant VI, F-VI, and A-VI of
each width k and each input are fitted from equal starts with equal learning rates; the ELBO is exact (by quadrature for
the nonlinear model), so that the family gap is measured against F-VI's true optimum.

``python run_experiments.py when-and-why`` runs preset *quick*: about five minutes on two cores. Expect gaps below 0.01
nats per point where f sees enough and is wide enough, or linear where that will do: its own point in the linear,
nonlinear and two-level models, two rows of the saw series, a window of the random walk and of the Gaussian process; and
gaps of 0.04 to 3 nats where it does not see enough, whatever k is. *paper* has the published
sizes: 1,000 points and 30,000 steps with five seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from amortized_bayes.configuration import Above, AtLeast
from amortized_bayes.experiments.series_settings import SHOWN_WIDTHS, SeriesSettings, datasets, problem_of
from amortized_bayes.experiments.spec import Column, Drawn, Job, Measured, Table, Work
from amortized_bayes.labels import SEES

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab
    from amortized_bayes.experiments.series_fits import Problem

__all__ = ["FIGURES", "FINDINGS", "PRESETS", "TABLES", "Config", "datasets", "jobs"]

SHARE = 0.99
"""Of the way from the common start to F-VI's optimum: within 1% of it."""
FIT = "fit"
"""Stage of the progress."""


@dataclass(frozen=True)
class Config(SeriesSettings):
    """Fit models for which it is known what f must see (Margossian & Blei 2024).

    Args:
        steps: Steps of Adam per fit, on all points; after a fifth of them the learning rate falls to 0.
        learning_rate: Initial learning rate, the same for all guides.
    """

    steps: Annotated[int, AtLeast(10)] = 2_000
    learning_rate: Annotated[float, Above(0)] = 0.05


PRESETS = {
    "quick": Config(),
    "paper": Config(widths=(0, 1, 2, 4, 8, 16, 32), points=1_000, steps=30_000, seeds=(0, 1, 2, 3, 4)),
}
NEAR = tuple(Column(f"{what}_to_share", {"share": SHARE}, f"{what} to 1%") for what in ("steps", "seconds"))
TABLES = (
    Table(
        ("dataset", "sees"),
        (
            Column("family_gap_of_linear", {}, "linear mean, one scale: exact"),
            *(Column("exact_family_gap", {"k": k}, f"k = {k}" if k else "linear f") for k in SHOWN_WIDTHS),
        ),
        "Family gap of A-VI by what f sees and how wide it is",
        where={"guide": "amortized"},
        apart=(),
    ),
    Table(
        ("dataset", "guide"),
        ("exact_family_gap", *NEAR),
        "Constant VI and F-VI, and what they take to come within 1% of F-VI's optimum from the start",
        where={"k": None, "guide": ("constant", "factorized")},
        apart=(),
    ),
    Table(
        ("dataset", "sees", "k"),
        (*NEAR, "seconds_per_step"),
        "A-VI: what it takes to come within 1% of F-VI's optimum from the start",
        where={"guide": "amortized"},
        apart=(),
        wide=True,
    ),
    Table(("dataset",), ("log_p_exact", "elbo_optimum"), "Exact log p(x) and F-VI's optimum", apart=(), wide=True),
)
FIGURES = {
    "when_and_why": Drawn(
        "gaps_by_input",
        {
            "metric": "exact_family_gap",
            "heading": "What f must see, and how wide it must be: A-VI behind F-VI's exact optimum",
        },
    ),
    "when_and_why_steps": Drawn("course"),
}
FINDINGS = ("what_f_must_see",)


def jobs(config: Config, lab: Lab) -> Iterator[Job]:
    """What is known of each model, then a fit per job."""
    for seed in config.seeds:
        for name in config.models:
            place = {"dataset": name, "seed": seed}
            problem = partial(problem_of, lab, name, config.points, seed)
            work = Work(FIT, config.steps, partial(_step_seconds, lab, config, name), "some steps of F-VI")
            yield Job(place, partial(_known, problem), name="optimum", work=[work._replace(amount=config.steps / 10)])
            fits: list[dict[str, Any]] = [{"guide": "constant"}, {"guide": "factorized"}]
            fits += [{"guide": "amortized", "sees": sees, "k": k} for sees in SEES[name] for k in config.widths]
            for fit in fits:
                yield Job({**place, **fit}, partial(_fit, config, lab, name, seed, **fit), work=[work], disk=1e4)


def _step_seconds(lab: Lab, config: Config, name: str) -> float:
    """Of a step of F-VI, measured once; what a fit measures on its way is small beside."""

    def measure() -> float:
        from amortized_bayes.experiments.series_fits import Answers, fit_answers

        problem = problem_of(lab, name, config.points, config.seeds[0])
        *_, last = fit_answers(problem, Answers(problem, "factorized"), 30, 1e-3, (), 0)
        return 1.2 * last.seconds / last.step

    return lab.cached(("series step", name, config.points), measure)


def _known(problem: Any) -> Iterator[Measured]:
    """Exact evidence and optimum, and what the best linear f loses."""
    import torch

    from amortized_bayes.models import GaussianJoint

    known: Problem = problem()
    truth, count = known.truth, known.num_data
    yield Measured("elbo_optimum", float(known.best_elbo) / count)
    if not isinstance(truth, GaussianJoint):
        return
    yield Measured("log_p_exact", float(truth.log_evidence()) / count)
    for sees, inputs in known.case.inputs.items():
        if inputs.shape[1] < count:  # else it is the truth, at a cost
            features = torch.cat([torch.ones(count, 1).double(), inputs], 1)
            factors = {"guide": "amortized", "sees": sees}
            yield Measured("family_gap_of_linear", float(truth.best_of(features).lost) / count, factors=factors)


def _fit(
    config: Config, lab: Lab, name: str, seed: int, guide: str, sees: str | None = None, k: int | None = None
) -> Iterator[Measured]:
    """Fit one guide; its course, where it ends, and what it took to come near the optimum."""
    import numpy as np

    from amortized_bayes.experiments.series_fits import Answers, fit_answers

    known = problem_of(lab, name, config.points, seed)
    answers = Answers(known, guide, known.case.inputs[sees] if sees else None, k, seed)
    marks = np.unique(np.geomspace(1, config.steps, 90).round().astype(int)).tolist()
    drawn = {0, *marks[::2], config.steps} if sees in (None, SEES[name][-1]) else set()
    start, near = None, None
    reached = None
    for reached in fit_answers(known, answers, config.steps, config.learning_rate, marks, seed):
        start = reached.behind if start is None else start
        place = {"step": reached.step, "seconds": reached.seconds}
        if reached.step in drawn:
            yield Measured("behind_reference", reached.behind, **place)
        if near is None and reached.behind <= (1 - SHARE) * start:
            near = reached
        lab.watch(FIT, reached.step, config.steps, f"{reached.behind:.3f} nats per point behind")
    assert reached is not None
    place = {"step": reached.step, "seconds": reached.seconds}
    yield Measured("exact_family_gap", reached.behind, **place)
    yield Measured("seconds_per_step", reached.seconds / reached.step, **place)
    if near is not None:
        share = {"share": SHARE}
        yield Measured("steps_to_share", near.step, factors=share, step=near.step, seconds=near.seconds)
        yield Measured("seconds_to_share", near.seconds, factors=share, step=near.step, seconds=near.seconds)
