"""The runs under one folder: all of them, or the one that is meant."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

from amortized_bayes.results.folder import RunFolder
from amortized_bayes.results.rows import check_mark, read_lines

__all__ = ["RunInfo", "find_run", "list_runs"]


class RunInfo(NamedTuple):
    """One line of ``list_runs``.

    ``status`` is ``"finished"``, ``"failed"`` (finished, and every job of it failed) or ``"unfinished"``, ``started``
    is UTC in ISO form, ``part_of`` names the run that this one was started for, if any.
    """

    path: Path
    experiment: str
    name: str
    status: str
    num_jobs: int
    started: str
    part_of: str


def list_runs(out: Path) -> list[RunInfo]:
    """Return every run under ``out`` that can be read, the oldest first; nothing where there is no such folder."""
    infos = []
    for config in Path(out).glob("[!.]*/[!.]*/config.yaml"):
        try:
            run = RunFolder.open(config.parent)
            about = run.environment()
            started = str(about["started"])
        except (OSError, ValueError, LookupError):
            continue
        lines = [line for line in read_lines(run.path / "done.jsonl", check_mark) if not isinstance(line, ValueError)]
        marks = {line["job"]: line["status"] for line in lines}
        failed = bool(marks) and set(marks.values()) == {"failed"}
        status = ("failed" if failed else "finished") if run.finished else "unfinished"
        part_of = str(about.get("part_of", ""))
        infos.append(RunInfo(run.path, run.experiment, run.name, status, len(marks), started, part_of))
    return sorted(infos, key=lambda info: (info.started, info.experiment, info.name))


def find_run(out: Path, text: str, experiment: str | None = None, statuses: tuple[str, ...] = ()) -> Path:
    """Return the run that ``text`` means: a path, ``experiment/run``, the name of a run, or ``latest``.

    ``latest`` is the run that was started last, of those of ``experiment`` and with one of ``statuses`` where these are
    given; runs that another run started for itself count only where their kind is asked for and has no other.

    Raises ``ValueError`` where there is none, more than one, or where a run of another kind is meant.
    """
    if text != "latest" and (Path(text) / "config.yaml").is_file():
        return _of_kind(RunFolder.open(Path(text)).path, experiment)
    infos = list_runs(out)
    if text == "latest":
        meant = [i for i in infos if experiment in (None, i.experiment) and (not statuses or i.status in statuses)]
        meant = [i for i in meant if not i.part_of] or [i for i in meant if experiment is not None]
        if not meant:
            kind = " ".join([" or ".join(statuses), "run"]).strip()
            article = "an" if kind.startswith("un") else "a"
            of = f" of {experiment}" if experiment else ""
            raise ValueError(f"expected {article} {kind}{of} under {out}, got none")
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
