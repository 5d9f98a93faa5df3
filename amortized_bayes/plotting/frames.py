"""From the tidy rows of a run to what one figure needs: one metric, grouped by guide, with the fate of each fit.

A fit is one (experiment, dataset, guide, k, seed). It *failed* if any of its rows says so, and it is *vacuous*
if its last rows do (every fit starts with latents that carry nothing).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import pandas as pd

from amortized_bayes.labels import guide_label, is_missing, order

__all__ = ["Group", "by_guide", "failures", "notes", "remarks", "select", "tidy", "where", "widths"]

FIT = ("experiment", "dataset", "guide", "k", "seed")
NEEDED = ("dataset", "guide", "seed", "step", "seconds", "metric", "value", "standard_error", "status", "note")
FATES = ("ok", "vacuous", "failed")


class Group(NamedTuple):
    """The rows of one guide whose fits met the same ``fate`` (``"ok"``, ``"vacuous"`` or ``"failed"``)."""

    guide: str
    k: int | None
    fate: str
    rows: pd.DataFrame

    @property
    def label(self) -> str:
        """Name of the guide, with its fate where that is not ``"ok"``."""
        name = guide_label(self.guide, self.k)
        return name if self.fate == "ok" else f"{name} ({self.fate})"

    @property
    def num_seeds(self) -> int:
        """Number of fits in the group."""
        return len(set(self.rows["seed"]))


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a copy with numeric columns, nullable ``k`` and a column ``fate``: what became of each row's fit."""
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise ValueError(f"expected rows of fits, these columns are missing: {', '.join(missing)}")
    rows = frame.reset_index(drop=True).copy()
    rows["k"] = pd.Series(rows["k"] if "k" in rows.columns else None, index=rows.index, dtype="Int64")
    for name in ("step", "seconds", "value", "standard_error"):
        rows[name] = pd.Series(rows[name], dtype="float64")
    rows["note"] = rows["note"].fillna("").astype(str)
    rows["fate"] = _fates(rows)
    return rows


def select(
    rows: pd.DataFrame, metrics: str | Sequence[str], dataset: str | None = None, curve: bool = False
) -> pd.DataFrame:
    """Return the rows of one or more metrics, of one data set if given; ``ValueError`` where there are none.

    A fit has one row of a metric, or one per step if ``curve``. More are refused: no figure may average over them.
    """
    wanted = [metrics] if isinstance(metrics, str) else list(metrics)
    if dataset is not None:
        if dataset not in set(rows["dataset"]):
            raise ValueError(f"no rows of data set {dataset!r}; there are: {_names(rows['dataset'])}")
        rows = where(rows, rows["dataset"] == dataset)
    place = "" if dataset is None else f" for data set {dataset!r}"
    for metric in wanted:
        if metric not in set(rows["metric"]):
            raise ValueError(f"no rows of metric {metric!r}{place}; there are: {_names(rows['metric'])}")
    chosen = where(rows, rows["metric"].isin(wanted))
    key: Any = ["dataset", "guide", "k", "seed", "metric", *(["step"] if curve else [])]
    key += [name for name in ("share",) if name in chosen.columns]
    twice = where(chosen, chosen.duplicated(key))
    if len(twice):
        first = twice.iloc[0]
        fit = f"{guide_label(first['guide'], _width(first['k']))}, seed {first['seed']}, step {first['step']:g}"
        raise ValueError(f"more than one {first['metric']!r} row for {fit}: choose one experiment first")
    return chosen


def by_guide(rows: pd.DataFrame) -> Iterator[Group]:
    """Yield the rows guide by guide, as tables name them, amortized ones by rising width, ``ok`` first."""
    keys = dict.fromkeys(zip(rows["guide"], map(_width, rows["k"]), rows["fate"], strict=True))
    places = order("guide", rows["guide"])
    for guide, k, fate in sorted(keys, key=lambda key: (places.index(key[0]), key[1] or 0, FATES.index(key[2]))):
        same_k = rows["k"].isna() if k is None else (rows["k"] == k).fillna(False).astype(bool)
        yield Group(guide, k, fate, where(rows, (rows["guide"] == guide) & (rows["fate"] == fate) & same_k))


def widths(rows: pd.DataFrame) -> tuple[int, ...]:
    """Return all encoder widths, rising."""
    return tuple(sorted(int(k) for k in rows["k"].dropna().unique()))


def failures(rows: pd.DataFrame, dataset: str | None = None) -> list[str]:
    """Return one phrase per failed fit: ``"A-VI, k = 256, seed 1 at step 1200 (loss is not finite)"``."""
    failed = where(rows, (rows["status"] == "failed") & ((dataset is None) | (rows["dataset"] == dataset)))
    phrases = []
    for group in by_guide(failed.assign(fate="ok")):
        for row in group.rows.drop_duplicates("seed", keep="last").to_dict("records"):
            reason = f" ({row['note']})" if row["note"] else ""
            phrases.append(f"{group.label}, seed {row['seed']} at step {row['step']:.0f}{reason}")
    return phrases


def notes(rows: pd.DataFrame) -> list[str]:
    """Return what rows say of themselves, each phrase once; those of failed fits are left to ``failures``."""
    found = rows.loc[rows["status"] != "failed", "note"]
    return list(dict.fromkeys(phrase for note in found for phrase in note.split("; ") if phrase))


def remarks(chosen: pd.DataFrame, rows: pd.DataFrame, dataset: str) -> list[str]:
    """Return lines to be written under a figure: notes of the rows it shows, and which fits of the data set failed."""
    failed = failures(rows, dataset)
    return [*notes(chosen), *([f"failed: {'; '.join(failed)}"] if failed else [])]


def where(rows: pd.DataFrame, mask: Any) -> pd.DataFrame:
    """Return the rows where ``mask`` holds."""
    return cast("pd.DataFrame", rows[mask])


def _fates(rows: pd.DataFrame) -> pd.Series:
    keys = [rows[name].fillna(-1) if name == "k" else rows[name] for name in FIT if name in rows.columns]
    failed = (rows["status"] == "failed").groupby(keys).transform("any")
    of_metric = [*keys, rows["metric"]]
    last = rows["step"] == rows["step"].groupby(of_metric).transform("max")
    vacuous = ((rows["status"] == "vacuous") & last).groupby(keys).transform("any")
    fate = pd.Series("ok", index=rows.index)
    return fate.mask(vacuous, "vacuous").mask(failed, "failed")


def _width(k: Any) -> int | None:
    return None if is_missing(k) else int(k)


def _names(column: Any) -> str:
    return ", ".join(sorted(map(str, set(column)))) or "none"
