"""What a run found, in words: what is said of the rows of every experiment, and findings that experiments name.

An experiment's ``FINDINGS`` name functions of this file, or are functions of its own: rows in, sentences out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

from amortized_bayes import labels, selection
from amortized_bayes.presenting.cells import with_seeds
from amortized_bayes.presenting.drifting import drifting_images
from amortized_bayes.presenting.fits import of_status
from amortized_bayes.presenting.mixture import bent_decoder
from amortized_bayes.presenting.series import what_f_must_see
from amortized_bayes.presenting.sweep import sweep
from amortized_bayes.results.summary import summarise

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FINDINGS", "best_guides", "encoder_or_family", "notes", "sentences", "told_apart"]

NEVER_NEGATIVE = ("approximation_gap", "amortization_gap", "inference_gap", "optimization_gap")
"""Gaps that cannot be negative at an optimum: a negative one shows noise, or a search that fell short."""


def sentences(rows: pd.DataFrame, findings: Iterable[str | Callable[..., Iterable[str]]] = ()) -> Iterator[str]:
    """Yield what was found: the experiment's own findings, then failures, vacuous fits and reasons for doubt.

    Args:
        rows: rows of a run.
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
    whole = selection.where(finals, {"epochs": None})
    yield from _failures(whole)
    yield from _vacuous(whole)
    yield from _negative_gaps(whole)
    yield from _missing_certificates(whole)


# What every experiment says -------------------------------------------------------------------------------------------


def _common_notes(finals: pd.DataFrame) -> Iterator[str]:
    """Notes that all rows of a data set share, such as that other data were used."""
    for _, rows in selection.groups(finals, ("dataset",)):
        found = [set(note.split("; ")) for note in rows[rows["status"] != "failed"]["note"].fillna("").astype(str)]
        for phrase in sorted(set.intersection(*found) - {""}) if found else []:
            yield f"{_upper(phrase)}."


def _failures(finals: pd.DataFrame) -> Iterator[str]:
    failed = of_status(finals, "failed")
    for name, row in zip(told_apart(finals, failed), failed.to_dict("records"), strict=True):
        reason = f" ({row['note']})" if row["note"] else ""
        step = f" at step {row['step']:,}" if row["step"] else ""
        yield f"{_upper(name) or 'It'} failed{step}{reason}."


def _vacuous(finals: pd.DataFrame) -> Iterator[str]:
    dead = of_status(finals, "vacuous")
    if not len(dead):
        return
    seeds: dict[str, set[int]] = {}
    own = dead["seed"] if "seed" in dead.columns else [0] * len(dead)
    for name, seed in zip(told_apart(finals, dead, ignored=selection.SAME_JOB), own, strict=True):
        seeds.setdefault(name, set()).add(int(seed))
    every = set(finals["seed"].dropna().astype(int)) if "seed" in finals.columns else {0}
    who = "; ".join((name or "the model") + with_seeds(some, every) for name, some in seeds.items())
    yield f"Vacuous, since no latent is active: {who}."


def _negative_gaps(finals: pd.DataFrame) -> Iterator[str]:
    """Gaps that are negative by more than two of their errors."""
    below = finals[finals["metric"].isin(NEVER_NEGATIVE) & (finals["value"] < -2 * finals["standard_error"].fillna(0))]
    below = selection.where(cast("pd.DataFrame", below), {"label": None})
    for name, row in zip(told_apart(finals, below), below.to_dict("records"), strict=True):
        value, error, whose = row["value"], row["standard_error"], f" of {name}" if name else ""
        z = f" ± {error:.2f} (z = {value / error:.1f})" if error and error > 0 else ""
        gap = labels.metric_name(row["metric"]).split(":")[0]
        yield f"The {gap}{whose} is negative: {value:.2f}{z} nats per point."


def _missing_certificates(finals: pd.DataFrame) -> Iterator[str]:
    """AIS estimates without a check on points drawn from the model."""
    bounds, checked = (
        cast("pd.DataFrame", finals[finals["metric"] == name]) for name in ("log_p_lower", "certificate_gap")
    )
    known = set(told_apart(finals, checked))
    names = [name for name in told_apart(finals, bounds) if name not in known]
    if names:
        whose = f" of {'; '.join(names)}" if any(names) else ""
        yield f"AIS{whose} has no certificate: it was not checked on points drawn from the model."


# Findings that experiments name ---------------------------------------------------------------------------------------


def notes(finals: pd.DataFrame) -> Iterator[str]:
    """Yield the notes of single rows: verdicts, certificates, what replaced a search."""
    chosen = cast("pd.DataFrame", finals[(finals["note"].fillna("") != "") & (finals["status"] != "failed")])
    common = {sentence.removesuffix(".") for sentence in _common_notes(finals)}
    said: dict[str, None] = {}
    for name, note in zip(told_apart(finals, chosen), chosen["note"], strict=True):
        phrases = [phrase for phrase in note.split("; ") if _upper(phrase) not in common]
        if phrases:
            text = "; ".join(phrases).rstrip(".")
            said[f"{_upper(name)}: {text}." if name else f"{_upper(text)}."] = None
    yield from said


def best_guides(finals: pd.DataFrame) -> Iterator[str]:
    """Yield the learning rates with the highest ELBO for each guide."""
    chosen = cast("pd.DataFrame", finals[(finals["metric"] == "tune_elbo") & finals["value"].notna()])
    for key, rows in selection.groups(chosen, ("dataset", "guide", "k")):
        best = rows.sort_values("value").to_dict("records")[-1]
        rates = f"{best['shared_rate']:g} for q(theta), {best['local_rate']:g} for the local factors"
        yield f"{labels.describe(key)}: the best rates are {rates} (ELBO {best['value']:.1f})."


def encoder_or_family(finals: pd.DataFrame) -> Iterator[str]:
    """Yield for each model whether its encoder or its family loses more, or that this is uncertain."""
    parts = cast("pd.DataFrame", finals[finals["metric"].isin(("amortization_gap", "approximation_gap"))])
    rows = selection.where(parts, {"label": None})
    seeds, same = selection.num_seeds(rows), selection.factors_of(rows)
    for key, some in selection.groups(rows, [name for name in selection.factor_names(rows) if name != "seed"]):
        encoder, family = (
            selection.mean(some, metric, seeds=seeds) for metric in ("amortization_gap", "approximation_gap")
        )
        if encoder is None or family is None or not math.isfinite(encoder.value + family.value):
            continue
        dataset = f"{labels.dataset_label(str(key['dataset']))}: " if "dataset" in key and "dataset" not in same else ""
        who = labels.describe({n: v for n, v in key.items() if n not in (*same, "dataset")}) or "this model"
        both = [_with_error(found) for found in (encoder, family)]
        more = selection.is_positive(selection.difference(encoder, family))
        if more is None:
            said = f"it is uncertain whether encoder or family loses more: {both[0]} and {both[1]}"
        elif more:
            said = f"the encoder loses more than the family, {both[0]} against {both[1]}"
        else:
            said = f"the family loses more than the encoder, {both[1]} against {both[0]}"
        yield f"{dataset}{who if dataset else _upper(who)}: {said} nats per point."


def _with_error(found: selection.Found) -> str:
    return f"{found.value:.2f}" + (f"±{found.error:.2f}" if math.isfinite(found.error) else "")


FINDINGS: dict[str, Callable[[Any], Iterable[str]]] = {
    "sweep": sweep,
    "notes": notes,
    "best_guides": best_guides,
    "encoder_or_family": encoder_or_family,
    "what_f_must_see": what_f_must_see,
    "bent_decoder": bent_decoder,
    "drifting_images": drifting_images,
}
"""Findings by name."""


# Words ----------------------------------------------------------------------------------------------------------------


def told_apart(rows: pd.DataFrame, some: pd.DataFrame, ignored: tuple[str, ...] = ()) -> list[str]:
    """Name each row of ``some`` by the factors that differ among ``rows``."""
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
