"""One guide of a comparison: how it was fitted, and what it came to."""

from __future__ import annotations

from typing import NamedTuple

from amortized_bayes.comparing.between import Rung
from amortized_bayes.evaluation.bounds import Elbo
from amortized_bayes.guides.registry import GUIDES, Fit
from amortized_bayes.per_point import is_vacuous

__all__ = ["FittedGuide"]


class FittedGuide(NamedTuple):
    """One guide's result.

    Args:
        name: of the guide.
        k: its width, where it has one.
        step: steps taken; where a fit failed, at which.
        seconds: that they took.
        elbo: of each point; ``None`` for a fit that failed.
        rungs: the fit with each budget, the last with all epochs.
        active_units: latents that carry something.
    """

    name: str
    k: int | None
    step: int
    seconds: float
    elbo: Elbo | None
    rungs: tuple[Rung, ...]
    active_units: int = 0

    @property
    def fit(self) -> Fit:
        """Guide and width."""
        return Fit(self.name, self.k)

    @property
    def label(self) -> str:
        """Guide and width, for readers."""
        label = GUIDES[self.name].label
        return label if self.k is None else f"{label}, k = {self.k}"

    @property
    def status(self) -> str:
        """Ok, vacuous or failed."""
        if self.elbo is None:
            return "failed"
        return "vacuous" if is_vacuous(self.active_units) else "ok"

    @property
    def seconds_per_step(self) -> float:
        """Of its own steps: one that goes on from another's answer has those that led there below its first rung."""
        before, top = self.rungs[-2:]
        return (top.seconds - before.seconds) / max(1, top.step - before.step)
