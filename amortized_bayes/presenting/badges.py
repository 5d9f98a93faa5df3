"""Badges of a run: certified, vacuous, not converged, failed, unfinished."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from amortized_bayes import labels, selection
from amortized_bayes.page.parts import Badge
from amortized_bayes.presenting.fits import of_status, unsettled
from amortized_bayes.presenting.sentences import told_apart
from amortized_bayes.results.summary import summarise

if TYPE_CHECKING:
    import pandas as pd

    from amortized_bayes.results import RunFolder

__all__ = ["badges"]

ABSTAINS = "no verdict"
"""How a verdict begins that names no cause."""


def badges(folder: RunFolder, rows: pd.DataFrame) -> Iterator[Badge]:
    """Yield what a reader must know before the numbers.

    Args:
        folder: a run.
        rows: its rows.
    """
    if not folder.finished:
        yield Badge("open", "unfinished", "only finished jobs are shown")
    if not len(rows):
        yield Badge("open", "no rows yet")
        return
    finals = selection.where(summarise(rows), {"epochs": None})
    yield from _fates(finals)
    yield from _certificates(finals)
    yield from _convergence(finals)
    verdicts = _of(finals, "inference_gap")
    abstaining = cast("pd.DataFrame", verdicts[verdicts["note"].fillna("").str.contains(ABSTAINS, regex=False)])
    if len(abstaining):
        yield Badge("open", "no verdict", _who(finals, abstaining))


def _fates(finals: pd.DataFrame) -> Iterator[Badge]:
    for status in ("failed", "vacuous"):
        some = of_status(finals, status)
        if len(some):
            yield Badge("bad", status, _who(finals, some, ignored=selection.SAME_JOB))


def _certificates(finals: pd.DataFrame) -> Iterator[Badge]:
    """Whether estimates of log p(x) were checked on points drawn from the model, and passed."""
    judged = _of(finals, "certified")
    good, bad = (cast("pd.DataFrame", judged[judged["value"] == value]) for value in (1, 0))
    if len(good):
        yield Badge("good", "certified", _who(finals, good))
    if len(bad):
        yield Badge("bad", "not certified", _who(finals, bad))
    gaps = _of(finals, "certificate_gap")
    if len(gaps) and not len(judged):
        worst = gaps.sort_values("value").iloc[-1]
        if labels.is_missing(worst["value"]):
            yield Badge("bad", "not certified", "the gap between the two bounds is not finite")
        else:
            error = "" if labels.is_missing(worst["standard_error"]) else f"±{worst['standard_error']:.2f}"
            apart = f"on average the two bounds are {worst['value']:.2f}{error} nats apart"
            yield Badge("open", "AIS certificate", apart)
    if not len(gaps) and not len(judged) and len(_of(finals, "log_p_lower")):
        yield Badge("open", "no certificate")


def _convergence(finals: pd.DataFrame) -> Iterator[Badge]:
    judged = _of(finals, "converged")
    if len(some := cast("pd.DataFrame", judged[judged["value"] == 0])):
        yield Badge("bad", "not converged", ", ".join(filter(None, ["q*", _who(finals, some)])))
    for key, rows in selection.groups(_fits(finals), ("dataset",)):
        if found := unsettled(rows):
            who = "; ".join(labels.guide_label(*fit) for fit in found)
            yield Badge("bad", "not converged", f"{labels.dataset_label(str(key['dataset']))}: {who}")


def _fits(finals: pd.DataFrame) -> pd.DataFrame:
    """Rows of guides that were compared."""
    known = {"guide", "seed", "dataset"} <= set(finals.columns)
    return finals if known and (finals["metric"] == "family_gap").any() else finals.iloc[:0]


def _of(finals: pd.DataFrame, metric: str) -> pd.DataFrame:
    return cast("pd.DataFrame", finals[finals["metric"] == metric])


def _who(finals: pd.DataFrame, some: pd.DataFrame, ignored: tuple[str, ...] = ()) -> str:
    return "; ".join(dict.fromkeys(filter(None, told_apart(finals, some, ignored))))
