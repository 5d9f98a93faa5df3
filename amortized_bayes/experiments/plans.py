"""A run before it starts, or starts again: its data found, its settings completed, its jobs listed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from amortized_bayes.configuration import to_mapping
from amortized_bayes.data import DATASETS, DataUnavailable
from amortized_bayes.data.documents import CORPORA, Corpus, is_corpus
from amortized_bayes.data.image_folders import holds_images
from amortized_bayes.experiments import experiment
from amortized_bayes.experiments.changes import differences
from amortized_bayes.experiments.cluster import Cluster
from amortized_bayes.experiments.forecast import Forecast
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.settings import VAEConfig, datasets_of, model_factors, serves
from amortized_bayes.experiments.spec import Job
from amortized_bayes.experiments.train import train_job
from amortized_bayes.labels import describe
from amortized_bayes.results import RunFolder, find_run, list_runs
from amortized_bayes.types import Dataset

__all__ = [
    "Plan",
    "checksums",
    "done_before",
    "new_plan",
    "resumed_plan",
    "same_again",
    "training_title",
    "using_threads",
]


@dataclass(frozen=True)
class Plan:
    """A run before it starts, or starts again.

    Args:
        name: name of the experiment.
        config: its configuration, complete.
        lab: where its jobs get what they need.
        about: contents of ``environment.json``.
        folder: where it goes on; ``None`` for a new run.
        most: how many jobs may run side by side.
        runner: where they run: ``"inline"``, in ``"processes"`` of this machine, or on the ``cluster``; empty for one
            of the first two, by how many run side by side.
        cluster: Ray cluster.
    """

    name: str
    config: Any
    lab: Lab
    about: Mapping[str, Any]
    folder: RunFolder | None = None
    most: int = 1
    runner: Literal["", "inline", "processes", "ray"] = ""
    cluster: Cluster | None = None

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
        """Jobs that are still to be run: those that are not done, or whose files are gone, and what reads them."""
        done = set() if self.folder is None else self.folder.done().keys() - self.folder.damaged().keys()
        left: dict[str, Job] = {}
        for job in self.jobs:
            if job.key not in done or any(key in left for key in job.after):
                left[job.key] = job
        return list(left.values())

    def title(self, job: Job) -> str:
        """A job in words, by what tells it from the others: ``"best, auxiliary"``."""
        own = describe({name: value for name, value in job.factors.items() if name not in self._shared})
        return ", ".join(filter(None, (job.name, own))) or self.name

    @cached_property
    def _shared(self) -> list[str]:
        """Names of the factors that all jobs have, with the same value, where there are several jobs."""
        first, *others = self.jobs
        return [n for n, v in first.factors.items() if others and all(o.factors.get(n) == v for o in others)]

    @cached_property
    def missing(self) -> list[VAEConfig]:
        """Models that must be trained first, each once."""
        missing: list[VAEConfig] = []
        for config in dict.fromkeys(config for job in self.left for config in job.needs):
            if not any(serves(other, config) for other in missing) and self.lab.find(config) is None:
                missing.append(config)
        return missing

    @property
    def workers(self) -> int:
        """How many jobs run side by side, trainings of models among them."""
        return max(1, min(self.most, len(self.left) + len(self.missing)))

    @property
    def threads(self) -> int:
        """Threads of each job: those that the run was started with, on which its numbers depend in the last bits."""
        return int(self.about.get("threads") or torch.get_num_threads())

    @cached_property
    def forecast(self) -> Forecast:
        """How long it will take, measured on a few steps of each kind; trainings have their models as keys."""
        trainings = {config: train_job(config, self.lab) for config in self.missing}
        with using_threads(self.threads):
            return Forecast({**trainings, **{job.key: job for job in self.left}}, self.workers)


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Have torch use so many threads, and then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def new_plan(name: str, config: Any, lab: Lab, given: Sequence[str], about: Mapping[str, Any], most: int = 1) -> Plan:
    """A new run: its data found or, where the default ones are unavailable, others used; its settings completed.

    The cores, or the threads that ``OMP_NUM_THREADS`` allows, are shared out evenly among its jobs and the models that
    must be trained first, and each has one thread at least.

    Args:
        name: name of the experiment.
        config: what was asked for.
        lab: where jobs get what they need.
        given: names of the flags that were given.
        about: what ``environment.json`` is to say beside what this adds.
        most: how many jobs may run side by side.

    Raises:
        ValueError: data that were asked for are unavailable, or what the experiment itself refuses.
    """
    module = experiment(name)
    config, said = _with_data(module, config, lab, given) if hasattr(module, "substitutes") else (config, {"note": ""})
    if hasattr(module, "prepare"):
        config = module.prepare(config, lab)
    said["note"] = "; ".join(note for note in (said["note"], *_data_notes(module, config, lab)) if note)
    plan = Plan(name, config, lab, {**about, "data": checksums(module, config, lab), **said}, most=most)
    threads = max(1, torch.get_num_threads() // max(1, len(plan.jobs) + len(plan.missing)))
    return replace(plan, about={**plan.about, "threads": threads, "jobs": plan.workers})


def resumed_plan(
    name: str, text: str, lab: Lab, most: int = 1, now: Mapping[str, Any] | None = None, *, accept: bool = False
) -> Plan:
    """A run to resume: with the configuration, the note and the data that it was started with.

    Args:
        name: name of the experiment.
        text: which run.
        lab: where jobs get what they need.
        most: how many jobs may run side by side.
        now: what ``environment.json`` would say of a new run; ``None``: the data alone are compared.
        accept: go on with what differs, and mark the rows.

    Raises:
        ValueError: no such run, one of another kind, one that is finished or damaged, or another machine, other
            packages or data than it was started with.
    """
    folder = RunFolder.open(find_run(lab.out, text, name, ("unfinished",)))
    if folder.finished:
        raise ValueError(f"expected an unfinished run to resume, got {folder.path}, which is finished")
    module = experiment(name)
    folder.check()
    config = folder.config(module.Config)
    lab = replace(lab, out=folder.path.absolute().parents[1])
    before, found = folder.environment(), checksums(module, config, lab)
    known = before.get("data")
    if not isinstance(known, dict):
        raise ValueError(f"{folder.path / 'environment.json'}: expected checksums of the data, got {known!r}")
    changed = [data for data, sums in known.items() if found.get(data) != sums]
    if changed and not accept:
        raise ValueError(
            f"expected the data that {folder.path} was started on, got other files of {', '.join(changed)}"
        )
    about = {**(now or {}), "data": found}
    differing = differences(before, about)
    if differing and not accept:
        raise ValueError(
            f"expected the setting that {folder.path} was started in, got {', '.join(differing)}; --accept-changes "
            "resumes it, and marks the rows that it adds"
        )
    if not differing:
        return Plan(name, config, lab, before, folder, most)
    note = "; ".join(filter(None, (before.get("note"), f"resumed after changes: {', '.join(differing)}")))
    return Plan(name, config, lab, {**before, "note": note}, folder, most)


def same_again(plan: Plan, now: Mapping[str, Any], *, accept: bool = False) -> tuple[Plan, str]:
    """The unfinished run that a new one would be over again, to go on with, or the new one; and a line about it.

    It is the latest one of the same settings. Other data or code make a new run; another machine, or other packages,
    are refused as for any run that is resumed.

    Args:
        plan: plan of the new run.
        now: of its ``environment.json``, what the machine and the programs are.
        accept: go on with what differs, and mark the rows.

    Raises:
        ValueError: the run cannot be resumed here.
    """
    folder = next(_of_these_settings(plan, "unfinished"), None)
    if folder is None:
        return plan, ""
    if other := _other_work(folder.environment(), plan.about):
        resume = f"`{plan.name} --resume {folder.path}` resumes it"
        return plan, f"a new run: {folder.path} has the same settings and is unfinished, but {other}; {resume}"
    try:
        again = resumed_plan(plan.name, str(folder.path), plan.lab, plan.most, now, accept=accept)
    except ValueError as error:
        raise ValueError(f"{error}; --fresh starts a new run") from error
    return again, f"resuming {folder.path}, which has the same settings and is unfinished (--fresh: a new run)"


def done_before(plan: Plan) -> RunFolder | None:
    """The latest finished run that gives what a new one would give bit for bit; ``None`` where there is none."""
    for folder in _of_these_settings(plan, "finished"):
        before = folder.environment()
        same = before.get("threads") == plan.about.get("threads") and not differences(before, plan.about)
        if same and not _other_work(before, plan.about):
            return folder
    return None


def _of_these_settings(plan: Plan, status: str) -> Iterator[RunFolder]:
    """Runs that have the settings of a plan, the latest first."""
    for info in reversed(list_runs(plan.lab.out)):
        if (info.experiment, info.status) == (plan.name, status):
            folder = RunFolder.open(info.path)
            if _has_settings(folder, plan):
                yield folder


def _other_work(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why a run of the same settings is not the same work; empty where it is."""
    codes = [about.get("git") or {} for about in (before, now)]
    if before.get("data") != now.get("data"):
        return "other data"
    if codes[0].get("commit") != codes[1].get("commit"):
        return "code of another commit"
    return "code with changes that no commit has" if any(code.get("dirty") for code in codes) else ""


def _has_settings(folder: RunFolder, plan: Plan) -> bool:
    """Whether a run has the settings of a plan; one that cannot be read has others."""
    try:
        return folder.config(type(plan.config)) == plan.config
    except ValueError:
        return False


def _with_data(module: ModuleType, config: Any, lab: Lab, given: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """The configuration with data that are there, and a note where others are used instead of the default.

    Where other data are asked for by name, they get the settings that they would have as substitutes, and these are
    told.
    """
    substitutes = list(module.substitutes(config, set(given)))
    if {"config", "preset"} & set(given):
        return config, {"note": ""}
    if "dataset" in given:
        return _as_substitute(config, [other for other, _ in substitutes])
    first: DataUnavailable | None = None
    for candidate, note in [(config, ""), *substitutes]:
        try:
            checksums(module, candidate, lab)
        except DataUnavailable as error:
            first = first or error
        else:
            return candidate, {"note": note}
    assert first is not None
    raise first


def _as_substitute(config: Any, others: Sequence[Any]) -> tuple[Any, dict[str, str]]:
    """The settings that data asked for by name have as substitutes, and which they are."""
    other = next((other for other in others if datasets_of(other) == datasets_of(config)), config)
    before, after = to_mapping(config), to_mapping(other)
    changed = [f"--{name.replace('_', '-')} {_plain(value)}" for name, value in after.items() if value != before[name]]
    own = f"{', '.join(datasets_of(other))} with settings of their own: {' '.join(changed)}" if changed else ""
    return other, {"note": "", "settings": own}


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def checksums(module: ModuleType, config: Any, lab: Lab) -> dict[str, dict[str, str]]:
    """The sha256 of the files of every data set of a run."""
    return {data.name: dict(data.sha256) for data in _data(module, config, lab)}


def _data_notes(module: ModuleType, config: Any, lab: Lab) -> list[str]:
    """What must be known about the data of a run."""
    return [data.note for data in _data(module, config, lab)]


def _data(module: ModuleType, config: Any, lab: Lab) -> list[Dataset | Corpus]:
    names = module.datasets(config, lab) if hasattr(module, "datasets") else datasets_of(config)
    of_words = [
        name not in DATASETS and is_corpus(name) and (name in CORPORA or not holds_images(Path(name))) for name in names
    ]
    return [lab.corpus(n) if words else lab.dataset(n) for n, words in zip(names, of_words, strict=True)]


def training_title(config: VAEConfig) -> str:
    """The training of a model in words."""
    layers = f", {len(config.hidden)} hidden decoder layers" if len(config.hidden) != len(VAEConfig().hidden) else ""
    return f"train {describe(model_factors(config))}{layers}"
