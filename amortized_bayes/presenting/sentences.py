"""What a run found, in words: what every experiment says of its rows, and findings that experiments name.

An experiment's ``FINDINGS`` name functions of this file, or are functions of its own: rows in, sentences out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

from amortized_bayes import labels, selection
from amortized_bayes.guides.registry import GUIDES
from amortized_bayes.presenting.claims import of_guide
from amortized_bayes.results.summary import summarise

if TYPE_CHECKING:
    import pandas as pd

    from amortized_bayes.selection import Found

__all__ = ["FINDINGS", "best_guides", "notes", "sentences", "sweep"]

NEVER_NEGATIVE = ("approximation_gap", "amortization_gap", "inference_gap", "optimization_gap")
"""Gaps that no optimum lets fall below zero: one that does shows noise, or a search that fell short."""


def sentences(rows: pd.DataFrame, findings: Iterable[str | Callable[..., Iterable[str]]] = ()) -> Iterator[str]:
    """Yield what was found: what an experiment says itself, then failures, vacuous fits and what casts doubt.

    Args:
        rows: of a run.
        findings: names of functions in ``FINDINGS``, or functions of rows.

    Raises:
        ValueError: a name that no function has.
    """
    finals = summarise(rows)
    yield from _common_notes(finals)
    for finding in findings:
        if isinstance(finding, str) and finding not in FINDINGS:
            raise ValueError(f"expected findings among {', '.join(FINDINGS)}, got {finding!r}")
        yield from (FINDINGS[finding] if isinstance(finding, str) else finding)(finals)
    yield from _failures(finals)
    yield from _vacuous(finals)
    yield from _negative_gaps(finals)
    yield from _missing_certificates(finals)


# What every experiment says -------------------------------------------------------------------------------------------


def _common_notes(finals: pd.DataFrame) -> Iterator[str]:
    """Notes that all rows of a data set share: that other data were used, say."""
    for _, rows in selection.groups(finals, ("dataset",)):
        found = [set(note.split("; ")) for note in rows[rows["status"] != "failed"]["note"].fillna("").astype(str)]
        for phrase in sorted(set.intersection(*found) - {""}) if found else []:
            yield f"{_upper(phrase)}."


def _failures(finals: pd.DataFrame) -> Iterator[str]:
    failed = cast("pd.DataFrame", finals[finals["status"] == "failed"])
    for name, row in zip(_names(finals, failed), failed.to_dict("records"), strict=True):
        reason = f" ({row['note']})" if row["note"] else ""
        step = f" at step {row['step']:,}" if row["step"] else ""
        yield f"{_upper(name) or 'It'} failed{step}{reason}."


def _vacuous(finals: pd.DataFrame) -> Iterator[str]:
    dead = cast("pd.DataFrame", finals[finals["status"] == "vacuous"])
    if "guide" in dead.columns:
        dead = cast("pd.DataFrame", dead[dead["guide"] != "reference"])  # which is one of the guides
    names = dict.fromkeys(_names(finals, dead, ignored=selection.SAME_JOB))
    if not names:
        return
    who = "; ".join(filter(None, names)) or "the model"
    yield f"Vacuous, since no latent is active: {who}."


def _negative_gaps(finals: pd.DataFrame) -> Iterator[str]:
    """Gaps that lie below zero by more than two of their errors."""
    below = finals[finals["metric"].isin(NEVER_NEGATIVE) & (finals["value"] < -2 * finals["standard_error"].fillna(0))]
    below = selection.where(cast("pd.DataFrame", below), {"label": None})
    for name, row in zip(_names(finals, below), below.to_dict("records"), strict=True):
        value, error, whose = row["value"], row["standard_error"], f" of {name}" if name else ""
        z = f" ± {error:.2f} (z = {value / error:.1f})" if error and error > 0 else ""
        gap = labels.metric_name(row["metric"]).split(":")[0]
        yield f"The {gap}{whose} is negative: {value:.2f}{z} nats per point."


def _missing_certificates(finals: pd.DataFrame) -> Iterator[str]:
    """AIS without its check on points drawn from the model."""
    bounds, checked = (
        cast("pd.DataFrame", finals[finals["metric"] == name]) for name in ("log_p_lower", "certificate_gap")
    )
    known = set(_names(finals, checked))
    names = [name for name in _names(finals, bounds) if name not in known]
    if names:
        whose = f" of {'; '.join(names)}" if any(names) else ""
        yield f"AIS{whose} has no certificate: it was not checked on points drawn from the model."


# Findings that experiments name ---------------------------------------------------------------------------------------


def notes(finals: pd.DataFrame) -> Iterator[str]:
    """Yield what rows say of themselves alone: verdicts, certificates, what a search was replaced by."""
    chosen = cast("pd.DataFrame", finals[(finals["note"].fillna("") != "") & (finals["status"] != "failed")])
    common = {sentence.removesuffix(".") for sentence in _common_notes(finals)}
    said: dict[str, None] = {}
    for name, note in zip(_names(finals, chosen), chosen["note"], strict=True):
        phrases = [phrase for phrase in note.split("; ") if _upper(phrase) not in common]
        if phrases:
            text = "; ".join(phrases).rstrip(".")
            said[f"{_upper(name)}: {text}." if name else f"{_upper(text)}."] = None
    yield from said


def sweep(finals: pd.DataFrame) -> Iterator[str]:
    """Yield what a sweep found of each data set: gaps, the width that is wide enough, times and convergence."""
    for key, rows in selection.groups(finals, ("dataset",)):
        label = labels.dataset_label(str(key["dataset"]))
        yield from _gaps(rows, label)
        yield from _times(rows, label)
        yield from _convergence(rows, label)


def best_guides(finals: pd.DataFrame) -> Iterator[str]:
    """Yield the learning rates with the highest ELBO for each guide."""
    chosen = cast("pd.DataFrame", finals[(finals["metric"] == "tune_elbo") & finals["value"].notna()])
    for key, rows in selection.groups(chosen, ("dataset", "guide", "k")):
        best = rows.sort_values("value").to_dict("records")[-1]
        rates = f"{best['shared_rate']:g} for q(theta), {best['local_rate']:g} for the local factors"
        yield f"{labels.describe(key)}: the best rates are {rates} (ELBO {best['value']:.1f})."


FINDINGS: dict[str, Callable[[Any], Iterable[str]]] = {"sweep": sweep, "notes": notes, "best_guides": best_guides}
"""Findings by name."""


def _gaps(rows: pd.DataFrame, label: str) -> Iterator[str]:
    """What each family loses; a vacuous guide is left to the sentence about vacuous ones."""
    found = {
        guide: gap
        for guide in selection.guides(rows)
        if not (guide[0] in GUIDES and GUIDES[guide[0]].starts_from)
        and (gap := of_guide(rows, "family_gap", *guide))
        and gap.value
    }
    dead = {guide for guide in found if _is_vacuous(rows, guide)}
    if not found:
        return
    over = "seeds" if rows["seed"].nunique() > 1 else "points"
    parts = [
        f"{labels.guide_label(*guide)} {_loses(gap)}{' (vacuous)' if guide in dead else ''}"
        for guide, gap in found.items()
    ]
    yield f"{label}: against the best F-VI found, {', '.join(parts)} (nats per point, ± over {over})."
    widths = {k: gap for (guide, k), gap in found.items() if guide == "amortized" and (guide, k) not in dead}
    enough = next((k for k, gap in sorted(widths.items(), key=lambda item: item[0] or 0) if gap.value <= 1.0), None)
    if enough is not None:
        yield f"{label}: the narrowest encoder within 1 nat of the best F-VI is k = {enough}."
    elif widths:
        yield f"{label}: no encoder width tried comes within 1 nat of the best F-VI."


def _loses(gap: Found) -> str:
    error = f"±{gap.error:.1f}" if math.isfinite(gap.error) else ""
    return f"is {-gap.value:.1f}{error} better" if gap.value < 0 else f"loses {gap.value:.1f}{error}"


def _is_vacuous(rows: pd.DataFrame, guide: tuple[str, int | None]) -> bool:
    own = selection.where(rows, {"guide": guide[0], "k": guide[1]})
    return bool((own["status"] == "vacuous").any())


def _times(rows: pd.DataFrame, label: str) -> Iterator[str]:
    metrics = ("seconds_to_target", "steps_to_target")
    for within in labels.order("within", rows["within"].tolist() if "within" in rows.columns else [])[::-1]:
        parts = []
        theirs = [of_guide(rows, metric, "factorized", within=within) for metric in metrics]
        for guide, k in selection.guides(rows):
            own = [of_guide(rows, metric, guide, k, within=within) for metric in metrics]
            if guide == "amortized" and all(own) and all(theirs):
                seconds, steps = (t.value / o.value for t, o in zip(theirs, own, strict=True) if t and o)
                parts.append(f"{seconds:.1f}× the time and {steps:.1f}× the iterations of k = {k}")
        if parts:
            target = labels.value_label("within", within)
            yield f"{label}: to come within {target} of the reference, F-VI needed {', '.join(parts)}."


def _convergence(rows: pd.DataFrame, label: str) -> Iterator[str]:
    gains = {guide: gain for guide in selection.guides(rows) if (gain := of_guide(rows, "unconverged_by", *guide))}
    if gains:
        parts = ", ".join(
            f"{'gains' if gain.value >= 0 else 'costs'} {labels.guide_label(*guide)} another {abs(gain.value):.1f}"
            for guide, gain in gains.items()
        )
        yield f"{label}: not converged: doubling the epochs {parts} nats per point."
    for guide, gain in gains.items():
        gap = of_guide(rows, "family_gap", *guide)
        if guide[0] == "amortized" and gap:  # F-VI from A-VI had A-VI's epochs and its own
            late = gap._replace(value=gap.value - gain.value, error=math.nan)
            name = labels.guide_label(*guide)
            yield (
                f"{label}: F-VI from A-VI, which may be the reference, had twice the epochs in all; given as many, "
                f"{name} {_loses(late)}."
            )
    for row in rows[(rows["metric"] == "doubled_elbo") & rows["value"].isna()].to_dict("records"):
        name = labels.guide_label(row["guide"], None if labels.is_missing(row.get("k")) else row["k"])
        yield f"{label}: {name}: {row['note']} (step {row['step']:,})."


# Words ----------------------------------------------------------------------------------------------------------------


def _names(rows: pd.DataFrame, some: pd.DataFrame, ignored: tuple[str, ...] = ()) -> list[str]:
    """Each row of ``some`` named by the factors that vary among ``rows``."""
    same = selection.factors_of(rows)
    varying = [name for name in selection.factor_names(rows) if name not in same and name not in ignored]
    if "k" in varying and "guide" in rows.columns and "guide" not in varying:
        varying.append("guide")
    columns = [some[name].tolist() for name in varying]
    return [labels.describe(dict(zip(varying, values, strict=True))) for values in zip(*columns, strict=True)] or [
        "" for _ in range(len(some))
    ]


def _upper(text: str) -> str:
    """With a capital at the start of a word; a symbol, as in ``q*``, stays as it is."""
    return text[:1].upper() + text[1:] if text[1:2].isalpha() else text
