"""What differs between the machine, programs and data that a run was started with and those that it is resumed with.

Results are the same bit for bit only where nothing of this differs. Threads are not compared: their number belongs to
the run, and is used again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from amortized_bayes.results.versions import NUMERICS

__all__ = ["differences"]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A text for each difference between two ``environment.json``; what one of them does not know is no difference.

    Example:
        >>> differences({"python": "3.11.2", "packages": {"torch": "2.12.0"}}, {"packages": {"torch": "2.13.0"}})
        ['torch 2.12.0 -> 2.13.0']
    """
    return [f"{name} {old} -> {new}" for name, old, new in _pairs(before, now) if None not in (old, new) and old != new]


def _pairs(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """A name, and what it stands for then and now."""
    for name in ("python", "processor", "device"):
        yield name, before.get(name), now.get(name)
    packages = [_mapping(about, "packages") for about in (before, now)]
    for name in NUMERICS:
        yield name, packages[0].get(name), packages[1].get(name)
    commits = [_commit(_mapping(about, "git")) for about in (before, now)]
    yield "commit", commits[0], commits[1]
    data = [_mapping(about, "data") for about in (before, now)]
    for name in data[0]:
        sums = [_mapping(each, name) for each in data]
        for file in sorted({*sums[0], *sums[1]}):
            yield f"{name}/{file}", str(sums[0].get(file, "none"))[:10], str(sums[1].get(file, "none"))[:10]


def _commit(git: Mapping[str, Any]) -> str | None:
    changes = " with changes" if git.get("dirty") else ""
    return f"{str(git['commit'])[:10]}{changes}" if git.get("commit") else None


def _mapping(about: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = about.get(name)
    return value if isinstance(value, Mapping) else {}
