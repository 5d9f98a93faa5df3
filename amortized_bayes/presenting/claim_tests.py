"""Tests of published claims against the rows of a run: does a claim hold on one data set, and what was measured?

A test answers ``True``, ``False``, or ``None`` if the 95% interval leaves both possible or a number is missing for some
seed. With several seeds errors are over seeds; with one they are those of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from amortized_bayes import labels, selection
from amortized_bayes.guides.registry import Fit
from amortized_bayes.presenting.cells import cell
from amortized_bayes.presenting.fits import (
    best_width,
    closes_gap,
    is_sound,
    mean_of,
    of_guide,
    ratio,
    shares,
    within,
)
from amortized_bayes.selection import Found
from amortized_bayes.types import Factor

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Closes",
    "Dead",
    "Largest",
    "Less",
    "Quotient",
    "Shown",
    "Signed",
    "Term",
    "Test",
    "Times",
    "Told",
    "verdict",
]

MISSING = "not measured with every seed"
CONVERGED = 1.0
"""Nats per point that the last doubling of the epochs may gain a fit that counts as converged."""


class Told(NamedTuple):
    """What a test answers.

    Args:
        holds: ``None`` where it cannot be told.
        words: what was measured.
    """

    holds: bool | None
    words: str


class Test(Protocol):
    """A claim, or a part of one, as arithmetic on rows."""

    def told(self, rows: pd.DataFrame) -> Iterable[Told]:
        """Yield an answer for each part, from the final rows of one data set."""
        ...


@dataclass(frozen=True)
class Term:
    """A number of a run.

    Args:
        metric: its metric.
        where: factors of its rows, as for :func:`amortized_bayes.selection.where`.
        sound: whether fits without an active latent are refused; constant VI never has one.
    """

    metric: str
    where: Mapping[str, Factor | None] = field(default_factory=dict)
    sound: bool = True

    def by_seed(self, rows: pd.DataFrame) -> dict[int, Found] | None:
        """The number with each seed; ``None`` unless all seeds have it, of fits with an active latent."""
        own = selection.where(rows, dict(self.where))
        found: dict[int, Found] = {}
        for seed in rows["seed"].dropna().unique():
            those = selection.where(own, {"seed": seed})
            one = selection.mean(those, self.metric, self.where)
            vacuous = (selection.where(those, {"metric": self.metric})["status"] == "vacuous").any()
            if one is None or (self.sound and vacuous) or math.isnan(one.value):
                return None
            found[int(seed)] = one
        return found or None

    def mean(self, rows: pd.DataFrame) -> Found | None:
        """Its mean over seeds."""
        found = self.by_seed(rows)
        return None if found is None else _mean(list(found.values()))

    def shown(self, rows: pd.DataFrame) -> str:
        """Value and error, as in tables."""
        return cell(self.metric, self.mean(rows)) or MISSING


@dataclass(frozen=True)
class Less:
    """That one number is smaller than another, paired by seed."""

    smaller: Term
    larger: Term

    def told(self, rows: pd.DataFrame) -> Iterator[Told]:
        """Look at the interval of their difference."""
        pairs = _pairs(rows, self.smaller, self.larger)
        if pairs is None:
            yield Told(None, MISSING)
            return
        if len(pairs) > 1:
            difference = mean_of([b.value - a.value for a, b in pairs])
        else:
            ((a, b),) = pairs
            difference = selection.difference(b, a)
        yield Told(selection.is_positive(difference), f"{self.smaller.shown(rows)} against {self.larger.shown(rows)}")


@dataclass(frozen=True)
class Signed:
    """That a number is positive, or negative with ``sign`` of -1; it is named by ``words``, or else by its factors."""

    term: Term
    sign: int = 1
    words: str = ""

    def told(self, rows: pd.DataFrame) -> Iterator[Told]:
        """Look at its interval."""
        found = self.term.mean(rows)
        name = self.words or ", ".join(labels.value_label(factor, value) for factor, value in self.term.where.items())
        holds = None if found is None else selection.is_positive(found._replace(value=self.sign * found.value))
        yield Told(holds, f"{name}: {self.term.shown(rows)}")


@dataclass(frozen=True)
class Quotient:
    """That the ratio of two numbers lies in a range."""

    over: Term
    under: Term
    low: float
    high: float

    def told(self, rows: pd.DataFrame) -> Iterator[Told]:
        """Compare the ratio's interval with the range."""
        pairs = _pairs(rows, self.over, self.under)
        if pairs is None:
            yield Told(None, MISSING)
            return
        found = mean_of([a.value / b.value for a, b in pairs])
        yield Told(within(found, self.low, self.high), _times(found))


@dataclass(frozen=True)
class Times:
    """That F-VI takes a multiple, within a range, of the steps or seconds of the best A-VI, to each share of the gap.

    Args:
        clock: ``"steps"`` or ``"seconds"``.
        low: lower end of the range that was claimed.
        high: upper end of the same.
    """

    clock: str
    low: float
    high: float

    def told(self, rows: pd.DataFrame) -> Iterator[Told]:
        """Answer for each share of the gap."""
        own, best = Fit("factorized"), best_width(rows)
        if best is None or not is_sound(rows, own):
            yield Told(None, "no A-VI and F-VI fits with an active latent")
            return
        for share in shares(rows):
            found = ratio(rows, f"{self.clock}_to_share", own, Fit("amortized", best), share=share)
            if found is not None:
                words = f"{_times(found)} to {labels.value_label('share', share)} of the gap (k = {best})"
                yield Told(within(found, self.low, self.high), words)


@dataclass(frozen=True)
class Closes:
    """That A-VI of a width closes the gap between constant VI and the reference."""

    k: int

    def told(self, rows: pd.DataFrame) -> Iterator[Told]:
        """Say which share of the gap is left."""
        gap, whole = of_guide(rows, "family_gap", "amortized", self.k), of_guide(rows, "family_gap", "constant")
        closed = closes_gap(rows, self.k)
        if gap is None or whole is None or not is_sound(rows, Fit("amortized", self.k)):
            yield Told(None, "no fit with an active latent")
            return
        left = f"{gap.value / whole.value:.1%} left" if gap.value >= 0 else "none left"
        yield Told(closed, f"k = {self.k}: {left}, {cell('family_gap', gap)} nats")


@dataclass(frozen=True)
class Dead:
    """That a fit ends without an active latent; undecided if the last doubling of its epochs still changed the fit."""

    fit: Fit

    def told(self, rows: pd.DataFrame) -> Iterator[Told]:
        """Look at how the fit ended, with every seed."""
        own = selection.where(rows, {"guide": self.fit.guide, "k": self.fit.k, "epochs": None, "metric": "final_elbo"})
        name = labels.guide_label(*self.fit)
        if set(own["seed"]) != set(rows["seed"].dropna()):
            yield Told(None, f"{name}: {MISSING}")
            return
        active = of_guide(rows, "active_units", *self.fit)
        units = f"{cell('active_units', active)} active units" if active else "active units unknown"
        gain = of_guide(rows, "unconverged_by", *self.fit)
        if gain is None or gain.value > CONVERGED:
            why = f"not converged by {cell('unconverged_by', gain)} nats" if gain else "convergence unknown"
            yield Told(None, f"{name}: {units}, {why}")
            return
        dead = set(own["status"] == "vacuous")
        yield Told(dead.pop() if len(dead) == 1 else None, f"{name}: {units}")


@dataclass(frozen=True)
class Largest:
    """That a number is larger for one value of a factor than for every other."""

    term: Term
    factor: str
    value: Factor

    def told(self, rows: pd.DataFrame) -> Iterator[Told]:
        """Look at the interval of its difference from each of the others."""
        own = selection.where(rows, dict(self.term.where))
        found: dict[Any, Found] = {}
        for key, part in selection.groups(own, (self.factor,)):
            one = selection.mean(part, self.term.metric, {self.factor: key[self.factor]}, selection.num_seeds(rows))
            if one is not None and not math.isnan(one.value):
                found[key[self.factor]] = one
        mine = found.pop(self.value, None)
        if mine is None or not found:
            yield Told(None, MISSING)
            return
        sure = [selection.is_positive(selection.difference(mine, other)) for other in found.values()]
        holds = False if False in sure else None if None in sure else True
        rival = max(found, key=lambda value: found[value].value)
        names = (labels.value_label(self.factor, value) for value in (self.value, rival))
        cells = (cell(self.term.metric, one) for one in (mine, found[rival]))
        yield Told(holds, ", largest other ".join(f"{name}: {text}" for name, text in zip(names, cells, strict=True)))


@dataclass(frozen=True)
class Shown:
    """A number about which nothing was claimed."""

    term: Term

    def told(self, rows: pd.DataFrame) -> Iterator[Told]:
        """Show it."""
        yield Told(None, self.term.shown(rows))


def verdict(parts: Sequence[Told]) -> str:
    """The verdict that follows from the answers to all parts of a claim.

    Example:
        >>> verdict([Told(True, ""), Told(False, "")]), verdict([Told(False, ""), Told(None, "")])
        ('holds in part', 'cannot be told yet')
    """
    answers = {part.holds for part in parts}
    if answers == {True}:
        return "holds"
    if answers == {False}:
        return "does not hold"
    return "holds in part" if True in answers else "cannot be told yet"


def _pairs(rows: pd.DataFrame, one: Term, other: Term) -> list[tuple[Found, Found]] | None:
    """Both numbers with each seed."""
    a, b = one.by_seed(rows), other.by_seed(rows)
    return None if a is None or b is None else [(a[seed], b[seed]) for seed in a]


def _mean(found: list[Found]) -> Found:
    return found[0] if len(found) == 1 else mean_of([one.value for one in found])


def _times(found: Found) -> str:
    return f"{found.value:.2f}" + (f"±{found.error:.2f}" if math.isfinite(found.error) else "") + "×"
