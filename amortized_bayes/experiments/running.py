"""The life of a run, the same for every experiment: its folder, what it needs, its jobs, failures, resuming.

A job is done when it is marked so, with how it ended; a run is finished when ``FINISHED`` stands. Resuming runs the
jobs that are not done and finishes; nothing else decides. A job that raises ``ArithmeticError`` (a divergence, an
estimate that is not finite, a model that could not be trained) is recorded as failed, and the others go on; anything
else is a mistake in the input or in the code and ends the run, which can then be resumed.

Jobs run one after the other, or side by side in processes (:mod:`~amortized_bayes.experiments.executors`) or on a
cluster (:mod:`~amortized_bayes.experiments.ray_runner`): the same code lists them, starts each when what it reads is
there, and keeps what they yield, in the folder that this process alone writes to. Their number of threads belongs to
the run, and rows are put in the order of the jobs at its end, so results do not depend on how many run side by side, or
where.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from amortized_bayes.configuration import to_mapping
from amortized_bayes.experiments import EXPERIMENTS, experiment
from amortized_bayes.experiments.changes import differences
from amortized_bayes.experiments.executors import Died, Executor, Inline, Processes
from amortized_bayes.experiments.forecast import Forecast
from amortized_bayes.experiments.parcels import Parcel, pack
from amortized_bayes.experiments.plans import Plan, checksums, training_title
from amortized_bayes.experiments.ray_runner import OnRay
from amortized_bayes.experiments.settings import VAEConfig, serves
from amortized_bayes.experiments.spec import Arrays, File, Measured, Shown
from amortized_bayes.experiments.trained import find_trained
from amortized_bayes.experiments.workshop import (
    Ended,
    Item,
    Stage,
    Task,
    Warned,
    Workshop,
    about_here,
    workshop,
    workshop_away,
)
from amortized_bayes.keeping import Kept
from amortized_bayes.results import RunFolder, environment
from amortized_bayes.stopping import Stopped, asked, patience
from amortized_bayes.types import Factor, Row

__all__ = ["Reporter", "run"]

RETRIES = 3
"""How often a job is started again whose worker died, where others can take its place."""


class Reporter(Protocol):
    """Who is told how far a run is."""

    def started(self, folder: RunFolder, num_jobs: int, forecast: Forecast) -> None:
        """Take in where a run goes, and how long it may take."""
        ...

    def show(self, forecast: Forecast, job: str, stage: str, done: int, total: int, state: str) -> None:
        """Take in how far a stage of a job is."""
        ...

    def say(self, line: str) -> None:
        """Take in something that is worth a line."""
        ...

    def row(self, row: Row) -> None:
        """Take in a row."""
        ...

    def shown(self, job: str, shown: Shown) -> None:
        """Take in what a job shows of itself on its way, and the arrays that it keeps."""
        ...


def run(plan: Plan, reporter: Reporter) -> RunFolder:
    """Run what a plan has left, into its folder or a new one, and finish it.

    Raises:
        ValueError: input that no job can work with, or a disk that refuses.
        ChildProcessError: a process that ran jobs was killed; what is finished is kept, and checkpoints of the others.
        KeyboardInterrupt: likewise.
        Stopped: a signal asked for it; jobs under way have written checkpoints, if there was time.
    """
    forecast = plan.forecast  # before there is a folder: it finds most of what is wrong with the input
    folder = plan.folder or RunFolder.create(plan.lab.out, plan.name, to_mapping(plan.config), plan.about)
    reporter.started(folder, len(forecast.work), forecast)
    forecast.begin()
    with _Execution(replace(plan, folder=folder), forecast, reporter) as execution:
        execution.run()
    return folder


class _Step(NamedTuple):
    """A job of the run, or the training of a model that its jobs need.

    Args:
        key: the job's key, or the model; of the forecast.
        label: in words.
        waits: keys of the steps that come before it.
    """

    key: Hashable
    label: str
    waits: frozenset[Hashable]


class _Execution(ExitStack):
    """A run on its way: it starts jobs, and keeps what they yield.

    Args:
        plan: with its folder.
        forecast: forecast of the plan.
        reporter: who is told.
    """

    def __init__(self, plan: Plan, forecast: Forecast, reporter: Reporter) -> None:
        super().__init__()
        self.plan, self.forecast, self.reporter = plan, forecast, reporter
        self.plans: dict[Path, Plan] = {}
        self.running: dict[Task, tuple[_Step, Stage | None]] = {}
        self.over: set[Hashable] = set()
        self.warned: dict[str | tuple[str, type[Warning], int], int] = {}
        self.again: list[Task] = []
        self.deaths = Counter[Task]()

    def run(self) -> None:
        """Run the jobs that are left, each after those that it reads and the models that it needs, and finish."""
        self._open(self.plan)
        waiting = self._steps()
        with self._executor() as executor, patience(executor.ask_to_stop):
            while waiting or self.running:
                if asked():
                    self._wait_for_the_last(executor)
                while self.again:
                    executor.start(self.again.pop())
                step = self._next(waiting) if len(self.running) < executor.workers else None
                with self._named():
                    if step is None:
                        executor.wait()
                    else:
                        waiting.remove(step)
                        self._start(step, executor)
        self._finish(self.plan)

    def _next(self, waiting: list[_Step]) -> _Step | None:
        """What to start next: side by side, what holds up most, so that no worker is left with it at the end."""
        ready = [step for step in waiting if step.waits <= self.over]
        if self.forecast.workers == 1:
            return next(iter(ready), None)
        return max(ready, key=lambda step: self.forecast.chains[step.key], default=None)

    def _wait_for_the_last(self, executor: Executor) -> None:
        """Take in what jobs under way keep of themselves before they stop.

        Raises:
            Stopped: always, then.
        """
        for task in self.again:  # none has started
            del self.running[task]
        while self.running:
            executor.wait()
        raise Stopped(asked())

    def _executor(self) -> Executor:
        plan, lab, workers = self.plan, self.plan.lab, self.forecast.workers
        if plan.cluster is not None:
            data_dir = lab.data_dir and lab.data_dir.absolute()
            expected, accept = about_here(lab.device), plan.cluster.accept_changes
            given = (dict(EXPERIMENTS), lab.device, data_dir, lab.keep_every, expected)
            prepare = partial(workshop_away, *given, accept=accept)
            return OnRay(workers, prepare, self._pack, self._take, plan.cluster.share(plan.threads))
        if plan.runner == "inline" or (not plan.runner and workers == 1):
            return Inline(Workshop(lab, self.plans), self._take)
        prepare = partial(workshop, dict(EXPERIMENTS), lab.out, lab.device, lab.data_dir, lab.keep_every)
        return Processes(workers, prepare, self._take)

    def _pack(self, task: Task) -> Parcel:
        return pack(self.plans[task.run], task.job)

    def _steps(self) -> list[_Step]:
        """What is to be done, in the order in which it is started where nothing must wait."""
        plan, missing, steps = self.plan, list(self.plan.missing), list[_Step]()
        left = {job.key for job in plan.left}
        for number, job in enumerate(plan.jobs, start=1):
            if job.key not in left:
                continue
            models = [m for m in plan.missing if any(serves(m, config) for config in job.needs)]
            for model in (m for m in models if m in missing):
                missing.remove(model)
                steps.append(_Step(model, training_title(model), frozenset()))
            label = f"job {number}/{len(plan.jobs)} {plan.title(job)}"
            steps.append(_Step(job.key, label, frozenset([*models, *left.intersection(job.after)])))
        return steps

    def _open(self, plan: Plan) -> None:
        """Take the lock of a run, and drop what is there of jobs that are to be run."""
        folder = plan.folder
        assert folder is not None
        self.enter_context(folder)
        for line in folder.recovered:
            self.reporter.say(line)
        for key, damage in folder.damaged().items():
            self.reporter.say(f"{key} is run again: {damage}")
        folder.forget([job.key for job in plan.left])
        folder.drop_unfinished_rows()
        plan.lab.folder = folder
        self.plans[folder.path] = plan

    def _finish(self, plan: Plan) -> None:
        assert plan.folder is not None
        plan.folder.sort([job.key for job in plan.jobs])
        plan.folder.finish()

    def _start(self, step: _Step, executor: Executor) -> None:
        """Start a job; for a model, that of a run of ``train``, unless the model has come to be there."""
        plan, key = self.plan, str(step.key)
        if isinstance(step.key, VAEConfig):
            if plan.lab.find(step.key) is not None:
                self._end(step)
                return
            plan = self._training(step.key)
            key = plan.jobs[0].key
        assert plan.folder is not None
        if key in plan.folder.done():  # only the end of its run was missing
            self._finish(plan)
            self._end(step)
            return
        task = Task(plan.folder.path, key)
        self.running[task] = (step, None)
        executor.start(task)

    def _end(self, step: _Step) -> None:
        self.over.add(step.key)
        self.forecast.finish(step.key)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say of a process that died what ran, and how the run goes on."""
        assert self.plan.folder is not None
        try:
            yield
        except ChildProcessError as error:
            labels = " and ".join(step.label for step, _ in self.running.values())
            hint = f"`{self.plan.name} --resume {self.plan.folder.path}` resumes the run"
            raise ChildProcessError(f"{error}, while {labels} ran; {hint}") from error

    def _take(self, task: Task, message: Item | Stage | Shown | Ended | Warned | Died) -> None:
        """Keep what a job yields, tell how far it is, and mark it done at its end."""
        plan, (step, _) = self.plans[task.run], self.running[task]
        if isinstance(message, Stage):
            self.forecast.at(step.key, message.stage, message.done, message.total)
            self.running[task] = (step, message)
            self._show()
        elif isinstance(message, Shown):
            self.reporter.shown(task.job, message)
        elif isinstance(message, Died):
            self._died(task, message.words)
        elif isinstance(message, Ended):
            assert plan.folder is not None
            if message.status == "stopped":
                del self.running[task]
                if not asked():
                    raise ChildProcessError("a worker process was asked to stop")
                return
            plan.folder.mark_done(task.job, message.status)
            if step.key != task.job:
                self._finish(plan)
            del self.running[task]
            self._end(step)
        elif isinstance(message, Warned):
            warnings.warn_explicit(*message, registry=self.warned)
        else:
            self._keep(message, plan, task.job)

    def _died(self, task: Task, words: str) -> None:
        """Have a job start again, from what it kept, whose worker died."""
        step, folder = self.running[task][0], self.plans[task.run].folder
        assert folder is not None
        if asked():
            del self.running[task]
            return
        self.deaths[task] += 1
        if self.deaths[task] > RETRIES:
            raise ChildProcessError(f"{words} {RETRIES + 1} times")
        folder.drop_unfinished_rows(task.job)
        self.reporter.say(f"{step.label} continues elsewhere: {words}")
        self.again.append(task)

    def _show(self) -> None:
        """Show the job that was started first, and count the others."""
        step, stage = next((step, stage) for step, stage in self.running.values() if stage is not None)
        others = f" and {len(self.running) - 1} more" if len(self.running) > 1 else ""
        self.reporter.show(self.forecast, f"{step.label}{others}", *stage)

    def _keep(self, item: Item, plan: Plan, key: str) -> None:
        folder = plan.folder
        assert folder is not None
        if isinstance(item, Measured):
            row = _row(item, key, plan)
            folder.append(row, key)
            self.reporter.row(row)
        elif isinstance(item, Kept):
            folder.save_unfinished(key, item.tensors, item.texts)
        elif isinstance(item, File):
            folder.save_file(item.name, item.data, key)
        elif isinstance(item, Arrays):
            folder.save_arrays(key, key, **item.arrays)
            self.reporter.shown(key, Shown(item.step, item.arrays))
        else:
            folder.save_tensors(f"{key}.{item.name}" if item.name else key, item.tensors, item.texts, key)

    def _training(self, config: VAEConfig) -> Plan:
        """The run that trains a model: a new one, or that which was interrupted; its failure is its run's."""
        lab = replace(self.plan.lab, folder=None)
        sums = checksums(experiment("train"), config, lab)
        folder = find_trained(lab.out, config, ("unfinished",), sums)
        if folder is None or differences(folder.environment(), self.plan.about):
            assert self.plan.folder is not None
            part_of = f"{self.plan.name}/{self.plan.folder.name}"
            kept = {name: value for name, value in self.plan.about.items() if name in ("note", "device", "threads")}
            about = environment() | kept | {"data": sums, "part_of": part_of}
            folder = RunFolder.create(lab.out, "train", to_mapping(config), about)
        plan = Plan("train", config, lab, folder.environment(), folder)
        self._open(plan)
        return plan


def _row(item: Measured, key: str, plan: Plan) -> Row:
    """The row of a number."""
    module = plan.module
    (factors,) = (job.factors for job in plan.jobs if job.key == key)
    shared = module.factors(plan.config) if hasattr(module, "factors") else {}
    notes = dict.fromkeys(note for note in (str(plan.about.get("note", "")), item.note) if note)
    named: dict[str, Factor] = {**factors, **shared, **item.factors}
    return Row(
        *(plan.name, named, item.step, item.seconds, item.metric, item.value, item.error, item.error_over),
        status=item.status,
        note="; ".join(notes),
    )
