"""How to fit, what a fit reports, and how it fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Divergence", "FitOptions", "Schedule", "StepRecord", "burda", "cosine", "settling"]

Schedule = Callable[[float], float]
"""A number as a function of the part of the run that is done, in [0, 1]."""


@dataclass(frozen=True)
class FitOptions:
    """How to fit.

    Args:
        batch_size: B; the points left over at the end of an epoch are left out of it.
        learning_rate: of the networks and shared vectors that give the local parameters.
        shared_learning_rate: of everything else: q(theta), and parameters of the model.
        row_learning_rate: of rows of tables (factorized VI), which are visited once an epoch.
        analytic_kl: see :func:`~amortized_bayes.expectations.expected_log_weights`.
        local_reparametrization: likewise.
        average: eta of the averaged iterates, see :class:`~amortized_bayes.inference.optim.IterateAverage`.
        average_rows: average rows of tables as well, which holds another table.
        capture: ``auto`` (replay; compiled where that pays), ``replay``, ``inductor`` or ``off``.
        schedule: multiplies all rates.
        entropy_weight: multiplies the local log q alone (entropy annealing: E[log p(x, z) - λ log q(z | x)]).
        kl_weight: multiplies log q and log prior, local ones (KL warm-up: E[log p(x | z)] - β KL).
        adam_eps: added to Adam's denominators (not to those of rows).

    Example:
        >>> from amortized_bayes import FitOptions
        >>> FitOptions(batch_size=50).learning_rate
        0.004
    """

    batch_size: int = 250
    learning_rate: float = 4e-3
    shared_learning_rate: float = 4e-3
    row_learning_rate: float = 0.1
    analytic_kl: bool = True
    local_reparametrization: bool = False
    average: float = 8.0
    average_rows: bool = True
    capture: str = "auto"
    schedule: Schedule | None = None
    entropy_weight: Schedule | None = None
    kl_weight: Schedule | None = None
    adam_eps: float = 1e-8

    @property
    def annealed(self) -> bool:
        """Whether the objective changes in the course of a run."""
        return self.entropy_weight is not None or self.kl_weight is not None

    def weights_at(self, done: float) -> tuple[float, float]:
        """Weights of the local log prior and of the local log q when the part ``done`` of the run is done."""
        of_kl = self.kl_weight(done) if self.kl_weight else 1.0
        return of_kl, of_kl * (self.entropy_weight(done) if self.entropy_weight else 1.0)


class Divergence(ArithmeticError):
    """The loss stopped being a number, or ran far above its start, at ``step``.

    Example:
        >>> from amortized_bayes import Divergence
        >>> Divergence(step=12, value=float("nan")).step
        12
    """

    def __init__(self, step: int, value: float) -> None:
        super().__init__(f"loss of {value:.6g} nats per point at step {step}")
        self.step = step
        self.value = value


class StepRecord(NamedTuple):
    """A fit after ``step`` steps that took ``seconds``; ``elbo`` is the last batch's noisy value, nats per point."""

    step: int
    seconds: float
    elbo: float


def cosine(done: float) -> float:
    """Step size that falls from 1 to 0 as half a cosine, as a function of the part of the run that is done."""
    return 0.5 * (1 + math.cos(math.pi * done))


def settling(done: float) -> float:
    """Schedule for a fit that starts near its optimum: a fifth of the rate, falling to 0 as half a cosine."""
    return 0.2 * cosine(done)


def burda(done: float) -> float:
    """Schedule 10^(-i/7) for 3^i parts of 3,280, i = 0 ... 7 (Burda, Grosse & Salakhutdinov, ICLR 2016)."""
    stage, end = 0, 1
    while stage < 7 and done * 3280 >= end:
        stage += 1
        end += 3**stage
    return 10 ** (-stage / 7)
