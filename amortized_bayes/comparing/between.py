r"""What the fits of one problem say about each other: the family gap, what is not converged, times to a target.

.. math::
    \text{family gap} = \frac{1}{N} \sum_n (L_n[q_\text{reference}] - L_n[q])

(Margossian & Blei, *Amortized Variational Inference: When and Why?*, UAI 2024). The reference is the best F-VI found.
Gaps are paired by point, so that the spread over points, far larger than a gap, drops out of the error. All fits took
equally many steps: gaps between fits of unequal histories are as much of training as of families.

Times are to shares of the gap between constant VI and the reference, which mean the same on every data set. They are
read off the ladder of budgets, between two rungs on log axes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from amortized_bayes.comparing.measures import Measure, over_points, paired
from amortized_bayes.guides.registry import ALREADY, SHARES, Fit, guide_entry
from amortized_bayes.per_point import PerPoint, PointValues, mean_over_points
from amortized_bayes.types import Factor

__all__ = ["Finding", "Ladder", "Rung", "best_fit", "compare_fits", "find_reference", "time_to"]


class Rung(NamedTuple):
    """A fit with one budget: passes over the data, steps, seconds that they took, and the ELBO of each point, (N,)."""

    epochs: int
    step: int
    seconds: float
    elbo: Tensor | np.ndarray | PerPoint


Ladder = Sequence[Rung]
"""One fit with rising budgets; all ladders of a problem end at the same. What starts at another's answer has two rungs:
where it starts, and the top."""


class Finding(NamedTuple):
    """A number about a fit beside others.

    Args:
        fit: whose.
        metric: what.
        measure: how much.
        more: what else tells it from others, as factors of a row.
        rung: at which budget; the top by default.
        note: what must be known of it: of the reference, which guide it is.
    """

    fit: Fit
    metric: str
    measure: Measure
    more: Mapping[str, Factor] = {}
    rung: Rung | None = None
    note: str = ""

    @property
    def factors(self) -> dict[str, Factor]:
        """What tells it from others, as factors of a row; the reference stands for itself, whichever fit it is."""
        if self.metric == "elbo_reference":
            return {"guide": "reference"}
        return {**self.fit.factors, **self.more}


def best_fit(elbos: Mapping[Fit, Any], guide: str) -> Fit | None:
    """The fit of a guide with the highest ELBO, ``None`` where none succeeded; ``elbos`` are of each point, (N,)."""
    return _best([fit for fit in elbos if fit.guide == guide], elbos)


def find_reference(ladders: Mapping[Fit, Ladder]) -> Fit | None:
    """The best of the fits that may be the reference: of F-VI from its own start, and from the best A-VI.

    A fit that ends below the answer it started at is none.
    """
    tops = {
        fit: rungs[-1].elbo
        for fit, rungs in ladders.items()
        if guide_entry(fit.guide).is_reference and not (guide_entry(fit.guide).starts_from and _gain(rungs) < 0)
    }
    return _best(list(tops), tops)


def compare_fits(ladders: Mapping[Fit, Ladder], vacuous: Collection[Fit] = ()) -> Iterator[Finding]:
    """Yield what fits say about each other; nothing where no F-VI succeeded.

    ``elbo_reference``; for each fit its ``family_gap``, at each budget how far it is ``behind_reference``, and
    ``unconverged_by``, what the last doubling of its own budget gained; and, where neither reference nor fit is
    vacuous, which share of the gap between constant VI and the reference it closes: ``gap_closed``, at each budget
    ``share_closed``, and ``steps_to_share`` and ``seconds_to_share``.

    Args:
        ladders: ladders of the fits that succeeded.
        vacuous: those whose latents carry nothing.
    """
    reference = find_reference(ladders)
    if reference is None:
        return
    best = ladders[reference][-1].elbo
    yield Finding(reference, "elbo_reference", over_points(best), note=guide_entry(reference.guide).label)
    constant = None if reference in vacuous else ladders.get(Fit("constant"))
    worst = None if constant is None else constant[-1].elbo
    whole = 0.0 if worst is None else _sure(paired(best, worst))
    for fit, rungs in ladders.items():
        yield Finding(fit, "family_gap", paired(best, rungs[-1].elbo))
        for rung in rungs:
            yield Finding(fit, "behind_reference", paired(best, rung.elbo), {"epochs": rung.epochs}, rung)
        own = not guide_entry(fit.guide).starts_from  # else gains, and times, are those of another guide too
        for before, after in list(pairwise(rungs))[-1:] if own else []:
            yield Finding(fit, "unconverged_by", paired(after.elbo, before.elbo))
        if worst is None or not whole > 0 or fit in vacuous or fit.guide == "constant":
            continue
        yield Finding(fit, "gap_closed", share_closed(best, rungs[-1].elbo, worst))
        for rung in rungs:
            yield Finding(fit, "share_closed", share_closed(best, rung.elbo, worst), {"epochs": rung.epochs}, rung)
        if not own:
            continue
        behind = [paired(best, rung.elbo).value or 0.0 for rung in rungs]
        for share in SHARES:
            target = (1 - share) * whole
            steps, seconds = time_to(rungs, behind, target) or (None, None)
            note = ALREADY if behind[0] <= target else ""
            yield Finding(fit, "steps_to_share", Measure(steps), {"share": share}, note=note)
            yield Finding(fit, "seconds_to_share", Measure(seconds), {"share": share}, note=note)


Elbos = Tensor | np.ndarray | PerPoint


def share_closed(best: Elbos, own: Elbos, worst: Elbos) -> Measure:
    """Which share of the gap between two fits a third closes, points being paired; its error by the delta method.

    Example:
        >>> share_closed(np.array([0.0, 0.0]), np.array([-1.0, -1.0]), np.array([-4.0, -4.0]))
        Measure(value=0.75, error=0.0, error_over='points')
    """
    behind, whole = paired(best, own).value, paired(best, worst).value
    assert behind is not None
    assert whole is not None
    share = 1 - behind / whole
    (above, error), (below, other) = _parts(best), _parts(worst)
    between = PointValues(share * above + (1 - share) * below, math.hypot(share * error, (1 - share) * other))
    found = paired(own if own is best else between, own)
    return found._replace(value=share, error=None if found.error is None else found.error / whole)


def _parts(elbos: Elbos) -> tuple[Any, float]:
    """Values of the points, and the error that they share."""
    return getattr(elbos, "value", elbos), getattr(elbos, "shared_error", 0.0)


def _sure(gap: Measure) -> float:
    """A gap that lies above two of its errors, else 0: shares of it would say nothing."""
    return gap.value if gap.value is not None and gap.value > 2 * (gap.error or 0.0) else 0.0


def time_to(rungs: Ladder, behind: Sequence[float], target: float) -> tuple[float, float] | None:
    """Steps and seconds of the budget with which a fit would come within ``target`` nats of the reference.

    Between two rungs on log axes; ``None`` where the smallest budget suffices already, or where none does.

    Example:
        >>> rungs = [Rung(1, 100, 1.0, np.zeros(1)), Rung(2, 400, 4.0, np.zeros(1))]
        >>> time_to(rungs, [8.0, 2.0], 4.0), time_to(rungs, [8.0, 2.0], 1.0)
        ((200.0, 2.0), None)
    """
    i = next((i for i, distance in enumerate(behind) if distance <= target), 0)
    if i == 0:
        return None
    if behind[i] > 0 and target > 0:
        part = math.log(behind[i - 1] / target) / math.log(behind[i - 1] / behind[i])
    else:
        part = (behind[i - 1] - target) / (behind[i - 1] - behind[i])

    def between(before: float, after: float) -> float:
        return math.exp((1 - part) * math.log(before) + part * math.log(after))

    before, after = rungs[i - 1], rungs[i]
    steps = between(before.step, after.step)
    return round(steps, 6), round(between(before.seconds, after.seconds), 6)


def _gain(rungs: Ladder) -> float:
    """Nats per point from the first rung to the top."""
    return mean_over_points(rungs[-1].elbo)[0] - mean_over_points(rungs[0].elbo)[0]


def _best(fits: list[Fit], elbos: Mapping[Fit, Any]) -> Fit | None:
    return max(fits, key=lambda fit: mean_over_points(elbos[fit])[0], default=None)
