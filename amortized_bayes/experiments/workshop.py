"""Where jobs are done, in any process: a job is found by its run and its key, carried out, and what it yields sent."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from amortized_bayes.experiments import EXPERIMENTS, experiment
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.plans import Plan, using_threads
from amortized_bayes.experiments.spec import Arrays, Checkpoint, FailedAt, File, Job, Measured
from amortized_bayes.keeping import CannotKeep, Keeper, Kept
from amortized_bayes.results import RunFolder
from amortized_bayes.stopping import Stopped

__all__ = ["Ended", "Item", "Stage", "Task", "Warned", "Workshop", "workshop"]


class Task(NamedTuple):
    """What an executor is told: the folder of a run, and the key of one of its jobs."""

    run: Path
    job: str


class Stage(NamedTuple):
    """How far a stage of a job is."""

    stage: str
    done: int
    total: int
    state: str


class Ended(NamedTuple):
    """How a job ended, ``"ok"`` or ``"failed"``; ``"stopped"`` where the program was asked to stop."""

    status: str


class Warned(NamedTuple):
    """A warning in another process, of the nearest category that Python itself has."""

    text: str
    category: type[Warning]
    file: str
    line: int


Item = Measured | Arrays | Checkpoint | File | Kept


@dataclass
class Workshop:
    """Carries out jobs, in any process. A run that it does not know is read from its folder; it writes to none.

    Args:
        lab: where jobs get what they need.
        plans: known runs by their folders.
        elsewhere: whether this is another process than that of the run, to which warnings are sent, so that its filters
            decide, and each is shown once.
    """

    lab: Lab
    plans: dict[Path, Plan] = field(default_factory=dict)
    elsewhere: bool = False

    def __call__(self, task: Task, send: Callable[[Item | Stage | Ended | Warned], None]) -> None:
        """Run a job, and send what it yields, how far it is, and how it ended."""
        if self.elsewhere:
            warnings.showwarning = partial(_hand_on, send)
        plan = self._plan(task.run)
        plan.lab.report = lambda *stage: send(Stage(*stage))
        (job,) = (job for job in plan.jobs if job.key == task.job)
        assert plan.folder is not None
        found = plan.folder.load_unfinished(job.key)
        keeper = Keeper(send, None if found is None else Kept(*found), self.lab.keep_every)
        with using_threads(plan.threads), keeper.watching():
            try:
                status = _run_job(job, send)
            except Stopped:
                status = "stopped"
            except CannotKeep as error:
                raise error.__cause__ or error from None
        send(Ended(status))

    def _plan(self, path: Path) -> Plan:
        if path not in self.plans:
            folder = RunFolder.open(path)
            config = folder.config(experiment(folder.experiment).Config)
            lab = replace(self.lab, folder=folder)
            self.plans[path] = Plan(folder.experiment, config, lab, folder.environment(), folder)
        return self.plans[path]


def workshop(
    experiments: Mapping[str, str], out: Path, device: torch.device, data_dir: Path | None, keep_every: float
) -> Workshop:
    """A workshop in another process, which learns of experiments that were added while this one ran."""
    EXPERIMENTS.update(experiments)
    return Workshop(Lab(out, device, data_dir, keep_every), elsewhere=True)


def _hand_on(
    send: Callable[[Warned], None], message: Warning | str, category: type[Warning], file: str, line: int, *_: object
) -> None:
    known = next(kind for kind in category.__mro__ if kind.__module__ == "builtins")  # which every process has
    send(Warned(str(message), known, file, line))


def _run_job(job: Job, send: Callable[[Item], None]) -> str:
    """Run one job, send all that it yields, its failure too, and say how it ended."""
    items = job.run()
    try:
        for item in items:
            if isinstance(item, Measured) and item.value is not None and not math.isfinite(item.value):
                raise FailedAt(item.step, f"{item.metric} is {item.value:g}")
            send(item)
    except ArithmeticError as error:
        send(Measured("failure", None, step=getattr(error, "step", 0), status="failed", note=str(error)))
        return "failed"
    finally:
        if isinstance(items, Generator):  # now, not when it is forgotten: a fit has Pyro's validation off while it runs
            items.close()
    return "ok"
