"""The lines of ``rows.jsonl`` and ``done.jsonl``: which are rows, which mark a finished job, and which are neither."""

from __future__ import annotations

import hashlib
import io
import json
import math
import operator
import re
import reprlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from amortized_bayes.types import ROW_FIELDS, Factor

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "JOB_STATUSES",
    "Line",
    "check_mark",
    "check_row",
    "good_lines",
    "mark",
    "read_lines",
    "rows_checksums",
    "to_frame",
]

_STATUSES = ("ok", "vacuous", "failed")
JOB_STATUSES = ("ok", "failed")
"""How a job ends; a failed one counts as done, and its files are not expected."""
_LINE = (*ROW_FIELDS, "job")
"""What a line of ``rows.jsonl`` holds: a row, and the key of the job that it belongs to."""
_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


def check_row(line: dict[str, Any]) -> dict[str, Any]:
    """Check a line of ``rows.jsonl``. Scalars of numpy and torch become numbers. Raises ``ValueError``."""
    if line.keys() != set(_LINE):
        older = "; it was written by an older version" if "fit" in line else ""
        raise ValueError(f"row: expected {', '.join(_LINE)}, got {', '.join(map(str, line))}{older}")
    checked = dict(line)
    for field, value in line.items():
        if value is None and field in ("value", "standard_error", "error_over"):
            continue
        if field == "factors":
            checked[field] = _checked_factors(value)
        elif field in ("step", "seconds", "value", "standard_error"):
            checked[field] = _number(field, value)
        elif not isinstance(value, str):
            raise ValueError(f"row: expected a text as {field}, got {value!r}")
    if line["status"] not in _STATUSES:
        raise ValueError(f"row: expected a status among {', '.join(_STATUSES)}, got {line['status']!r}")
    return checked


def _checked_factors(factors: Any) -> dict[str, Factor]:
    """Factors with names that can be columns, and with texts, booleans and finite numbers as values."""
    if not isinstance(factors, Mapping):
        raise ValueError(f"row: expected factors as a mapping, got {reprlib.repr(factors)}")
    checked: dict[str, Factor] = {}
    for name, value in factors.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in ROW_FIELDS:
            raise ValueError(f"row: expected factors named like columns that are free, got {name!r}")
        if isinstance(value, str | bool):
            checked[name] = value
        else:
            whole = _is_whole(value)
            checked[name] = _number(name, value, whole=whole)
    return checked


def _is_whole(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _number(field: str, value: Any, whole: bool | None = None) -> int | float:
    whole = field == "step" if whole is None else whole
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


def check_mark(line: dict[str, Any]) -> dict[str, Any]:
    """Check a line of ``done.jsonl``: see :func:`mark`. Raises ``ValueError``.

    Marks of runs that an older version finished have no checksums: ``FINISHED`` covers them.
    """
    kinds = {"job": str, "status": str, "rows": int, "files": dict}
    sealed = {"rows_sha256": str, "sha256": str}
    expected = kinds | sealed if sealed.keys() & line.keys() else kinds
    good = line.keys() == expected.keys() and all(isinstance(line[name], kind) for name, kind in expected.items())
    if not good or not line["job"] or line["status"] not in JOB_STATUSES:
        raise ValueError(
            f"expected the key of a job, {' or '.join(JOB_STATUSES)}, rows and files, got {reprlib.repr(line)}"
        )
    if expected is not kinds and line["sha256"] != _checksum(line):
        raise ValueError("changed since it was written")
    return line


def mark(job: str, status: str, rows: int, files: Mapping[str, str], rows_sha256: str) -> dict[str, Any]:
    """Return a line of ``done.jsonl``.

    Args:
        job: its key.
        status: how it ended.
        rows: how many it has.
        files: checksums of the files that it left.
        rows_sha256: the checksum of its rows, line by line.

    Raises:
        ValueError: no key, or an unknown status.
    """
    line = {"job": job, "status": status, "rows": rows, "files": dict(files), "rows_sha256": rows_sha256}
    return check_mark(line | {"sha256": _checksum(line)})


def _checksum(line: Mapping[str, Any]) -> str:
    """The checksum of a mark, computed without the checksum in it."""
    plain = {name: value for name, value in line.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def to_frame(lines: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return checked lines of ``rows.jsonl`` as a frame: the columns of a row, with a column for each factor.

    Factors of whole numbers are ``Int64``, of truth values ``boolean``, of other numbers ``float64``, of texts
    ``object``; a factor that a row does not have is missing there.
    """
    import pandas as pd

    lines = list(lines)
    names = list(dict.fromkeys(name for line in lines for name in line["factors"]))
    columns: dict[str, Any] = {"experiment": pd.Series([line["experiment"] for line in lines], dtype=object)}
    for name in names:
        columns[name] = _column([line["factors"].get(name) for line in lines])
    for field in ROW_FIELDS[2:]:
        columns[field] = pd.Series([line[field] for line in lines], dtype=_DTYPES.get(field, "object"))
    return pd.DataFrame(columns)


_DTYPES: dict[str, Any] = {"step": "int64", "seconds": "float64", "value": "float64", "standard_error": "float64"}


def _column(values: list[Any]) -> pd.Series:
    """A column of one factor, of the narrowest type that holds all its values."""
    import pandas as pd

    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean")
    if kinds == {int}:
        return pd.Series(values, dtype="Int64")
    if kinds <= {int, float}:
        return pd.Series(values, dtype="float64")
    return pd.Series([None if v is None else str(v) if kinds != {str} else v for v in values], dtype=object)


class Line(NamedTuple):
    """A line of a file: its bytes, without the newline, and the object that it holds."""

    data: bytes
    content: dict[str, Any]


Check = Callable[[dict[str, Any]], dict[str, Any]]


def read_lines(data: bytes, file: Path, check: Check, job: str | None = None) -> Iterator[Line | ValueError]:
    """Yield the lines of a file, or errors in place of wrong lines. An incomplete last line is left out.

    With the key of a ``job`` its own lines alone are read. All lines of a long run are many, and each would be there
    as objects that take ten times its bytes, again and again while its jobs read each other's rows.
    """
    named = b"" if job is None else json.dumps({"job": job})[1:-1].encode()
    for number, ended in enumerate(io.BytesIO(data), start=1):
        line = ended.removesuffix(b"\n")
        if line == ended or named not in line:
            continue
        try:
            decoded = json.loads(line, parse_constant=float)
            found = Line(line, check(decoded if isinstance(decoded, dict) else {"": decoded}))
            if job is None or found.content["job"] == job:
                yield found
        except (ValueError, RecursionError) as error:
            yield ValueError(f"{file} line {number}: {error}")


def good_lines(data: bytes, file: Path, check: Check, job: str | None = None) -> list[Line]:
    """Return the lines of a file, or those of one ``job``. Raises ``ValueError`` for the first that is wrong."""
    good = []
    for line in read_lines(data, file, check, job):
        if isinstance(line, ValueError):
            raise line
        good.append(line)
    return good


def rows_checksums(lines: Iterable[Line]) -> dict[str, str]:
    """Return the checksum of the rows of each job, from lines of ``rows.jsonl``."""
    running: defaultdict[str, Any] = defaultdict(hashlib.sha256)
    for line in lines:
        running[line.content["job"]].update(line.data + b"\n")
    return {job: sha256.hexdigest() for job, sha256 in running.items()}
