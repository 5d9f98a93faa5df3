"""All guides at one place: the jobs that fit them with every budget, and put them side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from amortized_bayes.experiments.guide_fits import Place, fit_disk, starts_others
from amortized_bayes.experiments.spec import Arrays, Checkpoint, Job, Measured, job_key
from amortized_bayes.guides.registry import GUIDES, Fit, list_budgets, list_fits
from amortized_bayes.per_point import PointValues
from amortized_bayes.types import Factor

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from amortized_bayes.comparing.between import Rung
    from amortized_bayes.comparing.fitting import Evaluation
    from amortized_bayes.comparing.problem import FitProblem
    from amortized_bayes.comparing.starting import Fitting
    from amortized_bayes.evaluation.bounds import Elbo

__all__ = ["GuideJobs"]

FIT = "fit"
"""Stage of the progress."""
CURVES = {
    "elbo": "final_elbo",
    "kl": "final_kl",
    "mse_train": "final_mse_train",
    "mse_test": "final_mse_test",
    "active_units": "active_units",
}
"""Metrics that are known at every budget, each with its name at the largest."""


class GuideJobs(NamedTuple):
    """The jobs of one data set and seed; they find each other's results by keys.

    Args:
        place: data set and seed.
        problem: makes what guides are fitted to there.
        evaluated: how often a point is evaluated by a final evaluation, over all points and draws.
    """

    place: Place
    problem: Callable[[], FitProblem]
    evaluated: float = 0.0

    def jobs(self) -> Iterator[Job]:
        """Every fit with all budgets, and the comparison, each after those whose results it reads."""
        config, sizes = self.place.config, self.place.sizes
        budgets = list_budgets(config.epochs, config.rungs)
        for fit in self.fits():
            afresh = [] if GUIDES[fit.guide].starts_from else budgets
            work = [self.place.work(FIT, sum(afresh) + config.epochs - budgets[-1], fit)]
            work += [self.place.evaluations(self.evaluated)] if self.evaluated else []
            after, disk = [self.key(o) for o in self.fits(GUIDES[fit.guide].starts_from)], fit_disk(config, fit, sizes)
            yield Job(self.factors(fit.factors), partial(self.fit, fit), work=work, after=after, disk=disk)
        yield Job(self.factors(), self.compare, "comparison", after=[*map(self.key, self.fits())])

    def fits(self, *guides: str) -> list[Fit]:
        """All fits, or those of some guides."""
        found = list_fits(self.place.config.guides, self.place.config.widths)
        return [fit for fit in found if not guides or fit.guide in guides]

    def factors(self, more: Mapping[str, Factor] = {}) -> dict[str, Factor]:
        """Factors of a job."""
        return {"dataset": self.place.name, "seed": self.place.seed, **more}

    def key(self, fit: Fit) -> str:
        """Key of the job of a fit."""
        return job_key(self.factors(fit.factors))

    def ladder(self, fit: Fit) -> list[Rung]:
        """What a fit that succeeded found with each budget."""
        import pandas as pd

        from amortized_bayes.comparing.between import Rung

        rows: pd.DataFrame = self.place.lab.rows(self.key(fit))
        elbos = self.place.lab.arrays(self.key(fit))
        found = []
        for row in rows[rows["metric"] == "elbo"].sort_values("epochs").to_dict("records"):
            epochs = int(row["epochs"])
            elbo = PointValues(elbos[f"elbo_{epochs}"], float(elbos[f"elbo_shared_error_{epochs}"]))
            found.append(Rung(epochs, int(row["step"]), float(row["seconds"]), elbo))
        return found

    def succeeded(self, *guides: str) -> list[Fit]:
        """The fits that succeeded, of some guides or of all."""
        return [fit for fit in self.fits(*guides) if self.place.lab.status(self.key(fit)) == "ok"]

    def best(self, guide: str) -> Fit | None:
        """The best fit of a guide with half of the epochs, where others go on from it."""
        from amortized_bayes.comparing.between import best_fit

        return best_fit({fit: self.ladder(fit)[-2].elbo for fit in self.succeeded(guide)}, guide)

    def restored(self, problem: FitProblem, fit: Fit) -> Fitting:
        """A fit as its job left it."""
        import numpy as np
        import torch

        from amortized_bayes.comparing.starting import restore_fit

        state = self.place.lab.tensors(self.key(fit))
        return restore_fit(problem, fit, {name: torch.from_numpy(np.asarray(v)) for name, v in state.items()})

    def fit(self, fit: Fit) -> Iterator[Measured | Arrays | Checkpoint]:
        """Run one fit with every budget, measure it, and keep what another job needs to go on."""
        from amortized_bayes.comparing.fitting import climb, finish_fit
        from amortized_bayes.comparing.starting import start_at, start_fit

        problem, start, origin = self.problem(), None, GUIDES[fit.guide].starts_from
        if origin:
            if (best := self.best(origin)) is None:
                raise ArithmeticError(f"no {origin} fit succeeded to start from")
            start = start_at(problem, self.restored(problem, best))
        fitting = start_fit(problem, fit, start)
        elbos: dict[str, np.ndarray] = {}
        half: dict[str, np.ndarray] = {}
        for found, elbo in climb(problem, fitting, self.place.watch(FIT), self.look):
            elbos |= _kept(found.epochs, elbo)
            yield from _on_curves(found)
            if starts_others(fit) and found.epochs == problem.budgets[-1]:
                half = {name: _array(tensor).copy() for name, tensor in fitting.training.state().items()}
        done = finish_fit(problem, fitting)
        elbos |= _kept(problem.epochs, done.elbo)
        if half:
            yield Checkpoint(half)
        yield Arrays({**elbos, **self.images(done.examples)}, done.evaluation.step)
        top = done.evaluation
        same = {metric: top.measures[name] for metric, name in CURVES.items() if name in top.measures}
        yield from _on_curves(top._replace(measures=same))
        yield from _measured(top, done.notes)

    def images(self, examples: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Some test images, and what becomes of them."""
        from amortized_bayes.data import to_pictures

        shape = self.place.images.image_shape
        return {name: to_pictures(_array(seen), shape) for name, seen in examples.items()}

    def look(self, step: int, examples: Mapping[str, Tensor]) -> None:
        """Show the same on the way."""
        if examples and self.place.images.image_shape is not None:
            self.place.lab.show(step, self.images(examples))

    def compare(self) -> Iterator[Measured]:
        """Put the fits side by side."""
        from amortized_bayes.comparing.between import compare_fits

        fits = self.succeeded()
        if not fits:
            raise ArithmeticError("no fit succeeded")
        ladders = {fit: self.ladder(fit) for fit in fits}
        status = {fit: self.status(fit) for fit in fits}
        for found in compare_fits(ladders, [fit for fit in fits if status[fit] == "vacuous"]):
            rung = found.rung or ladders[found.fit][-1]
            about = {"factors": found.factors, "note": found.note, "status": status[found.fit]}
            yield Measured(found.metric, *found.measure, step=rung.step, seconds=rung.seconds, **about)

    def status(self, fit: Fit) -> str:
        """Whether a fit that succeeded is vacuous."""
        rows = self.place.lab.rows(self.key(fit))
        return str(rows[rows["metric"] == "final_elbo"].iloc[-1]["status"])


def _on_curves(found: Evaluation) -> Iterator[Measured]:
    """What was found with one budget. A fit is called vacuous for what it is at the top: all start so."""
    for measured in _measured(found):
        yield measured._replace(factors={"epochs": found.epochs}, status="ok")


def _measured(found: Evaluation, notes: Mapping[str, str] = {}) -> Iterator[Measured]:
    for metric, measure in found.measures.items():
        place = {"step": found.step, "seconds": found.seconds, "status": found.status}
        yield Measured(metric, *measure, **place, note=notes.get(metric, ""))


def _kept(epochs: int, elbo: Elbo) -> dict[str, np.ndarray]:
    """ELBO of each point with one budget, and the error that the points share, as arrays."""
    import numpy as np

    return {f"elbo_{epochs}": _array(elbo.value.float()), f"elbo_shared_error_{epochs}": np.array(elbo.shared_error)}


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
