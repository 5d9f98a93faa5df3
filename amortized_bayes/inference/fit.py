"""``fit``: a guide, and the parameters of its model, fitted in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer.autoguide import AutoGuide
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from amortized_bayes.calls import PerPointNames
from amortized_bayes.entrance import Entered, enter
from amortized_bayes.guides.autoguides import check_batches
from amortized_bayes.inference.options import FitOptions, StepRecord
from amortized_bayes.inference.streams import cuda_devices
from amortized_bayes.inference.svi import Training
from amortized_bayes.joint.checks import check_outside
from amortized_bayes.limits import Count, Seed, check_value, limited
from amortized_bayes.points import as_tensors
from amortized_bayes.signatures import own_options, signature_of
from amortized_bayes.snapshots import snapshot
from amortized_bayes.trees import leaves_of
from amortized_bayes.types import Guide, Model

__all__ = ["FitResult", "fit", "fit_steps"]

NUM_RECORDS = 100
"""Records along a fit."""
SMALL = 0.1
"""Nats per point that a quarter of a fit may still gain when the fit counts as converged."""


@dataclass(frozen=True, repr=False)
class FitResult:
    """What a fit did. Its values are in the guide and the model.

    A curve also levels off because learning rates fall to 0: a fit twice as long tells more.

    Args:
        steps: taken.
        seconds: that the steps took, capturing left out.
        records: the ELBO of a batch, or the bound that ``bound`` names, in nats per point, at up to 100 steps, evenly
            spaced.
        elbo: mean of the last quarter of the records, nats per point.
        elbo_error: its standard error, over batches and draws.
        gain: ``elbo`` minus that of the quarter before; nan for fewer than 8 records, and for an annealed objective.
        gain_error: its standard error.
        bound: what was maximized, and what ``elbo``, ``gain`` and the records are of; see ``FitOptions.objective``.

    Example:
        >>> FitResult(200, 1.5, (), elbo=-3.2, elbo_error=0.01, gain=0.5, gain_error=0.02)
        FitResult(200 steps in 1.5 s, ELBO -3.20±0.01 nats per point, still rising by 0.50±0.02 in the last quarter)
    """

    steps: int
    seconds: float
    records: Sequence[StepRecord] = field(repr=False)
    elbo: float
    elbo_error: float
    gain: float
    gain_error: float
    bound: str = "ELBO"

    @classmethod
    def of(cls, records: Sequence[StepRecord], *, annealed: bool = False, bound: str = "ELBO") -> FitResult:
        """The result of a fit with these records."""
        quarter = max(1, len(records) // 4)
        values = torch.tensor([record.elbo for record in records], dtype=torch.float64)
        (last, last_error), (before, before_error) = map(_mean, (values[-quarter:], values[-2 * quarter : -quarter]))
        known = quarter > 1 and not annealed
        gain, error = (last - before, math.hypot(last_error, before_error)) if known else (math.nan, math.nan)
        return cls(records[-1].step, records[-1].seconds, tuple(records), last, last_error, gain, error, bound)

    @property
    def converged(self) -> bool | None:
        """Whether the last quarter gained 0.1 nats per point at most, by two errors; ``None`` where that is unclear."""
        if self.gain + 2 * self.gain_error <= SMALL:
            return True
        return False if self.gain - 2 * self.gain_error > SMALL else None

    def __repr__(self) -> str:
        gain = f"{self.gain:.2f}±{self.gain_error:.2f} in the last quarter"
        words = {
            True: "level",
            False: f"still rising by {gain}",
            None: "too few records to say whether it is level" if math.isnan(self.gain) else f"perhaps rising: {gain}",
        }[self.converged]
        error = "" if math.isnan(self.elbo_error) else f"±{self.elbo_error:.2f}"
        value = f"{self.bound} {self.elbo:.2f}{error} nats per point"
        return f"FitResult({self.steps:,} steps in {self.seconds:.1f} s, {value}, {words})"


@own_options
@limited
def fit(
    model: Model,
    guide: Guide,
    *args: Any,
    num_steps: Count | None = None,
    options: FitOptions | None = None,
    plate: str | None = None,
    per_point: PerPointNames = None,
    seed: Seed = 0,
    pass_index: bool | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> FitResult:
    """Fit a guide and the parameters of its model, and leave the result in them: averaged iterates, or the last one.

    :func:`fit_steps` does the same step by step; :class:`Training` gives more control.

    Args:
        model: Pyro program ``model(*args, **kwargs)`` with a plate over data points, of any number of them.
        guide: Pyro program for all its latents, called likewise.
        args: arguments of both programs: tensors, numpy arrays, and dicts and lists of them, with a row for each of N
            points, and whatever else the programs take. A single tensor of integers is converted to floats. After
            them ``num_steps``, or ``num_steps`` and ``options``, may be positional.
        num_steps: steps to take.
        options: how to fit.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        seed: random seed for batches and draws.
        pass_index: whether programs with a parameter ``index`` get the indices of the points; by default they do.
        progress: show a bar on a terminal.
        kwargs: keyword arguments of both programs.

    Raises:
        Divergence: the loss is not finite.
        TypeError: no number of steps, or arguments that model or guide do not take.
        ValueError: bad options, fewer steps than 1, no such plate, no argument with a row per point, or a model that
            does not follow these.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> ab.fit(model, guide, x, 6, ab.FitOptions(batch_size=2))
        FitResult(6 steps in 0... s, ELBO -... nats per point, too few records to say whether it is level)
    """
    args, num_steps, options = _split(args, num_steps, options)
    entered = _enter(fit, model, guide, args, kwargs, plate=plate, per_point=per_point, pass_index=pass_index)
    marks = [round(num_steps * (i + 1) / NUM_RECORDS) for i in range(NUM_RECORDS)]
    steps = _run(entered, num_steps, options, seed, pass_index, marks)
    records = list(_watched(steps, num_steps, progress, options.bound_name))
    return FitResult.of(records, annealed=options.annealed, bound=options.bound_name)


@own_options
@limited
def fit_steps(
    model: Model,
    guide: Guide,
    *args: Any,
    num_steps: Count | None = None,
    options: FitOptions | None = None,
    plate: str | None = None,
    per_point: PerPointNames = None,
    seed: Seed = 0,
    pass_index: bool | None = None,
    report_at: Iterable[int] = (),
    **kwargs: Any,
) -> Iterator[StepRecord]:
    """:func:`fit` as a generator: what is done between two records is not timed, and a fit may be ended at any of them.

    Only a fit that runs to its end leaves averaged iterates in guide and model. Arguments and errors are those of
    :func:`fit`; instead of ``progress`` there is ``report_at``, steps at which to yield a record beside the last.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> options = ab.FitOptions(batch_size=2)
        >>> [record.step for record in ab.fit_steps(model, guide, x, 6, options, report_at=[3])]
        [3, 6]
    """
    args, num_steps, options = _split(args, num_steps, options)
    entered = _enter(fit_steps, model, guide, args, kwargs, plate=plate, per_point=per_point, pass_index=pass_index)
    return _run(entered, num_steps, options, seed, pass_index, report_at)


def _split(
    args: tuple[Any, ...], num_steps: int | None, options: FitOptions | None
) -> tuple[tuple[Any, ...], int, FitOptions]:
    """Arguments of the programs, steps and options, of which the last two may stand by place after the first."""
    if options is None and args and isinstance(args[-1], FitOptions):
        args, options = args[:-1], args[-1]
    if num_steps is None and len(args) > 1 and isinstance(args[-1], int):
        args, num_steps = args[:-1], args[-1]
    if num_steps is None:
        raise TypeError("expected a number of steps after the data, or num_steps=, got none")
    check_value("num_steps", Count, num_steps)  # which may have come by place
    return args, num_steps, options or FitOptions()


def _enter(
    call: Callable[..., Any],
    model: Model,
    guide: Guide,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    plate: str | None,
    per_point: PerPointNames,
    pass_index: bool | None,
) -> Entered:
    """Programs and their rows, and an autoguide that was not run yet set up on all points."""
    args, kwargs = as_tensors((args, kwargs))
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and not args[0].is_floating_point():
        args = (args[0].to(torch.get_default_dtype()),)
    if pass_index is not False:
        args = _with_places(model, args, kwargs)
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        with torch.no_grad(), torch.random.fork_rng():
            guide(*args, **kwargs)
    entered = enter(call, model, guide, args, kwargs, plate=plate, per_point=per_point)
    check_batches(entered.guide.program, "the guide")
    assert entered.data is not None
    places = dict(zip(entered.data.names, entered.data.leaves, strict=True)).get("index")
    if isinstance(places, Tensor) and not torch.equal(places.cpu(), torch.arange(len(entered.data))):
        raise ValueError("expected no index: a fit gives the indices of the points itself")
    return entered


def _with_places(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Arguments with the indices of the points, where a model takes them last by another name than ``index``."""
    signature = signature_of(model)
    tensors = [leaf for leaf in leaves_of(args) if isinstance(leaf, Tensor) and leaf.dim()]
    if signature is None or not tensors or "index" in signature.parameters:
        return args
    for given in (args, (*args, torch.arange(len(tensors[0]), device=tensors[0].device))):
        try:
            signature.bind(*given, **kwargs)
        except TypeError:
            continue
        return given
    return args


def _run(
    entered: Entered,
    num_steps: int,
    options: FitOptions,
    seed: int,
    pass_index: bool | None,
    report_at: Iterable[int],
) -> Iterator[StepRecord]:
    model, guide = entered.model, entered.guide
    if options.batch_size < len(entered.args[0]) or options.objective != "elbo":
        _check_apart(entered)
    told = pass_index is not False and (model.takes_index or guide.takes_index)
    training = Training(model, guide, entered.args[0], options, seed, plate=entered.plate, pass_index=told)
    yield from training.run(num_steps, report_at)
    training.settle()


def _check_apart(entered: Entered) -> None:
    """Refuse, before points are taken by batches, terms outside the plate that they are all in."""
    rows, put_back = entered.args[0], snapshot(entered.model)
    few = torch.arange(min(2, len(rows)), device=rows.device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=cuda_devices(rows)):
            trace = poutine.trace(entered.model).get_trace(rows[few], few)
        check_outside(entered.model, trace, (rows[few], few), {}, entered.plate)
    finally:
        put_back()


def _watched(steps: Iterator[StepRecord], num_steps: int, progress: bool, bound: str) -> Iterator[StepRecord]:
    """Show a bar on a terminal while the records pass by."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task("fit", total=num_steps)
        for record in steps:
            bar.update(task, completed=record.step, description=f"fit, {bound} {record.elbo:.2f}")
            yield record


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean and standard error, nan for what is unknown."""
    mean = values.mean().item() if len(values) else math.nan
    return mean, (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan
