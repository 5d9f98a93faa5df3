"""``fit``: a guide, and the parameters of its model, fitted in one call."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from amortized_bayes.inference.options import FitOptions, StepRecord
from amortized_bayes.inference.svi import Training
from amortized_bayes.types import Guide, Model

__all__ = ["FitResult", "fit", "fit_steps"]

NUM_RECORDS = 100
"""Records along a fit."""
SMALL = 0.1
"""Nats per point that a quarter of a fit may still gain when the fit counts as converged."""


@dataclass(frozen=True, repr=False)
class FitResult:
    """What a fit did. Its values are in the guide and the model.

    A curve also levels off where rates fall to 0: a fit twice as long says more.

    Args:
        steps: taken.
        seconds: that the steps took, capturing left out.
        records: the ELBO of a batch, in nats per point, at up to 100 steps, evenly spaced.
        elbo: mean of the last quarter of the records, nats per point.
        elbo_error: its standard error, over batches and draws.
        gain: ``elbo`` minus that of the quarter before; nan for fewer than 8 records, and for an annealed objective.
        gain_error: its standard error.

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

    @classmethod
    def of(cls, records: Sequence[StepRecord], *, annealed: bool = False) -> FitResult:
        """The result of a fit with these records."""
        quarter = max(1, len(records) // 4)
        values = torch.tensor([record.elbo for record in records], dtype=torch.float64)
        (last, last_error), (before, before_error) = map(_mean, (values[-quarter:], values[-2 * quarter : -quarter]))
        known = quarter > 1 and not annealed
        gain, error = (last - before, math.hypot(last_error, before_error)) if known else (math.nan, math.nan)
        return cls(records[-1].step, records[-1].seconds, tuple(records), last, last_error, gain, error)

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
        return (
            f"FitResult({self.steps:,} steps in {self.seconds:.1f} s, ELBO {self.elbo:.2f}{error} nats per point, "
            f"{words})"
        )


def fit(
    model: Model,
    guide: Guide,
    data: Tensor,
    num_steps: int,
    options: FitOptions | None = None,
    *,
    seed: int = 0,
    plate: str = "data",
    pass_index: bool = True,
    progress: bool = True,
) -> FitResult:
    """Fit a guide, and the parameters of its model, and leave what is reported in them: averaged iterates, or the last.

    :func:`fit_steps` is the same step by step; :class:`Training` gives more say.

    Args:
        model: Pyro program called as ``model(x, index)``, or ``model(x)`` with ``pass_index=False``.
        guide: Pyro program called likewise.
        data: (N, ...).
        num_steps: steps to take.
        options: how to fit.
        seed: of batches and draws.
        plate: name of the plate over data points.
        pass_index: whether the programs take the places of the points.
        progress: show a bar on a terminal.

    Raises:
        Divergence: the loss is not finite.
        ValueError: bad options, or fewer steps than 1.

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
    options = options or FitOptions()
    marks = [round(num_steps * (i + 1) / NUM_RECORDS) for i in range(NUM_RECORDS)]
    steps = fit_steps(
        model, guide, data, num_steps, options, seed=seed, plate=plate, pass_index=pass_index, report_at=marks
    )
    records = list(_watched(steps, num_steps, progress))
    return FitResult.of(records, annealed=options.annealed)


def fit_steps(
    model: Model,
    guide: Guide,
    data: Tensor,
    num_steps: int,
    options: FitOptions | None = None,
    *,
    seed: int = 0,
    plate: str = "data",
    pass_index: bool = True,
    report_at: Iterable[int] = (),
) -> Iterator[StepRecord]:
    """:func:`fit` as a generator: what is done between two records is not timed, and a fit may be left at any.

    Only a fit that runs to its end leaves averaged iterates in guide and model.

    Args:
        model: as for :func:`fit`.
        guide: likewise.
        data: likewise.
        num_steps: likewise.
        options: likewise.
        seed: likewise.
        plate: likewise.
        pass_index: likewise.
        report_at: steps at which to yield a record, beside the last.

    Raises:
        Divergence: the loss is not finite.
        ValueError: bad options, or fewer steps than 1.

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
    if num_steps < 1:
        raise ValueError(f"expected num_steps of 1 or more, got {num_steps}")
    training = Training(model, guide, data, options or FitOptions(), seed, plate=plate, pass_index=pass_index)
    yield from training.run(num_steps, report_at)
    training.settle()


def _watched(steps: Iterator[StepRecord], num_steps: int, progress: bool) -> Iterator[StepRecord]:
    """Show a bar on a terminal while the records pass by."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task("fit", total=num_steps)
        for record in steps:
            bar.update(task, completed=record.step, description=f"fit, ELBO {record.elbo:.2f}")
            yield record


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean and standard error, nan for what is unknown."""
    mean = values.mean().item() if len(values) else math.nan
    return mean, (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan
