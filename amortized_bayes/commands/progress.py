"""Progress on the terminal: a live bar with rate, time left and the current ELBO, or a plain line every 30 seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

__all__ = ["FitProgress", "SweepProgress"]

PLAIN_EVERY = 30.0
"""Seconds between lines where the output is no terminal."""


class FitProgress(Protocol):
    """What is read of a fit's progress."""

    @property
    def fit(self) -> object:
        """The fit, with ``guide``, ``k``, ``seed`` and ``dataset``."""
        ...

    @property
    def step(self) -> int:
        """Steps taken."""
        ...

    @property
    def num_steps(self) -> int:
        """Steps to take."""
        ...

    @property
    def elbo(self) -> float:
        """ELBO of the last batch, nats a point."""
        ...


class SweepProgress:
    """Shows the fits of a run one after another.

    Args:
        num_fits: fits still to run.
        file_is_terminal: whether to draw a live bar; found out by default.
    """

    def __init__(self, num_fits: int, file_is_terminal: bool | None = None) -> None:
        live = sys.stdout.isatty() if file_is_terminal is None else file_is_terminal
        self.num_fits = num_fits
        self.finished = 0
        self.start = self.last_line = self.fit_start = time.monotonic()
        self.current: object = None
        self.first_step = 0
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        if live:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[state]}"),
            )
            self.progress = Progress(*columns, TimeElapsedColumn(), console=Console(file=sys.stdout))

    def __enter__(self) -> Self:
        if self.progress is not None:
            self.progress.start()
            self.task = self.progress.add_task("starting", total=1.0, state="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()

    def __call__(self, at: FitProgress) -> None:
        """Take in how far a fit is."""
        now = time.monotonic()
        label = _label(at)
        if label != self.current:
            self.finished += self.current is not None
            self.current, self.fit_start, self.first_step = label, now, at.step
        state = f"step {at.step:,}/{at.num_steps:,}  {self._rate(at, now)}  ELBO {at.elbo:.1f}  {self._left(at, now)}"
        heading = f"fit {min(self.finished + 1, self.num_fits)}/{self.num_fits}  {label}"
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, description=heading, completed=at.step / at.num_steps, state=state)
        elif now - self.last_line >= PLAIN_EVERY:
            self.last_line = now
            print(f"[{now - self.start:6.0f} s] {heading}  {state}", flush=True)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.progress is not None:
            self.progress.console.print(line, highlight=False)
        else:
            print(line, flush=True)

    def _rate(self, at: FitProgress, now: float) -> str:
        seconds = now - self.fit_start
        return f"{(at.step - self.first_step) / seconds:,.0f} steps/s" if seconds > 0.5 else ""

    def _left(self, at: FitProgress, now: float) -> str:
        done = self.finished + at.step / at.num_steps
        if done < 0.02:
            return ""
        left = (now - self.start) / done * max(0.0, self.num_fits - done)
        return f"about {duration(left)} left"


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def _label(at: FitProgress) -> str:
    fit = at.fit
    width = "" if getattr(fit, "k", None) is None else f" k = {getattr(fit, 'k', '')}"
    doubled = " (as long again)" if getattr(at, "doubled", False) else ""
    return f"{getattr(fit, 'dataset', '')} seed {getattr(fit, 'seed', '')} {getattr(fit, 'guide', '')}{width}{doubled}"
