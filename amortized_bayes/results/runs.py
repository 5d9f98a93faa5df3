"""The runs under one folder: all of them, or the one that is asked for."""

from __future__ import annotations

import difflib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from amortized_bayes.results.environment_file import parse_environment
from amortized_bayes.results.folder import RunFolder
from amortized_bayes.results.seals import Seals

__all__ = ["RunInfo", "find_run", "list_runs"]


class RunInfo(NamedTuple):
    """One line of ``list_runs``.

    ``status`` is ``"finished"``, ``"failed"`` (finished, and every job of it failed), ``"unfinished"`` or
    ``"damaged"``, where ``damage`` says in a line what cannot be read; ``started`` is UTC in ISO form, ``part_of``
    names the run that this one was started for, if any.
    """

    path: Path
    experiment: str
    name: str
    status: str
    num_jobs: int
    started: str
    part_of: str
    damage: str = ""


def list_runs(out: Path) -> list[RunInfo]:
    """Return every run under ``out``, the oldest first; none if there is no such folder.

    Settings, ``environment.json`` and marks are compared with what they were kept as; all else is when it is read.
    Folders whose start was interrupted are no runs.
    """
    found = {path.parent for seal in ("STARTED", "FINISHED") for path in Path(out).glob(f"[!.]*/[!.]*/{seal}")}
    infos = [_info(RunFolder(path)) for path in found]
    return sorted(infos, key=lambda info: (info.started, info.experiment, info.name))


def _info(run: RunFolder) -> RunInfo:
    try:
        RunFolder.open(run.path)
        seals = Seals(run.path)
        seals.read("config.yaml")
        about = parse_environment(seals.read("environment.json"), run.path / "environment.json")
        marks = {job: mark["status"] for job, mark in seals.marks.items()}
        started = str(about["started"])
    except (OSError, ValueError, LookupError) as error:
        made = datetime.fromtimestamp(run.path.lstat().st_mtime, UTC).isoformat()
        damage = f"no time in environment.json: {error}" if isinstance(error, LookupError) else f"{error}"
        return RunInfo(run.path, run.experiment, run.name, "damaged", 0, made, "", damage)
    failed = bool(marks) and set(marks.values()) == {"failed"}
    status = ("failed" if failed else "finished") if seals.finished else "unfinished"
    part_of = str(about.get("part_of", ""))
    return RunInfo(run.path, run.experiment, run.name, status, len(marks), started, part_of)


def find_run(out: Path, text: str, experiment: str | None = None, statuses: tuple[str, ...] = ()) -> Path:
    """Return the run that ``text`` means: a path, ``experiment/run``, the name of a run, or ``latest``.

    ``latest`` is the run that was started last, of those of ``experiment`` and with one of ``statuses`` where these are
    given; runs that another run started for itself count only where their kind is asked for and has no other.

    Raises ``ValueError`` where there is none, more than one, where a run of another kind is meant, or where ``latest``
    may be one that is damaged.
    """
    if text != "latest" and any(os.path.lexists(Path(text) / file) for file in ("config.yaml", "STARTED", "FINISHED")):
        return _of_kind(RunFolder.open(Path(text)).path, experiment)
    infos = list_runs(out)
    if text == "latest":
        statuses = (*statuses, "damaged") if statuses else ()
        meant = [i for i in infos if experiment in (None, i.experiment) and (not statuses or i.status in statuses)]
        meant = [i for i in meant if not i.part_of] or [i for i in meant if experiment is not None]
        if not meant:
            kind = " ".join([" or ".join(statuses[:-1]), "run"]).strip()
            article = "an" if kind.startswith("un") else "a"
            of = f" of {experiment}" if experiment else ""
            raise ValueError(f"expected {article} {kind}{of} under {out}, got none")
        if meant[-1].damage:
            raise ValueError(f"the latest run is damaged: {meant[-1].damage}; name another, or see `verify`")
        return meant[-1].path
    found = [info.path for info in infos if text in (info.name, f"{info.experiment}/{info.name}")]
    if len(found) == 1:
        return _of_kind(found[0], experiment)
    names = [f"{info.experiment}/{info.name}" for info in infos]
    if found:
        those = ", ".join(name for name, info in zip(names, infos, strict=True) if info.path in found)
        raise ValueError(f"expected one run, got {text!r} for several: {those}")
    near = difflib.get_close_matches(text, [*names, *(info.name for info in infos)], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {len(names)} runs"
    raise ValueError(f"expected a run under {out}, got {text!r}: no such run{hint}")


def _of_kind(path: Path, experiment: str | None) -> Path:
    kind = RunFolder.open(path).experiment
    if experiment not in (None, kind):
        raise ValueError(f"expected a run of {experiment}, got {path}, a run of {kind}")
    return path
