"""One fit of a problem: start it, go on with it, evaluate it on the way and at its end.

Fits are generators of evaluations: who runs them decides what is kept and shown. Everything that is drawn is drawn from
streams named by seed and fit, so that a fit gives the same numbers whatever was run before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from amortized_bayes.comparing.measures import (
    Measure,
    curve_measures,
    final_measures,
    fit_elbo,
    held_measures,
    mse_of,
    over_points,
)
from amortized_bayes.comparing.problem import FitProblem, floats
from amortized_bayes.evaluation.bounds import Elbo
from amortized_bayes.evaluation.errors import mean_prediction
from amortized_bayes.guides import LocalGuide, MeanField
from amortized_bayes.guides.registry import GUIDES, Fit, GuideSpec
from amortized_bayes.inference.local import fresh_factors
from amortized_bayes.inference.options import Divergence, FitOptions, StepRecord
from amortized_bayes.inference.svi import Training
from amortized_bayes.per_point import is_vacuous
from amortized_bayes.seeding import torch_seed
from amortized_bayes.sites import LatentSites

__all__ = [
    "Evaluation",
    "Finished",
    "Fitting",
    "Start",
    "Watch",
    "continue_fit",
    "finish_fit",
    "report_steps",
    "restore_fit",
    "run_fit",
    "start_at",
    "start_fit",
    "train",
]

EXAMPLES = 10
"""Test points of which reconstructions are kept."""
FRESH_VISITS = 100
"""Visits of each test point when factorized VI gets fresh factors."""
FRESH_REPORTS = 6
"""Points on the test curve of factorized VI, where each costs a fit of fresh factors."""
CURVE_POINTS = 1_000
"""Test points on the curves."""
TICKS = 50
"""Times that a fit reports its progress."""

Watch = Callable[[int, int, float], None]
"""Called with steps taken, all steps, and the last batch's ELBO, noisy, in nats per point."""


class Fitting(NamedTuple):
    """A model and a guide being fitted."""

    fit: Fit
    model: Any
    guide: LocalGuide
    sites: LatentSites
    training: Training


class Start(NamedTuple):
    """Where a guide starts that starts at the answer of another.

    Args:
        rows: locations and log scales of all points, (N, 2 D).
        shared: state of q(theta).
        put_model: puts the model's parameters to where they were then; where it is ``None`` they start as usual.
    """

    rows: Tensor
    shared: Mapping[str, Tensor] | None = None
    put_model: Callable[[], None] | None = None


class Evaluation(NamedTuple):
    """A fit after ``step`` steps that took ``seconds``."""

    step: int
    seconds: float
    measures: Mapping[str, Measure]

    @property
    def status(self) -> str:
        """Vacuous, where the KL of its measures says so, or ok."""
        kl = self.measures.get("final_kl", self.measures.get("kl"))
        return "vacuous" if kl is not None and is_vacuous(kl.value) else "ok"


class Finished(NamedTuple):
    """The end of a fit.

    Args:
        evaluation: its final numbers.
        elbo: of each training point.
        examples: the first test points, (10, P), as ``original`` and ``reconstruction``; nothing without test points.
        backend: what its steps were run by.
    """

    evaluation: Evaluation
    elbo: Elbo
    examples: Mapping[str, Tensor]
    backend: str


def start_fit(problem: FitProblem, fit: Fit, start: Start | None = None, options: FitOptions | None = None) -> Fitting:
    """Model, guide and training at their start; ``options`` are those of the problem, unless others are given.

    Raises:
        ValueError: a guide that is not in ``GUIDES``.
    """
    if fit.guide not in GUIDES:
        raise ValueError(f"expected a guide among {', '.join(GUIDES)}, got {fit.guide!r}")
    model, sites = problem.new_model()
    guide = _build_guide(problem, sites, fit, start)
    if start is not None and start.put_model is not None:
        start.put_model()
    options = options or problem.options_of(fit.guide, len(problem.data))
    training = Training(model, guide, problem.data, options, problem.seed, plate=problem.plate)
    return Fitting(fit, model, guide, sites, training)


def restore_fit(problem: FitProblem, fit: Fit, state: Mapping[str, Tensor]) -> Fitting:
    """A fit from the state of its training.

    Raises:
        ValueError: the state of another model or guide.
    """
    fitting = start_fit(problem, fit)
    fitting.training.load_state(dict(state))
    return fitting


@torch.no_grad()
def start_at(problem: FitProblem, fitting: Fitting, put_model: Callable[[], None] | None = None) -> Start:
    """The answer of a fit, as a start: that of its averaged iterate."""
    with fitting.training.averaged():
        rows = fitting.guide.locate(problem.x, problem.index).clone()
        shared = fitting.guide.shared
        state = None if shared is None else {name: value.clone() for name, value in shared.state_dict().items()}
    return Start(rows, state, put_model)


def _build_guide(problem: FitProblem, sites: LatentSites, fit: Fit, start: Start | None) -> LocalGuide:
    torch.manual_seed(torch_seed(problem.seed, "guide", fit.guide, fit.k or 0))
    shared = None
    if sites.shared and problem.published:
        shared = MeanField(sites.shared, log_scale=-2.0)
    elif sites.shared:
        shared = MeanField(sites.shared, locs=sites.shared_draw)
    if shared is not None and start is not None and start.shared is not None:
        shared.load_state_dict(start.shared)
    spec = GuideSpec(
        sites.local,
        problem.data,
        fit.k or 1,
        problem.depth,
        shared,
        problem.plate,
        None if start is None else start.rows,
        problem.published,
    )
    x = problem.x
    return GUIDES[fit.guide].build(spec).to(device=x.device, dtype=x.dtype)


def report_steps(num_steps: int, count: int = 28) -> list[int]:
    """Steps at which a fit is evaluated: evenly spaced on a log axis, from the first to the last.

    Example:
        >>> report_steps(100, 5)
        [1, 3, 10, 32, 100]
    """
    ratio = num_steps ** (1 / (count - 1))
    return sorted({min(num_steps, round(ratio**i)) for i in range(count)})


def train(training: Training, num_steps: int, watch: Watch, report_at: Iterable[int] = ()) -> Iterator[StepRecord]:
    """Take ``num_steps`` more steps, report progress, and yield a record at the last and at each in ``report_at``.

    Raises:
        Divergence: the loss is not finite.
    """
    before = training.steps
    wanted = {*report_at, before + num_steps}
    ticks = range(before, before + num_steps, max(1, num_steps // TICKS))
    for record in training.run(num_steps, {*wanted, *ticks}):
        watch(record.step - before, num_steps, record.elbo)
        if record.step in wanted:
            yield record


def run_fit(problem: FitProblem, fitting: Fitting, watch: Watch = lambda *_: None) -> Iterator[Evaluation]:
    """Take all steps of a fit and yield the points of its curves.

    Raises:
        Divergence: the loss, or what is measured, is not finite.
    """
    training = fitting.training
    num_steps = problem.epochs * training.batches.per_epoch
    reports = report_steps(num_steps, problem.num_reports)
    costly = GUIDES[fitting.fit.guide].per_point
    with_test = set(reports[:: -max(1, len(reports) // FRESH_REPORTS)] if costly else reports)
    _seed_evaluations(problem, problem.stream(fitting.fit))
    for record in train(training, num_steps, watch, reports):
        with pyro.validation_enabled(False), training.averaged():  # what is not finite is refused below
            found = curve_measures(problem, fitting.model, fitting.guide)
            if problem.held is not None and record.step in with_test:
                data, target = problem.held.test[:CURVE_POINTS], problem.held.test_target[:CURVE_POINTS]
                found["mse_test"] = mse_of(*_for_test(problem, fitting, data), data, target)
        yield _finite(Evaluation(record.step, record.seconds, found))


def finish_fit(problem: FitProblem, fitting: Fitting) -> Finished:
    """Evaluate the averaged iterate with many samples.

    Raises:
        Divergence: a final value that is not finite.
    """
    training, held, examples = fitting.training, problem.held, {}
    with pyro.validation_enabled(False), training.averaged():  # what is not finite is refused below
        found, values = final_measures(problem, fitting.model, fitting.guide)
        if held is not None:
            model, guide = _for_test(problem, fitting, held.test)
            found |= held_measures(problem, held, model, guide)
            few = torch.arange(min(EXAMPLES, len(held.test)), device=held.test.device)
            seen = mean_prediction(model, guide, floats(held.test[few]), few).observed
            examples = {"original": held.test_target[few], "reconstruction": seen}
    parameters, size = training.size()
    captured = training.captured
    found |= {
        "seconds_per_step": Measure(training.seconds / training.steps),
        "capture_seconds": Measure(captured.seconds if captured else 0.0),
        "num_parameters": Measure(parameters),
        "memory_bytes": Measure(size),
    }
    evaluation = _finite(Evaluation(training.steps, training.seconds, found))
    return Finished(evaluation, values, examples, captured.backend if captured else "uncaptured")


def continue_fit(problem: FitProblem, fitting: Fitting, watch: Watch = lambda *_: None) -> tuple[Evaluation, Elbo]:
    """Take as many steps again, and give the ELBO that this leads to, ``doubled_elbo``, and that of each point.

    Raises:
        Divergence: the loss, or the ELBO, is not finite.
    """
    training = fitting.training
    _seed_evaluations(problem, problem.stream(fitting.fit, "doubled"))
    for _ in train(training, problem.epochs * training.batches.per_epoch, watch):
        pass
    with pyro.validation_enabled(False), training.averaged():
        values = fit_elbo(problem, fitting.model, fitting.guide, problem.num_draws)
    found = {"doubled_elbo": over_points(values.value)}
    return _finite(Evaluation(training.steps, training.seconds, found)), values


def _for_test(problem: FitProblem, fitting: Fitting, data: Tensor) -> tuple[nn.Module, LocalGuide]:
    """Model and guide for test points: factorized VI fits fresh factors with q(theta) frozen, others answer at once."""
    if not GUIDES[fitting.fit.guide].per_point:
        return fitting.model, fitting.guide
    options = problem.options_of(fitting.fit.guide, len(data))
    fixed = (fitting.model, fitting.guide.shared, fitting.sites.local)
    return fresh_factors(*fixed, data, options, visits=FRESH_VISITS, seed=problem.seed)


def _seed_evaluations(problem: FitProblem, stream: tuple[str, ...]) -> None:
    if stream:
        torch.manual_seed(torch_seed(problem.seed, *stream))


def _finite(found: Evaluation) -> Evaluation:
    """Refuse numbers that are not finite: steps may stay finite while what they lead to is not."""
    for metric, measure in found.measures.items():
        if measure.value is not None and not math.isfinite(measure.value):
            error = Divergence(found.step, measure.value)
            error.args = (f"{metric} of {measure.value:g} at step {found.step}",)
            raise error
    return found
