"""Published numbers as rows with the same factors as ours, joined on all of them: MNIST's cannot appear beside digits'.

A file of the folder ``published`` has a column for each factor, empty where a number does not depend on it, and
``metric``, ``value``, ``source`` and ``note``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from amortized_bayes.labels import FACTORS, METRICS, is_missing

__all__ = ["FOLDER", "Published", "find", "read_published", "sources"]

FOLDER = Path(__file__).parent / "published"
OTHERS = ("metric", "value", "source", "note")


class Published(NamedTuple):
    """A published number."""

    factors: Mapping[str, str]
    metric: str
    value: float
    source: str
    note: str = ""


def read_published(name: str, folder: Path = FOLDER) -> list[Published]:
    """The numbers of ``<name>.csv``.

    Raises:
        ValueError: a column that is no factor of ours, a metric that no experiment measures, or a value that is no
            number; the file and the column are named.
    """
    path = folder / f"{name}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        missing = [column for column in OTHERS if column not in columns]
        strangers = [column for column in columns if column not in (*FACTORS, *OTHERS)]
        if missing or strangers:
            wrong = f"no column {missing[0]!r}" if missing else f"the column {strangers[0]!r}, which is no factor"
            raise ValueError(f"{path.name}: expected metric, value, source, note and known factors, got {wrong}")
        return [_number(path, line, row) for line, row in enumerate(reader, start=2)]


def find(numbers: list[Published], metric: str, factors: Mapping[str, Any]) -> Published | None:
    """The published number of a metric with exactly these factors, the seed aside."""
    wanted = {name: _text(v) for name, v in factors.items() if name != "seed" and not is_missing(v)}
    return next((n for n in numbers if n.metric == metric and n.factors == wanted), None)


def sources(numbers: list[Published]) -> Iterator[str]:
    """The sources of numbers, each once, with its notes."""
    for source in dict.fromkeys(n.source for n in numbers):
        notes = dict.fromkeys(n.note for n in numbers if n.source == source and n.note)
        yield "; ".join([source, *notes])


def _number(path: Path, line: int, row: Mapping[str, str]) -> Published:
    if row["metric"] not in METRICS:
        raise ValueError(f"{path.name} line {line}: expected a known metric in column 'metric', got {row['metric']!r}")
    try:
        value = float(row["value"])
    except (TypeError, ValueError):
        raise ValueError(
            f"{path.name} line {line}: expected a number in column 'value', got {row['value']!r}"
        ) from None
    factors = {name: row[name] for name in row if name not in OTHERS and row[name]}
    return Published(factors, row["metric"], value, row["source"], row["note"] or "")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
