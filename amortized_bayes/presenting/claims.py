"""What was claimed of A-VI and F-VI, beside what a sweep finds on the same data set."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from amortized_bayes import labels, selection
from amortized_bayes.guides.registry import Fit
from amortized_bayes.presenting.cells import cell
from amortized_bayes.presenting.fits import best_width, closes_gap, is_sound, of_guide, ratio, shares
from amortized_bayes.presenting.published import FOLDER

if TYPE_CHECKING:
    import pandas as pd

    from amortized_bayes.selection import Found

__all__ = ["claims_found"]

COLUMNS = ("dataset", "claim", "published", "source", "kind")
CLOCKS = ("steps", "seconds")
KINDS = (*CLOCKS, "step time", "mse", "test mse")
"""Kinds of claims, besides ``closes k``."""


def claims_found(name: str, finals: pd.DataFrame, folder: Path = FOLDER) -> Iterator[tuple[str, ...]]:
    """Yield data set, claim, what was published, by whom, and what this run finds, for data sets of the run.

    Raises:
        ValueError: a file of other columns, or a kind of claim that is not computed here.
    """
    path = folder / f"{name}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path.name}: expected the columns {', '.join(COLUMNS)}, got {reader.fieldnames}")
        for row in reader:
            rows = selection.where(finals, {"dataset": row["dataset"]})
            if len(rows):
                found = _found(rows, row["kind"], path)
                yield labels.dataset_label(row["dataset"]), row["claim"], row["published"], row["source"], found


def _found(rows: pd.DataFrame, kind: str, path: Path) -> str:
    what, _, width = kind.partition(" ")
    if kind not in KINDS and not (what == "closes" and width.isdecimal()):
        raise ValueError(f"{path.name}: expected a kind of claim ({', '.join(KINDS)}, closes k), got {kind!r}")
    best = best_width(rows)
    if best is None:
        return "no A-VI fit with an active latent"
    if kind in CLOCKS:
        return _ratios(rows, kind, best)
    if what == "closes":
        k = int(width)
        gap, closed = of_guide(rows, "family_gap", "amortized", k), closes_gap(rows, k)
        if gap is None or closed is None:
            return "cannot be told"
        left = gap.value / cast("Found", of_guide(rows, "family_gap", "constant")).value
        return f"{'yes' if closed else 'no'}: {left:.1%} of it is left, {cell('family_gap', gap)} nats"
    if kind == "test mse":
        f = of_guide(rows, "final_mse_test", "factorized")
        return f"{cell('final_mse_test', f)}, fresh factors, q(theta) frozen" if f else "not measured with every seed"
    metric, k = ("seconds_per_step", best) if kind == "step time" else ("final_mse_train", 64)
    a, f = of_guide(rows, metric, "amortized", k), of_guide(rows, metric, "factorized")
    if not a or not f:
        return "not measured with every seed"
    difference = f"{a.value - f.value:+.4f} ({a.value:.4f} against {f.value:.4f})"
    return f"{f.value / a.value:.2f} (k = {best})" if kind == "step time" else difference


def _ratios(rows: pd.DataFrame, clock: str, best: int) -> str:
    """F-VI's steps or seconds over A-VI's, to each share of the gap."""
    own, other = Fit("factorized"), Fit("amortized", best)
    parts, left = [], list[str]()
    for share in shares(rows):
        found = ratio(rows, f"{clock}_to_share", own, other, share=share) if is_sound(rows, own) else None
        target = labels.value_label("share", share)
        if found is None:
            left.append(target)
        else:
            error = f"±{found.error:.2f}" if math.isfinite(found.error) else ""
            parts.append(f"{found.value:.2f}{error} to {target}")
    if not parts:
        return "cannot be told"
    more = f"; to {', '.join(left)} it cannot be told" if left else ""
    return f"{', '.join(parts)} of the gap (k = {best}){more}"
