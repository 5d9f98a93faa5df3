"""Progress of a run: a live bar on a terminal, a line that moves in a notebook, elsewhere a plain line every 30 s."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from amortized_bayes.terminal import plain

__all__ = ["Forecast", "Progress", "Told", "Watch", "counted", "duration", "watched"]

Watch = Callable[[str, int, int], None]
"""Called with the name of a stage, what is done of it, and all of it."""

PLAIN_EVERY = 30.0
"""Seconds between lines where the output is no terminal."""
MEASURED_FOR, WORTH_SAYING = 1.0, 60.0
"""Seconds of work that a forecast rests on, and above which it is said."""
YEAR = 365.25 * 86_400
MOVED_EVERY = 0.3
"""Seconds between versions of the line in a notebook."""


class Progress:
    """Shows how far a run is.

    Args:
        terminal: whether to draw a live bar; found out by default.
        file: where to write, ``sys.stdout`` by default.
        notebook: whether one line is written over and over; found out by default.
    """

    def __init__(
        self, terminal: bool | None = None, *, file: TextIO | None = None, notebook: bool | None = None
    ) -> None:
        self.start = self.last_line = time.monotonic()
        self.file = file or sys.stdout
        self.width = 0
        self.bar: Bar | None = None
        self.task: TaskID | None = None
        if self.file.isatty() if terminal is None else terminal:
            columns = (SpinnerColumn(), BarColumn(20), TextColumn("{task.description}", markup=False))
            self.bar = Bar(*columns, TimeElapsedColumn(), console=Console(file=self.file, markup=False))

        self.notebook = self.bar is None and (Console().is_jupyter if notebook is None else notebook)

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
        elif self.width:
            print(file=self.file, flush=True)

    def show(
        self, fraction: float, seconds_left: float | None, job: str, stage: str, done: int, total: int, state: str = ""
    ) -> None:
        """Show how far the run is.

        Args:
            fraction: fraction of the whole run, from 0 to 1.
            seconds_left: until its end, ``None`` where that is not known yet.
            job: what is running.
            stage: the part of it.
            done: how much of that.
            total: all of it.
            state: the last ELBO, say.
        """
        left = "" if seconds_left is None or fraction >= 1 else f", {duration(seconds_left)} left"
        parts = (f"{min(fraction, 1.0):.0%}{left}", job, f"{stage} {done:,}/{total:,}", state)
        line = plain("  ".join(filter(None, parts)))
        now = time.monotonic()
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, description=line, completed=fraction)
        elif self.notebook and (now - self.last_line >= MOVED_EVERY or not self.width):
            self.last_line = now
            raw = getattr(self.file, "rich_proxied_file", self.file)
            print("\r" + line.ljust(self.width), end="", file=raw, flush=True)
            self.width = len(line)
        elif not self.notebook and now - self.last_line >= PLAIN_EVERY:
            self.last_line = now
            print(f"[{now - self.start:6.0f} s] {line}", file=self.file, flush=True)

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        line = plain(line)
        if self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False)
        else:
            print(("\n" if self.width else "") + line, file=self.file, flush=True)
            self.width = 0


class Told:
    """What a call reports its progress to: call it as a ``Watch``, and ``say`` a line where something is shown."""

    def __init__(self, watch: Watch | None = None, shown: Progress | None = None) -> None:
        self._watch, self._shown = watch, shown
        self._stage, self._began = "", time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """So much of a stage is done."""
        if self._watch is not None:
            self._watch(stage, done, total)
        if self._shown is None:
            return
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began = stage, now
        part = done / max(1, total)
        left = (now - self._began) * (1 - part) / part if done and now - self._began > 1 else None
        self._shown.show(part, left, "", stage, done, total)

    def say(self, line: str) -> None:
        """Write a line above what is shown, if something is."""
        if self._shown is not None:
            self._shown.say(line)


class Forecast:
    """Says once, after the first second of work, how long all of it will take, where that is over a minute.

    Args:
        told: where to say it.
        shorter: what makes it shorter.
    """

    def __init__(self, told: Told, shorter: str) -> None:
        self._told, self._shorter = told, shorter
        self._first: tuple[float, float] | None = None
        self._last = 0.0
        self._said = False

    def __call__(self, done: float, everything: float) -> None:
        """So much work is done, in any unit; what comes before the first call, such as compiling, is not counted.

        Where less is done than before, the work began anew: the pace is that of the new round.
        """
        now = time.monotonic()
        if self._first is None or done < self._last:
            self._first = (now, done)
        self._last = done
        began, before = self._first
        if self._said or now - began < MEASURED_FOR or done <= before:
            return
        self._said = True
        seconds = (now - began) * (everything - before) / (done - before)
        if seconds > WORTH_SAYING:
            self._told.say(f"about {duration(seconds)} expected; shorter with {self._shorter}")


@contextmanager
def watched(progress: bool | Watch | None) -> Iterator[Told]:
    """What ``progress=`` of a library call means.

    ``True`` shows a bar on a terminal, a line that moves in a notebook, and elsewhere a plain line every 30 seconds, on
    standard error; ``False`` shows nothing; a function is called with the stage's name, what is done and all of it.

    Raises:
        TypeError: neither of these.
    """
    if callable(progress):
        yield Told(progress)
    elif progress is None or progress is False:
        yield Told()
    elif progress is True:
        with Progress(file=sys.stderr) as shown:
            yield Told(shown=shown)
    else:
        raise TypeError(f"expected progress as True, False or a function of stage, done and total, got {progress!r}")


def counted(number: int, what: str) -> str:
    """``"1 job"``, ``"3 jobs"``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds in words: ``"40 s"``, ``"12 min"``, ``"3.5 h"``, ``"2.1 days"``, ``"40 years"``; a second at least."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days" if seconds < YEAR else f"{seconds / YEAR:,.0f} years"
