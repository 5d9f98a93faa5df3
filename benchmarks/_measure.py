"""What the benchmarks share: timing side by side, tables, and figures as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks run from a clone, installed or not

from amortized_bayes.results import environment

UNTIMED = 2
"""Steps at the start of each block that are not timed: caches are cold after another side's block."""


class Side(NamedTuple):
    """One of the things compared: ``run(n)`` takes n steps and returns when they are done."""

    name: str
    run: Callable[[int], None]
    prepare_seconds: float
    note: str = ""


class Times(NamedTuple):
    """Milliseconds per step of each side, one value per round; values of one round were taken within seconds."""

    milliseconds: dict[str, list[float]]

    def median(self, side: str) -> float:
        """Median over rounds."""
        return statistics.median(self.milliseconds[side])

    def quartiles(self, side: str) -> tuple[float, float]:
        """First and third quartile over rounds."""
        values = self.milliseconds[side]
        if len(values) < 2:
            return values[0], values[0]
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
        return first, third

    def ratio(self, side: str, other: str) -> float:
        """Median over rounds of the ratio within a round, which the machine's moods touch least."""
        return statistics.median(self.ratios(side, other))

    def ratios(self, side: str, other: str) -> list[float]:
        """The ratio within each round."""
        return [a / b for a, b in zip(self.milliseconds[side], self.milliseconds[other], strict=True)]

    def against(self, sides: Iterable[str], others: Iterable[str], what: str = "") -> dict[str, list[float]]:
        """Ratios of sides of this library to other sides, by name, where both are here; for :func:`write_json`."""
        pairs = ((side, other) for side in sides for other in others if {side, other} <= self.milliseconds.keys())
        front = f"{what}: " if what else ""
        return {f"{front}{side} / {other}": self.ratios(side, other) for side, other in pairs if side != other}


def side_by_side(
    sides: Sequence[Side],
    repeats: int,
    block_seconds: float,
    *,
    one_step: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Time blocks of steps in the order A B C A B C ..., ``repeats`` rounds.

    Args:
        sides: what to time, each with a name of its own.
        repeats: rounds.
        block_seconds: aim for blocks of this length.
        one_step: take a single step a block and nothing before it, to see that everything runs.
        clock: seconds, such as those of the wall or of the processor.
    """
    counts = {side.name: 1 if one_step else _steps_in(side, block_seconds) for side in sides}
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            if not one_step:
                side.run(UNTIMED)
            start = clock()
            side.run(counts[side.name])
            times[side.name].append(1000 * (clock() - start) / counts[side.name])
    return Times(times)


def _steps_in(side: Side, seconds: float) -> int:
    side.run(3)
    start = time.perf_counter()
    side.run(3)
    return max(3, round(3 * seconds / (time.perf_counter() - start)))


def use_threads(threads: int) -> int:
    """Let torch, and JAX where it is not yet at work, use so many threads; all cores of this process for 0."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 0:
        raise ValueError(f"expected --threads of 1 or more, or 0 for all cores, got {threads}")
    threads = threads or cores
    torch.set_num_threads(threads)
    os.environ["PJRT_NPROC"] = str(threads)
    return threads


def find_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is a GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def surroundings(threads: int, device: torch.device, packages: Iterable[str] = ()) -> dict[str, Any]:
    """Return what the figures depend on: machine, versions, threads, device, commit."""
    found = environment(threads)
    for package in packages:
        try:
            found["packages"][package] = version(package)
        except PackageNotFoundError:
            found["packages"][package] = None
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    return {**found, "platform": platform.system(), "device": device.type, "gpu": gpu}


def write_json(
    path: Path | None,
    figures: Mapping[str, Any],
    ratios: Mapping[str, Sequence[float]] | None = None,
    *,
    quick: bool = False,
) -> None:
    """Write the figures, if a file was asked for.

    Args:
        path: the file.
        figures: what was measured, and where.
        ratios: the time of a side of this library over that of another side, one number per round: `compare.py` holds
            them against those of another commit.
        quick: whether nothing was timed.
    """
    if path is not None:
        found = {**figures, "quick": quick, "ratios": {name: list(rounds) for name, rounds in (ratios or {}).items()}}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
        print(f"figures written to {path}")


def show_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], console: Console) -> None:
    """Print a table, first column to the left and the others to the right."""
    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def wide_console() -> Console:
    """Return a console that is as wide as the terminal, or as a table where there is none."""
    return Console(width=None if Console().is_terminal else 140)
