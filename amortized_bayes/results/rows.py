"""The lines of ``rows.jsonl`` and ``done.jsonl``: what is a row, what marks a fit, which lines are neither."""

from __future__ import annotations

import json
import math
import operator
import reprlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amortized_bayes.types import ROW_FIELDS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["bad_lines", "check_fit", "check_row", "good_lines", "read_lines", "to_frame"]

_STATUSES = ("ok", "vacuous", "failed")
_LINE = (*ROW_FIELDS, "fit")
"""What a line of ``rows.jsonl`` holds: a row, and the key of the fit that it belongs to."""


def check_row(line: dict[str, Any]) -> dict[str, Any]:
    """Check a line of ``rows.jsonl``. Scalars of numpy and torch become numbers. Raises ``ValueError``."""
    if line.keys() != set(_LINE):
        raise ValueError(f"row: expected {', '.join(_LINE)}, got {', '.join(map(str, line))}")
    checked = dict(line)
    for field, value in line.items():
        if value is None and field in ("k", "value", "standard_error", "error_over"):
            continue
        if field in ("k", "seed", "step", "seconds", "value", "standard_error"):
            checked[field] = _number(field, value)
        elif not isinstance(value, str):
            raise ValueError(f"row: expected a text as {field}, got {value!r}")
    if line["status"] not in _STATUSES:
        raise ValueError(f"row: expected a status among {', '.join(_STATUSES)}, got {line['status']!r}")
    return checked


def _number(field: str, value: Any) -> int | float:
    whole = field in ("k", "seed", "step")
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        number = operator.index(value) if whole else float(value)
        if -(2**63) <= number < 2**63 if whole else math.isfinite(number):
            return number
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a torch tensor of several numbers
        pass
    expected = "an integer of 64 bits" if whole else "a finite number (a failure is a row of status 'failed')"
    raise ValueError(f"row: expected {expected} as {field}, got {reprlib.repr(value)}")


def check_fit(line: dict[str, Any]) -> dict[str, Any]:
    """Check a line of ``done.jsonl``. Raises ``ValueError``."""
    if line.keys() != {"fit"} or not isinstance(line["fit"], str) or not line["fit"]:
        raise ValueError(f"expected the key of a fit, a text that is not empty, got {reprlib.repr(line.get('fit'))}")
    return line


def to_frame(lines: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return checked lines of ``rows.jsonl`` as a frame with the columns ``ROW_FIELDS`` and the types of each."""
    import pandas as pd

    lines = list(lines)
    frame = pd.DataFrame({field: [line[field] for line in lines] for field in ROW_FIELDS})
    numbers = dict.fromkeys(("seconds", "value", "standard_error"), "float64")
    return frame.astype({"k": "Int64", "seed": "int64", "step": "int64", **numbers})


def read_lines(path: Path, check: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[dict[str, Any] | ValueError]:
    """Yield the objects of a file of lines, or in their place what is wrong with them. A torn last line is left out."""
    try:
        data = path.read_bytes()
    except OSError as error:
        yield ValueError(f"{path} cannot be read: {error.strerror}")
        return
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            decoded = json.loads(line, parse_constant=float)
            yield check(decoded if isinstance(decoded, dict) else {"": decoded})
        except (ValueError, RecursionError) as error:
            yield ValueError(f"{path} line {number}: {error}")


def bad_lines(path: Path, check: Callable[[dict[str, Any]], dict[str, Any]]) -> list[str]:
    """Return what is wrong with a file of lines, one text each, a torn last line with them."""
    if not path.is_file():
        return []  # said already
    errors = [f"{line}" for line in read_lines(path, check) if isinstance(line, ValueError)]
    bad = [error.removeprefix(f"{path.parent}/") for error in errors]
    data = path.read_bytes()
    return bad if data.endswith(b"\n") or not data else [*bad, f"{path.name}: the last line is torn"]


def good_lines(path: Path, check: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the objects of a file of lines. Raises ``ValueError`` for the first that is wrong."""
    good = []
    for line in read_lines(path, check):
        if isinstance(line, ValueError):
            raise line
        good.append(line)
    return good
