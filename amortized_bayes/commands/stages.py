"""Progress of work in stages: a live bar for each with rate and time left, or a plain line every 30 seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from amortized_bayes.commands.progress import PLAIN_EVERY, duration

__all__ = ["StageProgress"]


class StageProgress:
    """Shows how far each of several stages is; a stage is known by its name and restarts where its count falls.

    Args:
        file_is_terminal: whether to draw live bars; found out by default.
    """

    def __init__(self, file_is_terminal: bool | None = None) -> None:
        live = sys.stdout.isatty() if file_is_terminal is None else file_is_terminal
        self.start = self.last_line = time.monotonic()
        self.began: dict[str, tuple[float, int, int]] = {}
        self.tasks: dict[str, TaskID] = {}
        self.progress: Progress | None = None
        if live:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[state]}"),
            )
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self.progress = Progress(*columns, *times, console=Console(file=sys.stdout))

    def __enter__(self) -> Self:
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()

    def __call__(self, stage: str, done: int, total: int, state: str = "") -> None:
        """Take in that ``done`` of ``total`` of a stage is done."""
        if self.progress is not None:
            if stage not in self.tasks:
                self.tasks[stage] = self.progress.add_task(stage, total=total, state=state)
            self.progress.update(self.tasks[stage], completed=done, total=total, state=state)
            return
        now = time.monotonic()
        began, first, last = self.began.get(stage, (now, done, done))
        if done < last:  # it starts again
            began, first = now, done
        self.began[stage] = (began, first, done)
        if now - self.last_line >= PLAIN_EVERY:
            self.last_line = now
            left = (now - began) / max(1, done - first) * (total - done)
            words = f"  {state}" if state else ""
            print(
                f"[{now - self.start:6.0f} s] {stage}: {done:,}/{total:,}{words}  about {duration(left)} left",
                flush=True,
            )

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        if self.progress is not None:
            self.progress.console.print(line, highlight=False)
        else:
            print(line, flush=True)
