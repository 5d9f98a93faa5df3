r"""What the fits of one problem say about each other: the family gap, what is not converged, times to a target.

.. math::
    \text{family gap} = \frac{1}{N} \sum_n (L_n[q_\text{reference}] - L_n[q])

(Margossian & Blei, *Amortized Variational Inference: When and Why?*, UAI 2024). The reference is the best F-VI found.
Gaps are paired by point, so that the spread over points, far larger than a gap, drops out of the error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from amortized_bayes.comparing.measures import Measure, over_points, paired
from amortized_bayes.guides.registry import GUIDES, Fit
from amortized_bayes.per_point import mean_over_points
from amortized_bayes.types import Factor

__all__ = ["TARGETS", "Curve", "Finding", "best_fit", "compare_fits", "find_reference", "steps_to_target"]

TARGETS = (1.0, 3.0)
"""Distances from the reference, in nats per point, that a fit is timed to."""

Values = TypeVar("Values", Tensor, np.ndarray)


class Curve(NamedTuple):
    """ELBO of a fit on its way, arrays of equal length."""

    steps: np.ndarray
    seconds: np.ndarray
    elbo: np.ndarray


class Finding(NamedTuple):
    """A number about a fit beside others; ``within`` is the target of a time, in nats."""

    fit: Fit
    metric: str
    measure: Measure
    within: float | None = None

    @property
    def factors(self) -> dict[str, Factor]:
        """What tells it from others, as factors of a row; the reference stands for itself, whichever fit it is."""
        if self.metric == "elbo_reference":
            return {"guide": "reference"}
        return {**self.fit.factors, **({} if self.within is None else {"within": self.within})}

    @property
    def note(self) -> str:
        """Which guide the reference is."""
        return GUIDES[self.fit.guide].label if self.metric == "elbo_reference" else ""


def best_fit(elbos: Mapping[Fit, Values], guide: str) -> Fit | None:
    """The fit of a guide with the highest ELBO, ``None`` where none succeeded; ``elbos`` are of each point, (N,)."""
    return _best([fit for fit in elbos if fit.guide == guide], elbos)


def find_reference(elbos: Mapping[Fit, Values]) -> Fit | None:
    """The best of the fits that may be the reference: of F-VI from its own start, and from the best A-VI."""
    return _best([fit for fit in elbos if GUIDES[fit.guide].is_reference], elbos)


def compare_fits(
    elbos: Mapping[Fit, Values], doubled: Mapping[Fit, Values], curves: Mapping[Fit, Curve]
) -> Iterator[Finding]:
    """Yield ``elbo_reference``, and for each fit its ``family_gap``, times to targets and ``unconverged_by``.

    Args:
        elbos: final ELBO of each point, (N,), of the fits that succeeded.
        doubled: likewise after as many epochs again, of some.
        curves: of fits that are to be timed.
    """
    reference = find_reference(elbos)
    if reference is None:
        return
    target = over_points(elbos[reference])
    yield Finding(reference, "elbo_reference", target)
    for fit, values in elbos.items():
        yield Finding(fit, "family_gap", paired(elbos[reference], values))
        # the time of a fit that starts at another would leave out that of the other
        if target.value is not None and fit in curves and not GUIDES[fit.guide].starts_from:
            for within in TARGETS:
                at = steps_to_target(curves[fit], target.value - within)
                steps, seconds = (None, None) if at is None else at
                yield Finding(fit, "steps_to_target", Measure(steps), within)
                yield Finding(fit, "seconds_to_target", Measure(seconds), within)
        if fit in doubled:
            yield Finding(fit, "unconverged_by", paired(doubled[fit], values))


def steps_to_target(curve: Curve, target: float) -> tuple[float, float] | None:
    """Step and second at which a curve first reaches ``target``, between two reports on log axes; ``None`` if never."""
    steps, seconds, elbos = curve
    reached = np.flatnonzero(elbos >= target)
    if not len(reached):
        return None
    i = int(reached[0])
    if i == 0:
        return float(steps[0]), float(seconds[0])
    part = (target - elbos[i - 1]) / (elbos[i] - elbos[i - 1])

    def between(values: np.ndarray) -> float:
        return float(math.exp((1 - part) * math.log(values[i - 1]) + part * math.log(values[i])))

    return between(steps), between(seconds)


def _best(fits: list[Fit], elbos: Mapping[Fit, Values]) -> Fit | None:
    return max(fits, key=lambda fit: mean_over_points(elbos[fit])[0], default=None)
