"""All guides at one place: the jobs that fit them, train the best of them as long again, and put them side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from amortized_bayes.experiments.guide_fits import Place, fit_disk
from amortized_bayes.experiments.spec import Arrays, Checkpoint, Job, Measured, job_key
from amortized_bayes.guides.registry import GUIDES, Fit, list_fits
from amortized_bayes.types import Factor

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from amortized_bayes.comparing.fitting import Evaluation, Finished, Fitting
    from amortized_bayes.comparing.problem import FitProblem

__all__ = ["GuideJobs"]

FIT, DOUBLING = "fit", "doubling the epochs"
"""Stages of the progress."""


class Final(NamedTuple):
    """Where a fit ended, and how."""

    step: int
    seconds: float
    status: str


class GuideJobs(NamedTuple):
    """The jobs of one data set and seed; they find each other's results by keys.

    Args:
        place: data set and seed.
        problem: makes what guides are fitted to there.
    """

    place: Place
    problem: Callable[[], FitProblem]

    def jobs(self) -> Iterator[Job]:
        """Every fit, its guide's continuation, and the comparison, each after those whose results it reads."""
        epochs, sizes = self.place.config.epochs, self.place.sizes
        for fit in self.fits():
            work, disk = [self.place.work(FIT, epochs)], fit_disk(self.place.config, fit, sizes)
            after = [self.key(other) for other in self.fits(GUIDES[fit.guide].starts_from)]
            yield Job(self.factors(fit.factors), partial(self.fit, fit), work=work, after=after, disk=disk)
        for guide in self.doubled():
            work, after = [self.place.work(DOUBLING, epochs)], [*map(self.key, self.fits(guide))]
            factors, run = self.factors({"guide": guide}), partial(self.double, guide)
            yield Job(factors, run, "doubled", work=work, after=after, disk=4 * sizes.num_data)
        after = [*map(self.key, self.fits()), *map(self.doubled_key, self.doubled())]
        yield Job(self.factors(), self.compare, "comparison", after=after)

    def fits(self, *guides: str) -> list[Fit]:
        """All fits, or those of some guides."""
        found = list_fits(self.place.config.guides, self.place.config.widths)
        return [fit for fit in found if not guides or fit.guide in guides]

    def doubled(self) -> list[str]:
        """Guides whose best fit is trained as long again."""
        return [guide for guide in self.place.config.guides if GUIDES[guide].doubled]

    def factors(self, more: Mapping[str, Factor] = {}) -> dict[str, Factor]:
        """Factors of a job."""
        return {"dataset": self.place.name, "seed": self.place.seed, **more}

    def key(self, fit: Fit) -> str:
        """Key of the job of a fit."""
        return job_key(self.factors(fit.factors))

    def doubled_key(self, guide: str) -> str:
        """Key of the job that trains the best fit of a guide as long again."""
        return job_key(self.factors({"guide": guide}), "doubled")

    def elbos(self, fits: Iterable[Fit]) -> dict[Fit, Tensor]:
        """ELBO of each point of the fits that succeeded."""
        return {fit: self.elbo(self.key(fit)) for fit in fits if self.place.lab.status(self.key(fit)) == "ok"}

    def elbo(self, key: str) -> Tensor:
        """What a job found for each point."""
        import torch

        return torch.from_numpy(self.place.lab.arrays(key)["elbo"])

    def best(self, guide: str) -> Fit | None:
        """The best fit of a guide."""
        from amortized_bayes.comparing.between import best_fit

        return best_fit(self.elbos(self.fits(guide)), guide)

    def restored(self, problem: FitProblem, fit: Fit) -> Fitting:
        """A fit as its job left it."""
        import numpy as np
        import torch

        from amortized_bayes.comparing.fitting import restore_fit

        state = self.place.lab.tensors(self.key(fit))
        return restore_fit(problem, fit, {name: torch.from_numpy(np.asarray(v)) for name, v in state.items()})

    def fit(self, fit: Fit) -> Iterator[Measured | Arrays | Checkpoint]:
        """Run one fit, measure it, and keep what another job needs to go on."""
        from amortized_bayes.comparing.fitting import finish_fit, run_fit, start_at, start_fit

        problem, start, origin = self.problem(), None, GUIDES[fit.guide].starts_from
        if origin:
            if (best := self.best(origin)) is None:
                raise ArithmeticError(f"no {origin} fit succeeded to start from")
            start = start_at(problem, self.restored(problem, best))
        fitting = start_fit(problem, fit, start)
        for evaluation in run_fit(problem, fitting, self.place.watch(FIT)):
            yield from _measured(evaluation)
        done = finish_fit(problem, fitting)
        yield Checkpoint({name: _array(tensor) for name, tensor in fitting.training.state().items()})
        yield Arrays({"elbo": _array(done.elbo.value.float()), **self.images(done)})
        yield from _measured(done.evaluation, {"capture_seconds": done.backend})

    def images(self, done: Finished) -> dict[str, np.ndarray]:
        """Some test images, and what becomes of them."""
        from amortized_bayes.data import to_pictures

        shape = self.place.images.image_shape
        return {name: to_pictures(_array(seen), shape) for name, seen in done.examples.items()}

    def double(self, guide: str) -> Iterator[Measured | Arrays]:
        """Train the best fit of a guide as long again; what comes of it takes nothing from what is finished."""
        from amortized_bayes.comparing.fitting import continue_fit

        if (best := self.best(guide)) is None:
            raise ArithmeticError(f"no fit of {guide} succeeded")
        about = {"factors": best.factors, "status": self.final(best).status}
        problem = self.problem()
        try:
            found, elbo = continue_fit(problem, self.restored(problem, best), self.place.watch(DOUBLING))
        except ArithmeticError as error:
            step, note = getattr(error, "step", 0), f"diverged when the epochs were doubled: {error}"
            yield Measured("doubled_elbo", None, step=step, note=note, **about)
            return
        yield Arrays({"elbo": _array(elbo.value.float())})
        for measured in _measured(found):
            yield measured._replace(**about)

    def compare(self) -> Iterator[Measured]:
        """Put the fits side by side."""
        from amortized_bayes.comparing.between import Curve, compare_fits

        lab, elbos = self.place.lab, self.elbos(self.fits())
        if not elbos:
            raise ArithmeticError("no fit succeeded")
        doubled = {}
        for guide in self.doubled():
            best = self.best(guide)
            if best is not None and lab.rows(self.doubled_key(guide))["value"].notna().all():
                doubled[best] = self.elbo(self.doubled_key(guide))
        curves = {}
        for fit in elbos:
            rows = lab.rows(self.key(fit))
            rows = rows[rows["metric"] == "elbo"].sort_values("step")
            curves[fit] = Curve(*(rows[name].to_numpy(dtype=float) for name in ("step", "seconds", "value")))
        for found in compare_fits(elbos, doubled, curves):
            about = {"factors": found.factors, "note": found.note, **self.final(found.fit)._asdict()}
            yield Measured(found.metric, *found.measure, **about)

    def final(self, fit: Fit) -> Final:
        """Where a fit ended, and how."""
        rows = self.place.lab.rows(self.key(fit))
        last = rows[rows["metric"] == "final_elbo"].iloc[-1]
        return Final(int(last["step"]), float(last["seconds"]), str(last["status"]))


def _measured(found: Evaluation, notes: Mapping[str, str] = {}) -> Iterator[Measured]:
    for metric, measure in found.measures.items():
        place = {"step": found.step, "seconds": found.seconds, "status": found.status}
        yield Measured(metric, *measure, **place, note=notes.get(metric, ""))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
