"""Numbers of the guides of one data set over all seeds, for sentences and claims about a sweep.

Means are always over all seeds of the run: a number that some seed lacks is ``None``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import numpy as np

from amortized_bayes import labels, selection
from amortized_bayes.guides.registry import ALREADY, GUIDES, Fit
from amortized_bayes.selection import Found

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "all_fits",
    "best_width",
    "by_seed",
    "closed_already",
    "closes_gap",
    "is_below",
    "is_sound",
    "never_closed",
    "of_guide",
    "of_status",
    "ratio",
    "shares",
    "unsettled",
    "widths",
    "within",
]

CLOSED = 0.01
"""A width closes the gap if less of the gap between constant VI and the reference is left."""
WHOLE = {"epochs": None}
"""Rows of a fit with its whole budget."""


def all_fits(rows: pd.DataFrame) -> list[Fit]:
    """All fits, including those that failed, in reading order."""
    return [Fit(guide, k) for guide, k in selection.guides(rows)]


def by_seed(rows: pd.DataFrame, metric: str, fit: Fit, **more: float) -> dict[int, float] | None:
    """A final value of one fit with each seed; ``None`` unless all seeds have it and reached it."""
    own = selection.matching(rows, {**WHOLE, "metric": metric, "guide": fit.guide, "k": fit.k, **more})
    values = rows["value"][own].astype(float)
    found = {int(seed): float(value) for seed, value in zip(rows["seed"][own], values, strict=True)}
    if set(found) != set(rows["seed"]) or any(math.isnan(value) for value in found.values()):
        return None
    return found


def of_guide(rows: pd.DataFrame, metric: str, guide: str, k: int | None = None, **more: float) -> Found | None:
    """The mean over seeds of a final value of one fit; ``None`` unless all seeds have it and reached it."""
    if by_seed(rows, metric, Fit(guide, k), **more) is None:
        return None
    wanted = {"guide": guide, "k": k, **more}
    return selection.mean(selection.where(rows, {**WHOLE, **wanted}), metric, wanted, int(rows["seed"].nunique()))


def closed_already(rows: pd.DataFrame, fit: Fit, share: float) -> set[int]:
    """Seeds with which the smallest budget already closes a share, so that the time to it is unknown."""
    own = selection.where(rows, {"metric": "steps_to_share", "guide": fit.guide, "k": fit.k, "share": share})
    return {int(seed) for seed in own.loc[own["note"].str.contains(ALREADY, regex=False), "seed"]}


def never_closed(rows: pd.DataFrame, fit: Fit, share: float) -> set[int]:
    """Seeds with which no budget closes a share."""
    own = selection.where(rows, {"metric": "steps_to_share", "guide": fit.guide, "k": fit.k, "share": share})
    late = own["value"].isna() & ~own["note"].str.contains(ALREADY, regex=False)
    return {int(seed) for seed in own.loc[late, "seed"]}


def of_status(rows: pd.DataFrame, status: str) -> pd.DataFrame:
    """Rows of fits with a status; vacuous ones without constant VI, which always is, and without the reference."""
    own = cast("pd.DataFrame", rows[rows["status"] == status])
    if "guide" not in own.columns:
        return own
    never = [name for name, entry in GUIDES.items() if entry.never_active] if status == "vacuous" else []
    return cast("pd.DataFrame", own[~own["guide"].isin(["reference", *never])])  # the reference is one of the guides


def is_sound(rows: pd.DataFrame, fit: Fit) -> bool:
    """Whether a fit succeeded with every seed and has an active latent."""
    own = selection.matching(rows, {**WHOLE, "guide": fit.guide, "k": fit.k, "status": "vacuous"})
    return not own.any() and by_seed(rows, "final_elbo", fit) is not None


def widths(rows: pd.DataFrame) -> list[int]:
    """Widths of A-VI whose fits are sound, in increasing order."""
    amortized = cast("pd.DataFrame", rows[rows["guide"] == "amortized"])
    return [k for k in labels.order("k", amortized["k"].tolist()) if is_sound(rows, Fit("amortized", k))]


def best_width(rows: pd.DataFrame) -> int | None:
    """The width with the highest ELBO, of those whose fits are sound."""
    scores = {k: found.value for k in widths(rows) if (found := of_guide(rows, "final_elbo", "amortized", k))}
    return max(scores, key=scores.__getitem__) if scores else None


def ratio(rows: pd.DataFrame, metric: str, over: Fit, under: Fit, **more: float) -> Found | None:
    """The mean over seeds of the ratio of two fits with a seed, and its standard error; nan with one seed."""
    above, below = (by_seed(rows, metric, fit, **more) for fit in (over, under))
    if above is None or below is None:
        return None
    return mean_of([above[seed] / below[seed] for seed in above])


def mean_of(values: list[float]) -> Found:
    """The mean of a value per seed with its standard error over seeds; nan with one seed."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Found(float(np.mean(values)), error, {}, seeds=len(values))


def shares(rows: pd.DataFrame) -> list[float]:
    """The shares of the gap to which fits were timed, in increasing order."""
    return labels.order("share", rows["share"].tolist()) if "share" in rows.columns else []


def closes_gap(rows: pd.DataFrame, k: int) -> bool | None:
    """Whether A-VI of a width closes the gap; ``None`` if that is uncertain."""
    gap, whole = of_guide(rows, "family_gap", "amortized", k), of_guide(rows, "family_gap", "constant")
    if gap is None or whole is None or not whole.value > 0 or not is_sound(rows, Fit("amortized", k)):
        return None
    return is_below(gap, CLOSED * whole.value)


def unsettled(rows: pd.DataFrame) -> list[Fit]:
    """Fits whose gap to the reference is at most what the last doubling of the epochs gained them or F-VI."""
    gains = {fit: gain.value for fit in all_fits(rows) if (gain := of_guide(rows, "unconverged_by", *fit))}
    of_reference = [gain for fit, gain in gains.items() if fit.guide in GUIDES and GUIDES[fit.guide].is_reference]
    found = []
    for fit in gains:
        gap = of_guide(rows, "family_gap", *fit)
        if gap is not None and gap.value != 0 and abs(gap.value) <= max(gains[fit], *of_reference, 0.0):
            found.append(fit)
    return found


def is_below(found: Found, edge: float) -> bool | None:
    """Whether the interval of a number is below an edge; ``None`` if it contains the edge."""
    reach = found.reach if math.isfinite(found.error) else 0.0
    return True if found.value + reach < edge else False if found.value - reach >= edge else None


def within(found: Found, low: float, high: float) -> bool | None:
    """Whether the interval of a number is inside a range or outside; ``None`` if neither, or without an error."""
    reach = found.reach  # nan where a ratio has one seed: then nothing is sure
    inside = low <= found.value - reach and found.value + reach <= high
    outside = found.value - reach > high or found.value + reach < low
    return True if inside else False if outside else None
