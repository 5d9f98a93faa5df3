"""Which rows a cell of a table or a mark of a figure rests on, and their mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from amortized_bayes import labels
from amortized_bayes.types import ROW_FIELDS

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Found",
    "difference",
    "factor_names",
    "factors_of",
    "fate",
    "groups",
    "guides",
    "is_positive",
    "matching",
    "mean",
    "num_seeds",
    "shared",
    "where",
]

SAME_JOB = ("seed", "label", "share", "epochs", "searched", "split")
"""Factors that do not tell the fit or model of a line from another."""


class Found(NamedTuple):
    """A mean over seeds.

    Args:
        value: nan where some seed never reached what was measured: a mean over the others would be too good.
        error: over seeds where there are several, else the row's own; nan where there is none.
        factors: factors of the rows, but for the seed.
        note: what the mean must not be shown without: that seeds are missing, or why there is no value.
        seeds: how many the error is over; 1 where it is over points.
    """

    value: float
    error: float
    factors: Mapping[str, Any]
    note: str = ""
    seeds: int = 1

    @property
    def reach(self) -> float:
        """How far the 95% interval reaches to either side: Student's t of a few seeds, two errors over many points.

        Example:
            >>> [round(Found(0.0, 1.0, {}, seeds=seeds).reach, 1) for seeds in (1, 2, 3, 10)]
            [2.0, 12.7, 4.3, 2.3]
        """
        return self.error * (2.0 if self.seeds == 1 else _student(self.seeds - 1))


def difference(one: Found, other: Found) -> Found:
    """Of two numbers that nothing pairs, with an error over the fewer seeds."""
    error = math.hypot(one.error, other.error)
    return Found(one.value - other.value, error, {}, seeds=min(one.seeds, other.seeds))


def is_positive(found: Found) -> bool | None:
    """Whether a number is above zero; ``None`` where its interval holds zero, or it has none.

    Example:
        >>> is_positive(Found(3.0, 1.0, {})), is_positive(Found(3.0, 1.0, {}, seeds=3))
        (True, None)
    """
    return True if found.value > found.reach else False if found.value < -found.reach else None


def factor_names(rows: pd.DataFrame) -> list[str]:
    """Columns that are factors."""
    return [str(name) for name in rows.columns if name not in ROW_FIELDS]


def where(rows: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.DataFrame:
    """The rows whose factors have the wanted values: one, one of several, or none at all (``None``)."""
    return cast("pd.DataFrame", rows[matching(rows, wanted)])


def matching(rows: pd.DataFrame, wanted: Mapping[str, Any]) -> np.ndarray:
    """Which rows :func:`where` gives, ``(len(rows),)``; one column of them costs far less than all their columns."""
    found = np.ones(len(rows), dtype=bool)
    for name, value in wanted.items():
        if name not in rows.columns:
            found &= value is None
        elif value is None:
            found &= rows[name].isna().to_numpy()
        else:
            found &= rows[name].isin(list(value) if isinstance(value, tuple) else [value]).to_numpy()
    return found


def groups(rows: pd.DataFrame, names: Iterable[str]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Rows by the values that some factors have, as people read them; rows with none of the factors are left out."""
    names = list(names)
    known = [name for name in names if name in rows.columns]
    if not known:
        return [] if names else [({}, rows)]
    found = dict.fromkeys(zip(*(_values(rows, name) for name in known), strict=True))
    ranks = {name: labels.order(name, (key[place] for key in found)) for place, name in enumerate(known)}

    def rank(key: tuple[Any, ...]) -> list[int]:
        return [-1 if v is None else ranks[n].index(v) for n, v in zip(known, key, strict=True)]

    lines = []
    for key in sorted((k for k in found if any(v is not None for v in k)), key=rank):
        wanted = dict(zip(known, key, strict=True))
        lines.append(({**dict.fromkeys(names), **wanted}, where(rows, wanted)))
    return lines


def guides(rows: pd.DataFrame) -> list[tuple[str, int | None]]:
    """Guides and widths, as people read them."""
    keys = [key for key, _ in groups(rows, ("guide", "k")) if key["guide"] not in (None, "reference")]
    return [(str(key["guide"]), None if labels.is_missing(key["k"]) else int(key["k"])) for key in keys]


def num_seeds(rows: pd.DataFrame) -> int:
    """How many seeds there are, one at least."""
    return max(1, rows["seed"].nunique()) if "seed" in rows.columns else 1


def factors_of(rows: pd.DataFrame) -> dict[str, Any]:
    """Factors that all rows share."""
    found: dict[str, Any] = {}
    for name in factor_names(rows):
        values = set(_values(rows, name))
        if len(values) == 1 and None not in values:
            found[name] = values.pop()
    return found


def shared(rows: pd.DataFrame) -> dict[str, str]:
    """Names of the values that factors have, for titles: of all rows that have the factor."""
    found = {name: labels.order(name, _values(rows, name)) for name in factor_names(rows)}
    return {name: ", ".join(labels.value_label(name, value) for value in values) for name, values in found.items()}


def mean(rows: pd.DataFrame, metric: str, wanted: Mapping[str, Any] | None = None, seeds: int = 1) -> Found | None:
    """The mean over seeds of a metric; ``None`` where no row has it.

    Of rows that differ in a factor that is not asked for, those without it are meant.

    Args:
        rows: final rows of one line.
        metric: its name.
        wanted: factors, as of :func:`where`.
        seeds: how many there are in all.

    Raises:
        ValueError: rows that differ in a factor besides the seed, over which no mean is taken.
    """
    rows = where(cast("pd.DataFrame", rows[rows["metric"] == metric]), wanted or {})
    for name in factor_names(rows):
        missing = rows[name].isna()
        if name in (wanted or {}) or not len(rows) or missing.all():
            continue
        if missing.any():
            rows = cast("pd.DataFrame", rows[missing])
        elif name != "seed" and len(set(_values(rows, name))) > 1:
            values = ", ".join(map(str, labels.order(name, _values(rows, name))))
            raise ValueError(f"expected {metric} of one {name}, got {values}: name it in rows, columns or where")
    if not len(rows):
        return None
    values, errors = (rows[column].astype(float) for column in ("value", "standard_error"))
    factors = {name: value for name, value in factors_of(rows).items() if name != "seed"}
    if values.isna().any():
        notes = set(rows.loc[values.isna(), "note"].fillna(""))
        return Found(math.nan, math.nan, factors, notes.pop() if len(notes) == 1 else "")
    if seeds > 1:
        note = f"{len(values)} of {seeds} seeds" if len(values) < seeds else ""
        return Found(float(values.mean()), float(values.std()) / math.sqrt(len(values)), factors, note, len(values))
    if len(values) > 1:
        raise ValueError(f"expected one {metric}, got {len(values)}, of {factors}")
    return Found(float(values.iloc[0]), float(errors.iloc[0]), factors)


def fate(rows: pd.DataFrame, seeds: int = 1) -> str:
    """What became of the fits of a line: empty, ``"vacuous"``, ``"failed"``, ``"1 of 3 failed"``, or several.

    Whether one was vacuous with a smaller budget is left out.
    """
    rows, found = where(rows, {"epochs": None}), []
    for status in ("failed", "vacuous"):
        those = cast("pd.DataFrame", rows[rows["status"] == status])
        count = those["seed"].nunique() if "seed" in those.columns and len(those) else int(len(those) > 0)
        if count:
            found.append(status if count >= seeds else f"{count} of {seeds} {status}")
    return ", ".join(found)


@cache
def _student(freedom: int) -> float:
    from scipy.stats import t  # slow to load, and few commands ask

    return float(t.ppf(0.975, freedom))


def _values(rows: pd.DataFrame, name: str) -> list[Any]:
    return [None if labels.is_missing(value) else value for value in rows[name].tolist()]
