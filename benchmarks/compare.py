"""Whether a commit is slower: the figures that a benchmark wrote now, beside those that are kept.

    python benchmarks/step.py --threads 1 --json new.json
    python benchmarks/compare.py results/benchmarks/step.json new.json

What is compared are ratios, each the time of one of this library's sides over that of another side, round by round, as
sides take turns: they depend on the day far less than milliseconds do. A ratio is *slower* where its median has grown
by more than ``--tolerance`` and its rounds lie apart from the kept ones: its first quartile above their third. Of fewer
than four rounds all must lie above, by a quarter or more. Prints a line per ratio; exits with 1 where one is slower,
and with 2 where the files cannot be compared.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

FEW, OF_FEW = 4, 0.25
"""Rounds below which quartiles say little, and the least change that counts then."""
SAME = ("threads", "device", "gpu")
"""What must be the same on both sides."""
TOLD = ("processor", "packages", "python")
"""What is told where it is not."""


@dataclass(frozen=True)
class Flags:
    """Compare the figures of a benchmark with those that are kept; exits with 1 where a ratio is slower.

    Args:
        kept: JSON of the benchmark in results/benchmarks.
        new: JSON of the same benchmark, run now.
        tolerance: Share by which a ratio may grow: what one day differs from another.
    """

    kept: Annotated[Path, tyro.conf.Positional]
    new: Annotated[Path, tyro.conf.Positional]
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"expected --tolerance of 0 or more, got {self.tolerance}")


class Figures(NamedTuple):
    """What a benchmark measured, round by round, and where."""

    ratios: dict[str, list[float]]
    clock: str
    environment: dict[str, Any]


def read_figures(path: Path) -> Figures:
    """Read what a benchmark wrote.

    Raises:
        ValueError: it is no such file, nothing was timed, or there are no ratios in it.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    ratios, environment = (content.get(k) if isinstance(content, dict) else None for k in ("ratios", "environment"))
    if not isinstance(ratios, dict) or not isinstance(environment, dict):
        raise ValueError(f"{path}: expected what --json of a benchmark writes")
    if content.get("quick"):
        raise ValueError(f"{path}: expected times, got those of --quick, which mean nothing")
    for name, rounds in ratios.items():
        good = isinstance(rounds, list) and all(type(r) in (int, float) and 0 < r < math.inf for r in rounds)
        if not good or not rounds:
            raise ValueError(f"{path}: expected positive numbers as rounds of {name!r}")
    if not ratios:
        raise ValueError(f"{path}: this benchmark has no ratios of one side to another")
    return Figures(ratios, str(content.get("clock", "wall")), environment)


def differences(kept: Figures, new: Figures) -> list[str]:
    """Say what differs between the machines.

    Raises:
        ValueError: something without which times are not of the same thing.
    """
    for name, old, now in [
        ("clock", kept.clock, new.clock),
        *((n, kept.environment.get(n), new.environment.get(n)) for n in SAME),
    ]:
        if old != now:
            raise ValueError(f"expected figures of {name} {old}, as they are kept, got {name} {now}")
    flat = [_flat({name: figures.environment.get(name) for name in TOLD}) for figures in (kept, new)]
    names = list(dict.fromkeys([*flat[0], *flat[1]]))
    return [f"{n}: {flat[0].get(n)}, now {flat[1].get(n)}" for n in names if flat[0].get(n) != flat[1].get(n)]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def verdict(kept: Sequence[float], new: Sequence[float], tolerance: float) -> str:
    """Return ``"slower"``, ``"faster"`` or ``"as before"`` for the rounds of a ratio, in which less is better."""
    most = 1 + (tolerance if min(len(kept), len(new)) >= FEW else max(tolerance, OF_FEW))
    if _is_above(new, kept, most):
        return "slower"
    return "faster" if _is_above(kept, new, most) else "as before"


def _is_above(high: Sequence[float], low: Sequence[float], most: float) -> bool:
    grown = statistics.median(high) / statistics.median(low)
    return grown > most and _quartiles(high)[0] > _quartiles(low)[1]


def _quartiles(rounds: Sequence[float]) -> tuple[float, float]:
    if len(rounds) < FEW:
        return min(rounds), max(rounds)
    first, _, third = statistics.quantiles(rounds, n=4, method="inclusive")
    return first, third


def main(flags: Flags) -> bool:
    """Print a line per ratio; return whether one is slower.

    Raises:
        ValueError: the files cannot be compared.
    """
    kept, new = read_figures(flags.kept), read_figures(flags.new)
    for line in differences(kept, new):
        print(f"differs: {line}")
    both = [name for name in kept.ratios if name in new.ratios]
    if not both:
        raise ValueError(f"{flags.new}: expected ratios such as {next(iter(kept.ratios))!r}, got none of {flags.kept}")
    found: dict[str, int] = {"slower": 0, "faster": 0, "as before": 0}
    for name in both:
        word = verdict(kept.ratios[name], new.ratios[name], flags.tolerance)
        old, now = (statistics.median(figures.ratios[name]) for figures in (kept, new))
        found[word] += 1
        print(f"{name}: {old:.3g}, now {now:.3g} ({now / old - 1:+.0%}), {word}")
    for name in kept.ratios.keys() - new.ratios.keys():
        print(f"{name}: not measured now")
    print(", ".join(f"{number} {word}" for word, number in found.items()))
    return found["slower"] > 0


if __name__ == "__main__":
    try:
        sys.exit(int(main(tyro.cli(Flags, description=__doc__))))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
