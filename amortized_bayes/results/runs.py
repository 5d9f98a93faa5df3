"""The runs under one folder: all of them, or the one that is meant."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import NamedTuple

from amortized_bayes.results.folder import RunFolder
from amortized_bayes.results.rows import check_fit, read_lines

__all__ = ["RunInfo", "find_run", "list_runs"]


class RunInfo(NamedTuple):
    """One line of ``list_runs``. ``status`` is ``"finished"`` or ``"unfinished"``, ``started`` is UTC in ISO form."""

    path: Path
    experiment: str
    name: str
    status: str
    num_fits: int
    started: str


def list_runs(out: Path) -> list[RunInfo]:
    """Return every run under ``out``, the oldest first; nothing where there is no such folder."""
    infos = []
    for config in Path(out).glob("[!.]*/[!.]*/config.yaml"):
        try:
            run = RunFolder.open(config.parent)
            started = str(json.loads((run.path / "environment.json").read_bytes())["started"])
        except (OSError, ValueError, LookupError, TypeError):
            continue
        marks = [line for line in read_lines(run.path / "done.jsonl", check_fit) if not isinstance(line, ValueError)]
        status = "finished" if run.finished else "unfinished"
        infos.append(RunInfo(run.path, run.experiment, run.name, status, len({m["fit"] for m in marks}), started))
    return sorted(infos, key=lambda info: (info.started, info.experiment, info.name))


def find_run(out: Path, text: str, experiment: str | None = None) -> Path:
    """Return the run that ``text`` means: a path, ``experiment/run``, the name of a run, or ``latest``.

    ``experiment`` narrows ``latest`` to runs of one kind.

    Raises ``ValueError`` where there is none, or more than one.
    """
    if (Path(text) / "config.yaml").is_file():
        return Path(text)
    infos = list_runs(out)
    of_kind = [info for info in infos if experiment in (None, info.experiment)]
    if text == "latest" and of_kind:
        # the last that was written to: an experiment may start runs of its own, which end before it does
        return max(of_kind, key=lambda info: ((info.path / "rows.jsonl").stat().st_mtime_ns, info.started)).path
    found = [info.path for info in infos if text in (info.name, f"{info.experiment}/{info.name}")]
    if len(found) == 1:
        return found[0]
    names = [f"{info.experiment}/{info.name}" for info in infos]
    if found:
        those = ", ".join(name for name, info in zip(names, infos, strict=True) if info.path in found)
        raise ValueError(f"expected one run, got {text!r} for several: {those}")
    near = difflib.get_close_matches(text, [*names, *(info.name for info in infos)], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {len(names)} runs"
    raise ValueError(f"expected a run under {out}, got {text!r}: no such run{hint}")
