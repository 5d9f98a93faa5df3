"""How long a run takes, how far it is, and how much it leaves on disk: sums over the parts of its jobs."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property

from amortized_bayes.experiments.spec import Job, Work

__all__ = ["Forecast"]

FIRST = 3.0
"""Seconds that loading, tracing and capturing take for a job, about."""
TRUST = 0.2
"""Part of the run after which the pace seen counts as much as the pace forecast."""


class Forecast:
    """Seconds of each stage of each job, and which of them are over.

    Args:
        jobs: what is to be run, by key; each after those that it waits for.
        workers: how many of them run side by side.
    """

    def __init__(self, jobs: Mapping[Hashable, Job], workers: int = 1) -> None:
        self.workers = workers
        self.waits: dict[Hashable, Sequence[Hashable]] = {k: (*job.after, *job.needs) for k, job in jobs.items()}
        self.work: dict[Hashable, Sequence[Work]] = {key: job.work for key, job in jobs.items()}
        self.stages: dict[Hashable, dict[str, float]] = {key: _stages(work) for key, work in self.work.items()}
        self.disk = sum(job.disk for job in jobs.values())
        self.done: dict[Hashable, float] = dict.fromkeys(jobs, 0.0)
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self._elapsed({key: self.seconds_of(key) for key in self.stages})

    def _elapsed(self, seconds: Mapping[Hashable, float]) -> float:
        """How long jobs take that are shared out among the workers: at least the longest chain of those that wait."""
        ends: dict[Hashable, float] = {}
        for key, own in seconds.items():
            ends[key] = own + max((ends[other] for other in self.waits[key] if other in ends), default=0.0)
        return max(sum(seconds.values()) / self.workers, *ends.values(), 0.0)

    @cached_property
    def chains(self) -> dict[Hashable, float]:
        """Seconds of each job and of the longest chain of jobs that wait for it."""
        found = dict.fromkeys(self.stages, 0.0)
        for key in reversed(self.stages):
            found[key] += self.seconds_of(key)
            found |= {other: max(found[other], found[key]) for other in self.waits[key] if other in found}
        return found

    def seconds_of(self, key: Hashable) -> float:
        """Of one job."""
        return FIRST + sum(self.stages[key].values())

    @property
    def basis(self) -> str:
        """Where the times come from, in words that follow them."""
        found = dict.fromkeys(work.basis for parts in self.work.values() for work in parts if work.basis)
        return f", from {' and '.join(found)}" if found else ""

    def begin(self) -> None:
        """Start the clock."""
        self.start = time.monotonic()

    def at(self, key: Hashable, stage: str, done: int, total: int) -> None:
        """Take in how far a stage of a job is; the stages before it are over."""
        if stage not in self.stages.get(key, {}):
            return
        names = list(self.stages[key])
        before = sum(self.stages[key][name] for name in names[: names.index(stage)])
        self.done[key] = max(self.done[key], before + self.stages[key][stage] * done / max(1, total))

    def finish(self, key: Hashable) -> None:
        """Take in that a job is over."""
        if key in self.done:
            self.done[key] = self.seconds_of(key)

    @property
    def fraction(self) -> float:
        """Part of the work that is over."""
        whole = sum(self.seconds_of(key) for key in self.stages)
        return min(1.0, sum(self.done.values()) / max(1e-9, whole))

    @property
    def seconds_left(self) -> float:
        """What is left, at the pace seen so far."""
        total, elapsed = self.seconds, time.monotonic() - self.start
        left = self._elapsed({key: self.seconds_of(key) - done for key, done in self.done.items()})
        pace = (elapsed + TRUST * total) / (total - left + TRUST * total) if total else 1.0
        return left * pace


def _stages(parts: Sequence[Work]) -> dict[str, float]:
    """Seconds by stage; parts of one name are added up."""
    found: dict[str, float] = {}
    for work in parts:
        found[work.stage] = found.get(work.stage, 0.0) + work.amount * work.unit_seconds()
    return found
