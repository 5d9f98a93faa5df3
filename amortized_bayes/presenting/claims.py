"""Published claims compared with what a run found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from amortized_bayes import selection
from amortized_bayes.presenting.claim_list import CLAIMS, Claim
from amortized_bayes.presenting.claim_tests import Shown, verdict

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Line", "claims_found", "tell_claim"]


class Line(NamedTuple):
    """A claim about one data set, and what a run says about it."""

    dataset: str
    claim: Claim
    measured: str
    verdict: str


ANSWERS = {True: "yes", False: "no", None: "open"}


def claims_found(experiment: str, finals: pd.DataFrame, preset: str = "") -> Iterator[Line]:
    """Yield what a run says about every claim on its experiment, for each of its data sets.

    Args:
        experiment: experiment of the run.
        finals: its final rows.
        preset: preset of the run; claims about another one are left out. Empty means all.
    """
    for claim in CLAIMS:
        if claim.experiment != experiment or (preset and claim.preset not in ("quick", preset)):
            continue
        for dataset in claim.published:
            rows = selection.where(finals, {"dataset": dataset})
            if len(rows):
                yield tell_claim(claim, dataset, rows)


def tell_claim(claim: Claim, dataset: str, rows: pd.DataFrame) -> Line:
    """What the final rows of one data set say about a claim."""
    parts = [part for test in claim.tests for part in test.told(rows)]
    marked = len({part.holds for part in parts}) > 1
    words = [f"{part.words} ({ANSWERS[part.holds]})" if marked else part.words for part in parts]
    words = "; ".join(dict.fromkeys(words)) or "nothing measured"
    only_shown = all(isinstance(test, Shown) for test in claim.tests)
    return Line(dataset, claim, words, "nothing claimed" if only_shown else verdict(parts))
