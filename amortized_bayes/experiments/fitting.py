"""One fit: run it, evaluate it on the way and at its end, and keep what a later run needs to go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from amortized_bayes.data import to_pictures
from amortized_bayes.evaluation.errors import mean_prediction
from amortized_bayes.experiments import measure
from amortized_bayes.experiments.measure import Measure
from amortized_bayes.experiments.problem import build_guide, fit_options, model_name
from amortized_bayes.experiments.setup import ImageData, build_model
from amortized_bayes.experiments.sweep import Fit, SweepConfig, report_steps
from amortized_bayes.guides import LocalGuide
from amortized_bayes.inference.local import fresh_factors
from amortized_bayes.inference.options import Divergence, StepRecord
from amortized_bayes.inference.svi import Training
from amortized_bayes.results import RunFolder
from amortized_bayes.seeding import torch_seed
from amortized_bayes.sites import LatentSites
from amortized_bayes.types import Row

__all__ = ["Fitting", "Progress", "finish_fit", "go_on", "new_fit", "restore_fit", "run_fit"]

EXAMPLES = 10
"""Test images kept for the figure of reconstructions."""
FRESH_VISITS = 100
"""Visits of each test point when factorized VI gets fresh factors."""
FRESH_REPORTS = 6
"""Points on the test curve of factorized VI, where each costs a fit of fresh factors."""
CURVE_POINTS = 1_000
"""Test images on the curves."""


class Progress(NamedTuple):
    """How far a fit is; ``elbo`` is the last batch's, noisy, in nats a point."""

    fit: Fit
    step: int
    num_steps: int
    elbo: float
    doubled: bool


class Fitting(NamedTuple):
    """A model and a guide being fitted."""

    fit: Fit
    model: nn.Module
    guide: LocalGuide
    sites: LatentSites
    training: Training

    @property
    def is_factorized(self) -> bool:
        """Whether test points need factors of their own."""
        return self.fit.guide.startswith("factorized")


def new_fit(config: SweepConfig, problem: ImageData, fit: Fit, start: LocalGuide | None = None) -> Fitting:
    """Model, guide and training at their start."""
    model, sites = build_model(config, problem, fit.seed)
    guide = build_guide(config, problem, sites, fit, start)
    options = fit_options(config, fit, len(problem.train))
    return Fitting(fit, model, guide, sites, Training(model, guide, problem.train, options, fit.seed))


def restore_fit(config: SweepConfig, problem: ImageData, fit: Fit, folder: RunFolder) -> Fitting:
    """A finished fit from its checkpoint.

    Raises:
        ValueError: a checkpoint that is damaged or of another architecture.
    """
    as_built = fit._replace(guide="factorized") if fit.guide == "factorized-from-amortized" else fit
    fitting = new_fit(config, problem, as_built)
    state = {k: torch.from_numpy(np.asarray(v)) for k, v in folder.load_tensors(fit.key).items()}
    fitting.training.load_state(state)
    return fitting._replace(fit=fit)


def run_fit(
    config: SweepConfig, problem: ImageData, fitting: Fitting, watch: Callable[[Progress], None]
) -> Iterator[Row]:
    """Take all steps of a fit and yield the rows of its curves.

    Raises:
        Divergence: the loss is not finite.
    """
    training, fit = fitting.training, fitting.fit
    num_steps = config.epochs * training.batches.per_epoch
    reports = report_steps(num_steps)
    with_test = set(reports if not fitting.is_factorized else reports[:: -max(1, len(reports) // FRESH_REPORTS)])
    torch.manual_seed(torch_seed(fit.seed, "evaluation", fit.key))
    for record in training.run(num_steps, {*reports, *_ticks(num_steps)}):
        watch(Progress(fit, record.step, num_steps, record.elbo, doubled=False))
        if record.step in reports:
            with pyro.validation_enabled(False), training.averaged():  # what is not finite is refused below
                found = measure.train_measures(config, problem, fitting.model, fitting.guide)
                if record.step in with_test:
                    found["mse_test"] = _test_error(config, problem, fitting)
            yield from _rows(config, fit, record, found, vacuous=(found["kl"].value or 0.0) < measure.VACUOUS_KL)


def finish_fit(config: SweepConfig, problem: ImageData, fitting: Fitting, folder: RunFolder) -> Iterator[Row]:
    """Evaluate the averaged iterate with many samples, save everything, and yield the final rows.

    Raises:
        Divergence: a final value that is not finite; nothing is saved then.
    """
    training, fit = fitting.training, fitting.fit
    with pyro.validation_enabled(False), training.averaged():  # what is not finite is refused below
        found, arrays = measure.final_measures(config, problem, fitting.model, fitting.guide)
        model, guide = _for_test(config, fitting, problem.test)
        found |= measure.held_out_measures(config, model, guide, problem.test, problem.grey_test)
        few = torch.arange(min(EXAMPLES, len(problem.test)), device=problem.test.device)
        seen = mean_prediction(model, guide, problem.test[few].float(), few).observed
    images = {"original": problem.grey_test[few], "reconstruction": seen}
    arrays |= {name: to_pictures(_array(pixels), problem.image_shape) for name, pixels in images.items()}
    parameters, size = training.size()
    captured = training.captured
    found |= {
        "seconds_per_step": Measure(training.seconds / training.steps),
        "capture_seconds": Measure(captured.seconds if captured else 0.0),
        "num_parameters": Measure(parameters),
        "memory_bytes": Measure(size),
    }
    record = StepRecord(training.steps, training.seconds, float("nan"))
    backend = captured.backend if captured else "uncaptured"
    rows = list(_rows(config, fit, record, found, vacuous=measure.vacuous(found)))
    rows = [row._replace(note=backend) if row.metric == "capture_seconds" else row for row in rows]
    folder.save_tensors(fit.key, {k: _array(v) for k, v in training.state().items()}, {"fit": fit.key})
    folder.save_arrays(fit.key, **arrays)
    yield from rows


def go_on(
    config: SweepConfig, problem: ImageData, fitting: Fitting, folder: RunFolder, watch: Callable[[Progress], None]
) -> Iterator[Row]:
    """Take as many steps again and yield the ELBO that this leads to.

    Raises:
        Divergence: the loss is not finite.
    """
    training, fit = fitting.training, fitting.fit
    num_steps, before = config.epochs * training.batches.per_epoch, training.steps
    torch.manual_seed(torch_seed(fit.seed, "evaluation", fit.key, "doubled"))
    record = StepRecord(before, training.seconds, float("nan"))
    for record in training.run(num_steps, (before + t for t in _ticks(num_steps))):
        watch(Progress(fit, record.step, before + num_steps, record.elbo, doubled=True))
    with pyro.validation_enabled(False), training.averaged():
        found = measure.train_elbo(config, problem, fitting.model, fitting.guide, config.elbo_draws)
    rows = list(_rows(config, fit, record, {"doubled_elbo": measure.over_points(found.value)}, vacuous=False))
    folder.save_arrays(f"{fit.key}_doubled", elbo=_array(found.value.float()))
    yield from rows


def _test_error(config: SweepConfig, problem: ImageData, fitting: Fitting) -> Measure:
    data, grey = problem.test[:CURVE_POINTS], problem.grey_test[:CURVE_POINTS]
    return measure.mse_on(*_for_test(config, fitting, data), data, grey)


def _for_test(config: SweepConfig, fitting: Fitting, data: Tensor) -> tuple[nn.Module, LocalGuide]:
    """Model and guide for test points: factorized VI fits fresh factors with q(theta) frozen, others answer at once."""
    if not fitting.is_factorized:
        return fitting.model, fitting.guide
    options = fit_options(config, fitting.fit, len(data))
    fixed = (fitting.model, fitting.guide.shared, fitting.sites.local)
    return fresh_factors(*fixed, data, options, visits=FRESH_VISITS, seed=fitting.fit.seed)


def _rows(
    config: SweepConfig, fit: Fit, record: StepRecord, found: Mapping[str, Measure], *, vacuous: bool
) -> Iterator[Row]:
    status = "vacuous" if vacuous else "ok"
    for metric, (value, error, over) in found.items():
        if value is not None and not math.isfinite(value):  # steps may stay finite while what they lead to is not
            raise _not_finite(record.step, metric, value)
        yield Row(
            *("sweep", fit.dataset, model_name(config), fit.guide, fit.k, fit.seed, record.step, record.seconds),
            *(metric, value, error, over, status),
        )


def _not_finite(step: int, metric: str, value: float) -> Divergence:
    error = Divergence(step, value)
    error.args = (f"{metric} of {value:g} at step {step}",)
    return error


def _ticks(num_steps: int) -> range:
    """Steps at which progress is shown."""
    return range(0, num_steps, max(1, num_steps // 50))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
