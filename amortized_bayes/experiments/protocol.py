r"""A known decoder, an encoder fitted to it, then both trained jointly: what joint training does to the decoder.

The protocol of Shekhovtsov, Schlesinger & Flach (*VAE Approximation Error: ELBO and Exponential Families*, ICLR 2022),
for any model: data are drawn from a decoder, so that its log p(x) and posterior are the truth. Training proceeds in
stages; at every checkpoint, of each split, with standard errors over points, all differences paired by point:

.. math::
    \text{ELBO} \le L[q^*] \le \log p_\theta(x), \qquad
    \text{log p lost} = \log p_{\text{true}}(x) - \log p_\theta(x), \qquad
    \mathrm{KL}(q_\phi \,\|\, p_{\text{true}}(z \mid x)) = \log p_{\text{true}}(x) - \text{ELBO}_{\text{true}}[q_\phi] .

Over new draws from the truth the mean of *log p lost* is the divergence of the truth from the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from amortized_bayes.experiments.spec import Measured, measured
from amortized_bayes.per_point import PerPoint, mean_over_points, paired_difference

__all__ = ["Bounds", "Checked", "Stage", "Subject", "follow"]

Values = Tensor | np.ndarray | PerPoint
"""Of each point, (B,) in nats, or with an error that the points share."""


class Bounds(NamedTuple):
    """How the numbers of a model are found at data, (B,) each in nats: called with model, guide and data.

    Args:
        elbo: ELBO of the guide.
        elbo_star: ELBO of the best q of each point in the guide's family.
        log_p: log p(x), or a bound on it.
        exact: whether all three are; metrics then say so.
    """

    elbo: Callable[[Any, Any, Tensor], Values]
    elbo_star: Callable[[Any, Any, Tensor], Values]
    log_p: Callable[[Any, Any, Tensor], Values]
    exact: bool = False


class Record(Protocol):
    """Where a fit stands."""

    @property
    def step(self) -> int:
        """Steps taken in this stage."""
        ...

    @property
    def seconds(self) -> float:
        """That they took."""
        ...


class Stage(NamedTuple):
    """A part of the training.

    Args:
        name: name of the stage, a value of the factor ``stage``.
        num_steps: number of steps of the stage.
        run: trains the subject's model and guide in place, and yields at given steps and at the last one.
    """

    name: str
    num_steps: int
    run: Callable[[Sequence[int]], Iterator[Record]]


@dataclass(frozen=True)
class Subject:
    """What goes through the protocol.

    Args:
        model: Pyro program that is trained.
        original: the decoder from which data were drawn; nothing changes it.
        guide: Pyro program with the encoder.
        data: points of each split, those that are trained on among them.
        bounds: how numbers are found.
    """

    model: Any
    original: Any
    guide: Any
    data: Mapping[str, Tensor]
    bounds: Bounds


class Checked(NamedTuple):
    """A checkpoint.

    Args:
        stage: its name.
        step: over all stages.
        seconds: seconds of training, over all stages.
        rows: what was measured.
    """

    stage: str
    step: int
    seconds: float
    rows: Sequence[Measured]


def follow(
    subject: Subject, stages: Sequence[Stage], checkpoints: int, watch: Callable[[str, int, int], None]
) -> Iterator[Checked]:
    """Train stage by stage, and measure at so many checkpoints of each, beside its start.

    Args:
        subject: is trained in place.
        stages: one after the other.
        checkpoints: checkpoints of each stage, the last step being one.
        watch: told of each stage how many of its steps are done.
    """
    bounds = subject.bounds
    truth = {split: bounds.log_p(subject.original, subject.guide, x) for split, x in subject.data.items()}
    step, seconds = 0, 0.0
    for stage in stages:
        start = {split: bounds.elbo(subject.model, subject.guide, x) for split, x in subject.data.items()}
        check = partial(_check, subject, truth, start, stage.name)
        yield check(step, seconds)
        marks = sorted({round(stage.num_steps * (n + 1) / checkpoints) for n in range(checkpoints)} - {0})
        spent = 0.0
        for record in stage.run(marks):
            spent = record.seconds
            yield check(step + record.step, seconds + spent)
            watch(stage.name, record.step, stage.num_steps)
        step, seconds = step + stage.num_steps, seconds + spent


def _check(
    subject: Subject, truth: Mapping[str, Values], start: Mapping[str, Values], stage: str, step: int, seconds: float
) -> Checked:
    rows = [
        row._replace(step=step, seconds=seconds, factors={**row.factors, "stage": stage})
        for split in subject.data
        for row in _measure(subject, split, truth[split], start[split])
    ]
    return Checked(stage, step, seconds, rows)


def _measure(subject: Subject, split: str, truth: Values, start: Values) -> Iterator[Measured]:
    """The numbers of one split, as the subject stands."""
    x, bounds = subject.data[split], subject.bounds
    elbo, best, log_p = (find(subject.model, subject.guide, x) for find in bounds[:3])
    prefix = "exact_" if bounds.exact else ""
    for name, found in {
        "elbo": mean_over_points(elbo),
        "log_p": mean_over_points(log_p),
        "elbo_star": mean_over_points(best),
        "approximation_gap": paired_difference(log_p, best),
        "amortization_gap": paired_difference(best, elbo),
        "kl_to_original": paired_difference(truth, bounds.elbo(subject.original, subject.guide, x)),
        "log_p_lost": paired_difference(truth, log_p),
        "elbo_gained": paired_difference(elbo, start),
    }.items():
        yield measured(f"{prefix}{name}", found, split=split)
