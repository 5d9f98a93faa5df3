"""Where jobs are done, in any process: a job is found by its run and its key, carried out, and what it yields sent.

A process of this machine reads what it needs in the folder of the run. On another machine there is none: a job comes
there with what it reads (:mod:`~amortized_bayes.experiments.parcels`), and the machine must be like this one.
"""

from __future__ import annotations

import gc
import math
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from amortized_bayes.experiments import EXPERIMENTS, experiment
from amortized_bayes.experiments.changes import differences
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.parcels import Parcel, check_data, own_folder, unpacked
from amortized_bayes.experiments.plans import Plan, using_threads
from amortized_bayes.experiments.spec import Arrays, Checkpoint, FailedAt, File, Job, Measured, Shown
from amortized_bayes.keeping import CannotKeep, Keeper, Kept
from amortized_bayes.results import RunFolder, environment
from amortized_bayes.results.versions import code_checksum
from amortized_bayes.stopping import Stopped

__all__ = ["Away", "Ended", "Item", "Stage", "Task", "Warned", "Workshop", "about_here", "workshop", "workshop_away"]


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
COLLECT_EVERY = 10.0
"""Seconds between two collections of what jobs left in circles: where so much stays, Python itself seldom looks."""


@dataclass
class Workshop:
    """Carries out jobs, in any process. A run that it does not know is read from its folder; it writes to none.

    Args:
        lab: where jobs get what they need.
        plans: known runs by their folders.
        elsewhere: whether this is another process than that of the run, to which warnings are sent, so that its filters
            decide, and each is shown once.
        collected: when what jobs had left in circles was collected last.
    """

    lab: Lab
    plans: dict[Path, Plan] = field(default_factory=dict)
    elsewhere: bool = False
    collected: float = field(default_factory=time.monotonic)

    def __call__(self, task: Task, send: Callable[[Item | Stage | Shown | Ended | Warned], None]) -> None:
        """Run a job, and send what it yields, how far it is, and how it ended."""
        if self.elsewhere:
            warnings.showwarning = partial(_hand_on, send)
        plan = self.plan(task.run)
        plan.lab.report = lambda *stage: send(Stage(*stage))
        plan.lab.display = send
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
        if time.monotonic() - self.collected > COLLECT_EVERY:
            gc.collect()  # fits with their tensors among it
            self.collected = time.monotonic()

    def plan(self, path: Path) -> Plan:
        """The plan of a run."""
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


class Away:
    """Carries out jobs that come with what they read, in a folder of this process that is empty between them.

    Args:
        workshop: whose lab is away.
        note: note of all rows that are measured here.
    """

    def __init__(self, workshop: Workshop, note: str = "") -> None:
        self.workshop, self.note = workshop, note
        self.checked: set[str] = set()

    def __call__(self, parcel: Parcel, send: Callable[[Item | Stage | Shown | Ended | Warned], None]) -> None:
        """Run a job, and send what a workshop sends.

        Raises:
            ValueError: other data than those of the run.
        """

        def noted(item: Item | Stage | Shown | Ended | Warned) -> None:
            if self.note and isinstance(item, Measured):
                item = item._replace(note="; ".join(filter(None, (item.note, self.note))))
            send(item)

        with unpacked(parcel, self.workshop.lab.out) as run:
            if parcel.run not in self.checked:
                with _named_machine():
                    check_data(self.workshop.plan(run), parcel.labels)
                self.checked.add(parcel.run)
            self.workshop(Task(run, parcel.job), noted)

    def clean_up(self) -> None:
        """Leave nothing on this machine."""
        shutil.rmtree(self.workshop.lab.out.parent, ignore_errors=True)


def workshop_away(
    experiments: Mapping[str, str],
    device: torch.device,
    data_dir: Path | None,
    keep_every: float,
    expected: Mapping[str, Any],
    *,
    accept: bool = False,
) -> Away:
    """A workshop on another machine, which must be like that where the run was started.

    Args:
        experiments: by name, those that were added among them.
        device: where to compute.
        data_dir: where to look for data first, if it is there.
        keep_every: seconds between two states that a job keeps of itself, at least.
        expected: :func:`about_here` of that machine.
        accept: go on where something differs that numbers depend on, and mark the rows.

    Raises:
        ValueError: another version of this package, or another setting.
    """
    EXPERIMENTS.update(experiments)
    here = about_here(device)
    differing = differences(expected, here)
    with _named_machine():
        if here["code"] != expected["code"]:
            raise ValueError("expected the same version of amortized_bayes on every machine, got other files of it")
        if differing and not accept:
            raise ValueError(
                f"expected the setting of the machine that started the run, got {', '.join(differing)}; "
                "--accept-changes continues, and marks the rows that are measured there"
            )
    data_dir = data_dir if data_dir is not None and data_dir.is_dir() else None
    lab = Lab(own_folder("amortized-bayes-"), device, data_dir, keep_every, away=True)
    return Away(Workshop(lab, elsewhere=True), f"measured with {', '.join(differing)}" if differing else "")


def about_here(device: torch.device) -> dict[str, Any]:
    """What numbers depend on, on this machine.

    Raises:
        ValueError: it has no such device.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        with _named_machine():
            raise ValueError("expected a CUDA device, got none")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return {**environment(), "device": name, "code": code_checksum()}


@contextmanager
def _named_machine() -> Iterator[None]:
    """Say where something is wrong."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{platform.node()}: {error}") from error
