"""The life of a run, the same for every experiment: its folder, what it needs, its jobs, failures, resuming.

A job is done when it is marked so, with how it ended; a run is finished when ``FINISHED`` stands. Resuming runs the
jobs that are not done and finishes; nothing else decides. A job that raises ``ArithmeticError`` (a divergence, an
estimate that is not finite, a model that could not be trained) is recorded as failed, and the others go on; anything
else is a mistake in the input or in the code and ends the run, which can then be resumed.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import Any, Protocol

import torch

from amortized_bayes.configuration import load_config, to_mapping
from amortized_bayes.data import DataUnavailable
from amortized_bayes.experiments import experiment
from amortized_bayes.experiments.forecast import Forecast
from amortized_bayes.experiments.lab import Lab, Watch
from amortized_bayes.experiments.settings import VAEConfig, datasets_of, model_factors
from amortized_bayes.experiments.spec import Arrays, Checkpoint, FailedAt, File, Job, Measured
from amortized_bayes.experiments.train import train_job
from amortized_bayes.experiments.trained import find_trained
from amortized_bayes.labels import describe
from amortized_bayes.results import RunFolder, environment, find_run
from amortized_bayes.types import Factor, Row

__all__ = ["Plan", "Reporter", "new_plan", "resumed_plan", "run", "training_title"]


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


@dataclass(frozen=True)
class Plan:
    """A run before it starts, or starts again.

    Args:
        name: of the experiment.
        config: its configuration, complete.
        lab: where its jobs get what they need.
        about: of ``environment.json``.
        folder: where it goes on; ``None`` for a new run.
    """

    name: str
    config: Any
    lab: Lab
    about: Mapping[str, Any]
    folder: RunFolder | None = None

    @property
    def module(self) -> ModuleType:
        """The experiment's file."""
        return experiment(self.name)

    @cached_property
    def jobs(self) -> list[Job]:
        """All jobs, those that are done among them.

        Raises:
            ValueError: a key used twice, or a job after one that is not before it; the experiment's file is named.
        """
        where, known = self.module.__file__, set[str]()
        jobs = list(self.module.jobs(self.config, self.lab))
        for job in jobs:
            if job.key in known:
                raise ValueError(f"{where}: expected jobs of different keys, got {job.key!r} twice")
            if missing := [key for key in job.after if key not in known]:
                raise ValueError(f"{where}: expected {job.key!r} after the jobs it reads, got it before {missing[0]!r}")
            known.add(job.key)
        return jobs

    @property
    def left(self) -> list[Job]:
        """Jobs that are still to be run: those that are not done, or whose results are damaged, and what reads them."""
        done = set() if self.folder is None else self.folder.done().keys() - self.folder.damaged().keys()
        left: dict[str, Job] = {}
        for job in self.jobs:
            if job.key not in done or any(key in left for key in job.after):
                left[job.key] = job
        return list(left.values())

    def title(self, job: Job) -> str:
        """A job in words, by what tells it from the others: ``"best, auxiliary"``."""
        first, *others = self.jobs
        shared = [n for n, v in first.factors.items() if others and all(o.factors.get(n) == v for o in others)]
        own = describe({name: value for name, value in job.factors.items() if name not in shared})
        return ", ".join(filter(None, (job.name, own))) or self.name

    @cached_property
    def missing(self) -> list[VAEConfig]:
        """Models that must be trained first."""
        needed = dict.fromkeys(config for job in self.left for config in job.needs)
        return [config for config in needed if self.lab.find(config) is None]

    @cached_property
    def forecast(self) -> Forecast:
        """How long it will take, measured on a few steps of each kind; trainings have their models as keys."""
        trainings = {config: train_job(config, self.lab) for config in self.missing}
        return Forecast({**trainings, **{job.key: job for job in self.left}})


def new_plan(name: str, config: Any, lab: Lab, given: Sequence[str], about: Mapping[str, Any]) -> Plan:
    """A new run: its data found or, where the default ones are unavailable, others used; its settings completed.

    Args:
        name: of the experiment.
        config: what was asked for.
        lab: where jobs get what they need.
        given: names of the flags that were given.
        about: what ``environment.json`` is to say beside what this adds.

    Raises:
        ValueError: data that were asked for are unavailable, or what the experiment itself refuses.
    """
    module = experiment(name)
    config, note = _with_data(module, config, lab, given) if hasattr(module, "substitutes") else (config, "")
    if hasattr(module, "prepare"):
        config = module.prepare(config, lab)
    return Plan(name, config, lab, {**about, "data": _checksums(module, config, lab), "note": note})


def resumed_plan(name: str, text: str, lab: Lab) -> Plan:
    """A run to resume: with the configuration, the note and the data that it was started with.

    Raises:
        ValueError: no such run, one of another kind, one that is finished, or other data than it was started on.
    """
    folder = RunFolder.open(find_run(lab.out, text, name, ("unfinished",)))
    if folder.finished:
        raise ValueError(f"expected an unfinished run to resume, got {folder.path}, which is finished")
    module = experiment(name)
    config = load_config(module.Config, folder.path / "config.yaml")
    lab = replace(lab, out=folder.path.absolute().parents[1])
    before, now = folder.environment(), _checksums(module, config, lab)
    known = before.get("data")
    if not isinstance(known, dict):
        raise ValueError(f"{folder.path / 'environment.json'}: expected checksums of the data, got {known!r}")
    changed = [data for data, sums in known.items() if now.get(data) != sums]
    if changed:
        raise ValueError(
            f"expected the data that {folder.path} was started on, got other files of {', '.join(changed)}"
        )
    return Plan(name, config, lab, before, folder)


def _with_data(module: ModuleType, config: Any, lab: Lab, given: Sequence[str]) -> tuple[Any, str]:
    """The configuration with data that are there, and a note where others are used instead of the default."""
    named = {"dataset", "config", "preset"} & set(given)
    first: DataUnavailable | None = None
    for candidate, note in [(config, ""), *([] if named else module.substitutes(config, set(given)))]:
        try:
            _checksums(module, candidate, lab)
        except DataUnavailable as error:
            first = first or error
        else:
            return candidate, note
    assert first is not None
    raise first


def _checksums(module: ModuleType, config: Any, lab: Lab) -> dict[str, dict[str, str]]:
    """The sha256 of the files of every data set of a run."""
    names = module.datasets(config, lab) if hasattr(module, "datasets") else datasets_of(config)
    found = [lab.dataset(name) for name in names]
    return {data.name: dict(data.sha256) for data in found}


def run(plan: Plan, reporter: Reporter) -> RunFolder:
    """Run what a plan has left, into its folder or a new one, and finish it.

    Raises:
        ValueError: input that no job can work with, or a disk that refuses.
        KeyboardInterrupt: what is finished is kept.
    """
    forecast = plan.forecast  # before there is a folder: it finds most of what is wrong with the input
    folder = plan.folder or RunFolder.create(plan.lab.out, plan.name, to_mapping(plan.config), plan.about)
    reporter.started(folder, len(forecast.work), forecast)
    forecast.begin()
    _execute(replace(plan, folder=folder), forecast, reporter)
    return folder


def _execute(plan: Plan, forecast: Forecast, reporter: Reporter, model: VAEConfig | None = None) -> None:
    """Take the lock, run the jobs that are left, each after the models that it needs, and finish."""
    folder, lab = plan.folder, plan.lab
    assert folder is not None
    with folder:
        for line in folder.recovered:
            reporter.say(line)
        for key, damage in folder.damaged().items():
            reporter.say(f"{key} is run again: {damage}")
        folder.forget([job.key for job in plan.left])
        folder.drop_unfinished_rows()
        lab.folder = folder
        for number, job in enumerate(plan.jobs, start=1):
            if job.key in folder.done():
                continue
            for config in job.needs:
                if lab.find(config) is None:
                    _train(config, plan, forecast, reporter)
            label = f"job {number}/{len(plan.jobs)} {plan.title(job)}" if model is None else training_title(model)
            key = model or job.key
            lab.report = _reporting(reporter, forecast, key, label)
            folder.mark_done(job.key, _run_job(job, plan, reporter))
            forecast.finish(key)
        folder.finish()


def training_title(config: VAEConfig) -> str:
    """The training of a model in words."""
    layers = f", {len(config.hidden)} hidden decoder layers" if len(config.hidden) != len(VAEConfig().hidden) else ""
    return f"train {describe(model_factors(config))}{layers}"


def _reporting(reporter: Reporter, forecast: Forecast, key: Hashable, label: str) -> Watch:
    def report(stage: str, done: int, total: int, state: str) -> None:
        forecast.at(key, stage, done, total)
        reporter.show(forecast, label, stage, done, total, state)

    return report


def _run_job(job: Job, plan: Plan, reporter: Reporter) -> str:
    """Run one job, keep all that it yields, and say how it ended."""
    items = job.run()
    try:
        for item in items:
            if isinstance(item, Measured):
                _append(_row(item, job, plan), job, plan, reporter)
            else:
                _keep(item, job, plan)
    except ArithmeticError as error:
        failure = Measured("failure", None, step=getattr(error, "step", 0), status="failed", note=str(error))
        _append(_row(failure, job, plan), job, plan, reporter)
        return "failed"
    finally:
        if isinstance(items, Generator):  # now, not when it is forgotten: a fit has Pyro's validation off while it runs
            items.close()
    return "ok"


def _row(item: Measured, job: Job, plan: Plan) -> Row:
    """The row of a number.

    Raises:
        ArithmeticError: it is not finite.
    """
    if item.value is not None and not math.isfinite(item.value):
        raise FailedAt(item.step, f"{item.metric} is {item.value:g}")
    module = plan.module
    shared = module.factors(plan.config) if hasattr(module, "factors") else {}
    notes = dict.fromkeys(note for note in (str(plan.about.get("note", "")), item.note) if note)
    factors: dict[str, Factor] = {**job.factors, **shared, **item.factors}
    return Row(
        *(plan.name, factors, item.step, item.seconds, item.metric, item.value, item.error, item.error_over),
        status=item.status,
        note="; ".join(notes),
    )


def _append(row: Row, job: Job, plan: Plan, reporter: Reporter) -> None:
    assert plan.folder is not None
    plan.folder.append(row, job.key)
    reporter.row(row)


def _keep(item: Arrays | Checkpoint | File, job: Job, plan: Plan) -> None:
    folder = plan.folder
    assert folder is not None
    if isinstance(item, File):
        folder.save_file(item.name, item.data)
        return
    if isinstance(item, Arrays):
        folder.save_arrays(job.key, **item.arrays)
    else:
        folder.save_tensors(f"{job.key}.{item.name}" if item.name else job.key, item.tensors, item.texts)


def _train(config: VAEConfig, plan: Plan, forecast: Forecast, reporter: Reporter) -> None:
    """Train a model into a run of its own, or resume the one that was interrupted; its failure is its run's."""
    lab = replace(plan.lab, folder=None)
    sums = _checksums(experiment("train"), config, lab)
    folder = find_trained(lab.out, config, ("unfinished",), sums)
    if folder is None:
        assert plan.folder is not None
        part_of = f"{plan.name}/{plan.folder.name}"
        kept = {name: plan.about[name] for name in ("note", "device", "threads") if name in plan.about}
        about = environment(torch.get_num_threads()) | kept | {"data": sums, "part_of": part_of}
        folder = RunFolder.create(lab.out, "train", to_mapping(config), about)
    _execute(Plan("train", config, lab, folder.environment(), folder), forecast, reporter, config)
