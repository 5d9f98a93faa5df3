"""One guide on the ladder of budgets of a problem: climb, evaluate it at each rung and at the top.

Fits are generators of evaluations: who runs them decides what is kept and shown. Everything that is drawn is drawn from
streams named by seed and fit, so that a fit gives the same numbers whatever was run before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from amortized_bayes.comparing.measures import (
    Measure,
    final_measures,
    held_measures,
    mse_of,
    rung_measures,
)
from amortized_bayes.comparing.problem import FitProblem, Held, floats
from amortized_bayes.comparing.starting import Fitting
from amortized_bayes.divergence import Divergence
from amortized_bayes.evaluation.bounds import Elbo
from amortized_bayes.evaluation.errors import mean_prediction
from amortized_bayes.guides import LocalGuide
from amortized_bayes.guides.registry import guide_entry
from amortized_bayes.inference.local import fresh_factors
from amortized_bayes.inference.options import StepRecord
from amortized_bayes.inference.svi import Training
from amortized_bayes.keeping import Loop, kept, known
from amortized_bayes.per_point import is_vacuous
from amortized_bayes.seeding import torch_seed

__all__ = [
    "Evaluation",
    "Finished",
    "Watch",
    "climb",
    "finish_fit",
    "train",
    "train_kept",
]

FRESH_VISITS = (50, 400)
"""Visits of each test point when it gets fresh factors, before they are first doubled and at most."""
RUNG_POINTS = 1_000
"""Test points that are measured at the rungs below the top."""
TICKS = 50
"""Times that a fit reports its progress."""

Watch = Callable[[int, int, float], None]
"""Called with steps taken, all steps, and what the last batch says of the objective, in nats per point."""
Look = Callable[[int, Mapping[str, Tensor]], None]
"""Called with steps taken, and images by name."""


class Evaluation(NamedTuple):
    """A fit at one rung: after ``step`` steps that took ``seconds``, those before its start counted."""

    epochs: int
    step: int
    seconds: float
    measures: Mapping[str, Measure]

    @property
    def status(self) -> str:
        """Vacuous, where no unit is active, or ok."""
        active = self.measures.get("active_units")
        return "vacuous" if active is not None and is_vacuous(active.value) else "ok"


class Finished(NamedTuple):
    """The end of a fit.

    Args:
        evaluation: its final numbers.
        elbo: ELBO of each training point.
        examples: the test points to be shown, (n, P), as ``original`` and ``reconstruction``; nothing without any.
        notes: what must be known of a metric, by its name.
    """

    evaluation: Evaluation
    elbo: Elbo
    examples: Mapping[str, Tensor]
    notes: Mapping[str, str]


def train(training: Training, num_steps: int, watch: Watch) -> None:
    """Take ``num_steps`` more steps and report progress.

    Raises:
        Divergence: the loss is not finite.
    """
    for _ in _taken(training, num_steps, watch, training.steps):
        pass


def train_kept(training: Training, num_steps: int, watch: Watch, loop: Loop, begin: int) -> None:
    """As :func:`train`, of which the first steps may be taken: it takes those up to ``num_steps`` after ``begin``.

    The state is offered to the loop.
    """
    for _ in _taken(training, num_steps, watch, begin, lambda: loop.due):
        loop.offer()


def _taken(
    training: Training, num_steps: int, watch: Watch, begin: int, due: Callable[[], bool] = lambda: False
) -> Iterator[StepRecord]:
    stop, ticks = begin + num_steps, range(begin, begin + num_steps, max(1, num_steps // TICKS))
    for record in training.run(stop - training.steps, ticks, begin, due) if training.steps < stop else ():
        watch(record.step - begin, num_steps, record.elbo)
        yield record


def climb(
    problem: FitProblem, fitting: Fitting, watch: Watch = lambda *_: None, look: Look = lambda *_: None
) -> Iterator[tuple[Evaluation, Elbo]]:
    """Fit with every budget and stand at the top in the end; yield what each rung below the top is worth.

    ``look`` gets the steps of each rung, and test points with what becomes of them, unless that took fits of their own.

    A fit that starts at another's answer has one rung, its start, and goes on from there. One that goes on after a kill
    yields the rungs that it has climbed before again; it then stands where the last of them was left, or, of those
    before that one, anywhere.

    Raises:
        Divergence: the loss, or what is measured, is not finite.
    """
    training, budgets = fitting.training, problem.budgets
    per_epoch, rest = training.batches.per_epoch, problem.epochs - budgets[-1]
    afresh = budgets if fitting.start is None else []
    rungs: list[tuple[Evaluation, Elbo]] = []
    total, done = (sum(afresh) + rest) * per_epoch, 0

    def of_all(step: int, _: int, elbo: float) -> None:
        watch(done + step, total, elbo)

    def go(num_steps: int, begin: int) -> None:
        if loop.kept:
            train_kept(training, num_steps, of_all, loop, begin)
        else:
            train(training, num_steps, of_all)

    training.prepare(total)
    _seed_evaluations(problem, problem.stream(fitting.fit))
    begin = {name: tensor.clone() for name, tensor in training.state().items()}
    half: dict[str, Tensor] = {}
    with kept("climb", lambda: [training.state(), half, rungs]) as loop:
        if loop.found is not None:
            now, half, climbed = loop.found
            rungs += [_rung_again(rung) for rung in climbed]
            training.load_state(half or now)
            yield from rungs
            training.load_state(now)
        for number, epochs in enumerate(afresh):
            if number >= len(rungs):
                if loop.found is None or number > len(loop.found[2]):
                    training.load_state(begin)
                go(epochs * per_epoch, 0)
                rungs.append(_rung(problem, fitting, epochs))
                look(rungs[-1][0].step, _examples_on_the_way(problem, fitting))
                yield rungs[-1]
            done += epochs * per_epoch
        if not afresh and not rungs:
            rungs.append(_rung(problem, fitting, budgets[-1]))
            yield rungs[-1]
        training.options = training.options.settled
        top = budgets[-1] * per_epoch if afresh else 0
        if loop.kept and not half:
            half = {name: tensor.clone() for name, tensor in training.state().items()}
        go(rest * per_epoch, top)


def _rung_again(state: Any) -> tuple[Evaluation, Elbo]:
    """A rung from the state of a loop."""
    (epochs, step, seconds, measures), elbo = state
    return Evaluation(epochs, step, seconds, _measures(measures)), Elbo(*elbo)


def _measures(found: Mapping[str, Any]) -> dict[str, Measure]:
    return {name: Measure(*measure) for name, measure in found.items()}


def _rung(problem: FitProblem, fitting: Fitting, epochs: int) -> tuple[Evaluation, Elbo]:
    with pyro.validation_enabled(False), fitting.training.averaged():  # what is not finite is refused below
        found, values = rung_measures(problem, fitting.model, fitting.asked)
        if (
            problem.held is not None and not guide_entry(fitting.fit.guide).per_point
        ):  # fresh factors are for the top alone
            data, target = problem.held.test[:RUNG_POINTS], problem.held.test_target[:RUNG_POINTS]
            found["mse_test"] = mse_of(fitting.model, fitting.asked, data, target)
    return _finite(_evaluation(fitting, epochs, found)), values


def _evaluation(fitting: Fitting, epochs: int, found: Mapping[str, Measure]) -> Evaluation:
    training, start = fitting.training, fitting.start
    before = (0, 0.0) if start is None else (start.step, start.seconds)
    return Evaluation(epochs, before[0] + training.steps, before[1] + training.seconds, found)


def finish_fit(problem: FitProblem, fitting: Fitting) -> Finished:
    """Evaluate the top of the ladder.

    Raises:
        Divergence: a final value that is not finite.
    """
    training, held = fitting.training, problem.held
    captured, examples = training.captured, {}
    notes = {"capture_seconds": captured.backend if captured else "uncaptured"}
    with pyro.validation_enabled(False), training.averaged():  # what is not finite is refused below
        measures, terms = known("final", lambda: final_measures(problem, fitting.model, fitting.asked))
        found, values = _measures(measures), Elbo(*terms)
        if held is not None:
            model, guide, *_ = answer = _for_test(problem, fitting, held.test)
            # factors of equal quality beside each guide's own q(theta): else it would be q(z) that differs
            own = guide_entry(fitting.fit.guide).per_point
            proposal = answer if own else _fresh(problem, fitting, held.test[: held.predictive_points])
            found |= _measures(known("held", lambda: held_measures(problem, held, model, guide, proposal.guide)))
            notes |= {"final_mse_test": answer.note, "log_predictive": proposal.note}
            examples = _examples(held, model, guide)
    parameters, size = training.size()
    found |= {
        "seconds_per_step": Measure(training.seconds / max(1, training.steps)),
        "capture_seconds": Measure(training.capture_seconds),
        "num_parameters": Measure(parameters),
        "memory_bytes": Measure(size),
    }
    evaluation = _finite(_evaluation(fitting, problem.epochs, found))
    return Finished(evaluation, values, examples, notes)


def _examples(held: Held, model: Any, guide: LocalGuide) -> dict[str, Tensor]:
    """The test points to be shown, and what becomes of them; nothing without any."""
    if not held.shown:
        return {}
    few = torch.tensor(held.shown, device=held.test.device)
    seen = mean_prediction(model, guide, floats(held.test[few]), few).observed
    return {"original": held.test_target[few], "reconstruction": seen}


def _examples_on_the_way(problem: FitProblem, fitting: Fitting) -> dict[str, Tensor]:
    """The same on a rung, drawing nothing that later numbers would miss."""
    if problem.held is None or guide_entry(fitting.fit.guide).per_point:
        return {}
    with pyro.validation_enabled(False), torch.random.fork_rng(), fitting.training.averaged():
        return _examples(problem.held, fitting.model, fitting.asked)


class _Answer(NamedTuple):
    """What a fit has to say about test points."""

    model: Any
    guide: LocalGuide
    note: str = ""


def _for_test(problem: FitProblem, fitting: Fitting, data: Tensor) -> _Answer:
    """Model and guide for test points: factorized VI fits fresh factors with q(theta) frozen, others answer at once."""
    if not guide_entry(fitting.fit.guide).per_point:
        return _Answer(fitting.model, fitting.asked)
    return _fresh(problem, fitting, data)


def _fresh(problem: FitProblem, fitting: Fitting, data: Tensor) -> _Answer:
    options = problem.options_of(fitting.fit, len(data))
    fixed = (fitting.model, fitting.guide.shared, fitting.sites.local)
    found = fresh_factors(*fixed, data, options, visits=FRESH_VISITS, seed=problem.seed, plate=problem.plate)
    return _Answer(found.model, found.guide, found.note)


def _seed_evaluations(problem: FitProblem, stream: tuple[str, ...]) -> None:
    if stream:
        torch.manual_seed(torch_seed(problem.seed, *stream))


def _finite(found: Evaluation) -> Evaluation:
    """Refuse numbers that are not finite: steps may stay finite while what they lead to is not."""
    for metric, measure in found.measures.items():
        if measure.value is not None and not math.isfinite(measure.value):
            raise Divergence(found.step, measure.value, f"{metric} of {measure.value:g} at step {found.step}")
    return found
