"""Progress of a whole run: a live bar on a terminal, or else a plain line every 30 seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

__all__ = ["Progress", "counted", "duration"]

PLAIN_EVERY = 30.0
"""Seconds between lines where the output is no terminal."""


class Progress:
    """Shows how far a run is.

    Args:
        terminal: whether to draw a live bar; found out by default.
    """

    def __init__(self, terminal: bool | None = None) -> None:
        self.start = self.last_line = time.monotonic()
        self.bar: Bar | None = None
        self.task: TaskID | None = None
        if sys.stdout.isatty() if terminal is None else terminal:
            columns = (SpinnerColumn(), BarColumn(20), TextColumn("{task.description}", markup=False))
            self.bar = Bar(*columns, TimeElapsedColumn(), console=Console(file=sys.stdout, markup=False))

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("starting", total=1.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(
        self, fraction: float, seconds_left: float | None, job: str, stage: str, done: int, total: int, state: str = ""
    ) -> None:
        """Show how far the run is.

        Args:
            fraction: of the whole run, from 0 to 1.
            seconds_left: until its end, ``None`` where that is not known yet.
            job: what is running.
            stage: the part of it.
            done: how much of that.
            total: all of it.
            state: the last ELBO, say.
        """
        left = "" if seconds_left is None or fraction >= 1 else f", {duration(seconds_left)} left"
        line = "  ".join(filter(None, (f"{min(fraction, 1.0):.0%}{left}", job, f"{stage} {done:,}/{total:,}", state)))
        now = time.monotonic()
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, description=line, completed=fraction)
        elif now - self.last_line >= PLAIN_EVERY:
            self.last_line = now
            print(f"[{now - self.start:6.0f} s] {line}", flush=True)

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)


def counted(number: int, what: str) -> str:
    """``"1 job"``, ``"3 jobs"``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds in words: ``"40 s"``, ``"12 min"``, ``"3.5 h"``, ``"2.1 days"``; a second at least."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
