"""What was claimed of A-VI and F-VI, beside what a sweep finds on the same data set."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from amortized_bayes import labels, selection
from amortized_bayes.presenting.cells import cell
from amortized_bayes.presenting.published import FOLDER

if TYPE_CHECKING:
    import pandas as pd

    from amortized_bayes.selection import Found

__all__ = ["claims_found", "of_guide"]

COLUMNS = ("dataset", "claim", "published", "source", "kind")


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


def of_guide(rows: pd.DataFrame, metric: str, guide: str, k: int | None = None, **more: float) -> Found | None:
    """A final value of one guide of one data set, over all seeds; ``None`` where it was not measured or not reached."""
    wanted = {"guide": guide, "k": k, **more}
    found = selection.mean(selection.where(rows, wanted), metric, wanted, int(rows["seed"].nunique()))
    return None if found is None or math.isnan(found.value) else found


def _found(rows: pd.DataFrame, kind: str, path: Path) -> str:
    best = _best_width(rows)
    if best is None:
        return "no A-VI fit"
    what, _, width = kind.partition(" ")
    if what == "steps":
        return _step_ratios(rows, best)
    if what in ("step", "mse"):
        metric, k = ("seconds_per_step", best) if what == "step" else ("final_mse_train", 64)
        a, f = of_guide(rows, metric, "amortized", k), of_guide(rows, metric, "factorized")
        if not a or not f:
            return "not run"
        difference = f"{a.value - f.value:+.4f} ({a.value:.4f} against {f.value:.4f})"
        return f"{f.value / a.value:.2f} (k = {best})" if what == "step" else difference
    if what == "test":
        f = of_guide(rows, "final_mse_test", "factorized")
        return f"{cell('final_mse_test', f)}, fresh factors, q(theta) frozen" if f else "not run"
    if what == "closes" and width.isdecimal():
        gap = of_guide(rows, "family_gap", "amortized", int(width))
        return f"{'yes' if gap.value <= 1 else 'no'}: family gap {cell('family_gap', gap)}" if gap else "not run"
    raise ValueError(f"{path.name}: expected a kind of claim (steps, step time, mse, test mse, closes k), got {kind!r}")


def _step_ratios(rows: pd.DataFrame, best: int) -> str:
    parts = []
    for within in (3.0, 1.0):
        a = of_guide(rows, "steps_to_target", "amortized", best, within=within)
        f = of_guide(rows, "steps_to_target", "factorized", within=within)
        target = labels.value_label("within", within)
        if a and f:
            parts.append(f"{f.value / a.value:.1f} to within {target} of the reference")
        else:
            parts.append(f"to within {target}: {'F-VI' if a else f'k = {best}'} not reached")
    return f"{', '.join(parts)} (k = {best})"


def _best_width(rows: pd.DataFrame) -> int | None:
    amortized = cast("pd.DataFrame", rows[rows["guide"] == "amortized"])
    widths = labels.order("k", amortized["k"].tolist())
    scores = {k: found.value for k in widths if (found := of_guide(rows, "final_elbo", "amortized", k))}
    return max(scores, key=scores.__getitem__) if scores else None
