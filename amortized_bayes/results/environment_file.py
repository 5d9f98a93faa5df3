"""``environment.json``: the environment in which a run was started. It is read as untrusted input."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

__all__ = ["parse_environment"]

MOST_THREADS = 4096


def parse_environment(data: bytes, path: Path) -> dict[str, Any]:
    """Return what the bytes of ``environment.json`` say; ``path`` is named in errors.

    What it must hold where it is there: texts, numbers of threads, and checksums of data sets by file. Other keys are
    free.

    Raises:
        ValueError: no mapping in JSON, or a value that is none of its kind.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} cannot be read: expected a mapping, got {type(content).__name__}")
    for key, (is_good, expected) in _KINDS.items():
        if key in content and not is_good(content[key]):
            raise ValueError(f"{path}: expected {expected} as {key}, got {reprlib.repr(content[key])}")
    return content


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_time(value: Any) -> bool:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and 1 <= value <= MOST_THREADS)


def _is_commit(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping) and _is_text(value.get("commit", "")) and type(value.get("dirty", False)) is bool
    )


def _are_sums(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(sums, Mapping) and all(map(_is_text, sums.values())) for sums in value.values()
    )


_TEXT = (_is_text, "a text")
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "started": (_is_time, "a time"),
    **dict.fromkeys(("python", "platform", "device", "preset", "command", "note", "settings", "part_of"), _TEXT),
    "threads": (_is_count, f"a number from 1 to {MOST_THREADS}"),
    "jobs": (_is_count, f"a number from 1 to {MOST_THREADS}"),
    "git": (_is_commit, "a commit"),
    "packages": (lambda value: isinstance(value, Mapping), "versions by package"),
    "data": (_are_sums, "checksums by file, of each data set"),
}
