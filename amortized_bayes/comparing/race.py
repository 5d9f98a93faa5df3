"""All guides of a comparison fitted one after another, with what is told on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from amortized_bayes.comparing.between import Rung, best_fit
from amortized_bayes.comparing.fitted import FittedGuide
from amortized_bayes.comparing.fitting import climb, finish_fit
from amortized_bayes.comparing.own_guides import AsFitted
from amortized_bayes.comparing.problem import FitProblem
from amortized_bayes.comparing.rows import fit_rows
from amortized_bayes.comparing.starting import Start, start_at, start_fit
from amortized_bayes.divergence import Divergence
from amortized_bayes.guides.registry import Fit, guide_entry
from amortized_bayes.progress import Forecast, Told
from amortized_bayes.snapshots import snapshot
from amortized_bayes.types import Row

__all__ = ["run_race"]

SHORTER = "fewer `ComparisonSettings(epochs=)`, fewer widths, or larger batches (`fit=FitOptions.recipe(batch_size=)`)"


def run_race(
    problem: FitProblem, fits: Sequence[Fit], told: Told, on_row: Callable[[Row], object] | None = None
) -> list[FittedGuide]:
    """Fit one guide after another; what starts at another's answer, where its best fit stood at half of the epochs."""
    elbos: dict[Fit, Any] = {}
    starts: dict[Fit, Start] = {}
    found: list[FittedGuide] = []
    epochs = {fit: _epochs(problem, fit) for fit in fits}
    forecast = Forecast(told, SHORTER)
    for number, fit in enumerate(fits):
        name = f"{FittedGuide(*fit, 0, 0.0, None, ()).label} ({number + 1} of {len(fits)})"
        told(name, 0, 1)
        before, own = sum(epochs[other] for other in fits[:number]), epochs[fit]

        def watch(done: int, total: int, _: float, name: str = name, before: int = before, own: int = own) -> None:
            told(name, done, total)
            forecast(before + own * done / total, sum(epochs.values()))

        origin = guide_entry(fit.guide).starts_from
        best = best_fit(elbos, origin)
        if origin and best is None:
            why = f"{guide_entry(origin).label}, which it starts from, failed"
            fitted, start = FittedGuide(*fit, 0, 0.0, None, (), reason=why), None
        else:
            fitted, start = _fit(problem, fit, None if best is None else starts[best], watch)
        if fitted.elbo is not None and start is not None:
            elbos[fit], starts[fit] = fitted.rungs[-2].elbo, start
        found.append(fitted)
        if on_row is not None:
            for row in fit_rows(fitted, problem.seed):
                on_row(row)
    return found


def _epochs(problem: FitProblem, fit: Fit) -> int:
    """Passes over the data of all budgets of a fit."""
    rest = problem.epochs - problem.budgets[-1]
    return rest if guide_entry(fit.guide).starts_from else sum(problem.budgets) + rest


def _fit(
    problem: FitProblem, fit: Fit, start: Start | None, watch: Callable[[int, int, float], None]
) -> tuple[FittedGuide, Start | None]:
    """Fit one guide with every budget, and say where another may start at it: where it stands at half of the epochs."""
    fitting = start_fit(problem, fit, start)
    rungs: list[Rung] = []
    answer = None
    try:
        for found, elbo in climb(problem, fitting, watch):
            rungs.append(Rung(found.epochs, found.step, found.seconds, elbo))
            if found.epochs == problem.budgets[-1] and fit.guide not in problem.own:
                answer = start_at(problem, fitting, _keep)
        done = finish_fit(problem, fitting)
    except Divergence as error:
        return FittedGuide(*fit, error.step, fitting.training.seconds, None, tuple(rungs), reason=str(error)), None
    fitting.training.settle()
    top = done.evaluation
    rungs.append(Rung(top.epochs, top.step, top.seconds, done.elbo))
    active = int(top.measures["active_units"].value or 0)
    own = fit.guide in problem.own
    state = snapshot(fitting.model, *([fitting.guide.program] if own else []))
    guide = AsFitted(fitting.guide.program) if own else fitting.guide
    return FittedGuide(*fit, top.step, top.seconds, done.elbo, tuple(rungs), active, guide, state), answer


def _keep(model: Any) -> Callable[[Any], None]:
    put_back = snapshot(model)
    return lambda _: put_back()
