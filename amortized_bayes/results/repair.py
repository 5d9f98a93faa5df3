"""Repair of a damaged run: leave out what is damaged, and say so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amortized_bayes.results.durable import write_atomically
from amortized_bayes.results.places import REQUIRED
from amortized_bayes.results.rows import check_mark, check_row, good_lines, read_lines
from amortized_bayes.results.seals import Seals, finish_record, read_file, read_kept, read_seal, seal
from amortized_bayes.results.verification import refused, without

__all__ = ["repair"]


def repair(run: Path) -> list[str]:
    """Leave out what is damaged, and return a line for each change; ``run`` is locked by the caller.

    Of a finished run, files that are gone are no longer expected. Of an unfinished one, lines that cannot be read go,
    and so do the marks of jobs whose rows or files have changed: a resume runs these again.

    Raises:
        ValueError: settings or ``environment.json`` have changed, which nothing gives again.
    """
    if os.path.lexists(run / "FINISHED"):
        time, expected = finish_record(run)
        kept = {file: value for file, value in expected.items() if file in REQUIRED or os.path.lexists(run / file)}
        if kept != expected:
            write_atomically(run / "FINISHED", seal("finished", kept, time))
        return [f"{file}: missing, and no longer expected" for file in expected if file not in kept]
    started = read_seal(run, "STARTED")
    for file in REQUIRED[:2]:
        read_kept(run, file, started)
    said = [*_leave_out(run, "rows.jsonl", check_row), *_leave_out(run, "done.jsonl", check_mark)]
    return [*said, *(f"{job}: will be run again when the run is resumed" for job in _take_back(run))]


def _leave_out(run: Path, file: str, check: Callable[[dict[str, Any]], dict[str, Any]]) -> list[str]:
    """Leave out lines that cannot be read."""
    lines = list(read_lines(read_file(run, file), run / file, check))
    bad = [line for line in lines if isinstance(line, ValueError)]
    if bad:
        write_atomically(run / file, b"".join(line.data + b"\n" for line in lines if not isinstance(line, ValueError)))
    return [f"{without(run, error)}: left out" for error in bad]


def _take_back(run: Path) -> list[str]:
    """Remove the marks of jobs whose rows or files have changed, and return their keys."""
    seals = Seals(run)
    changed = set(seals.changed_rows(good_lines(seals.read("rows.jsonl"), run / "rows.jsonl", check_row)))
    bad = [job for job, mark in seals.marks.items() if job in changed or refused(seals, mark["files"])]
    if bad:
        lines = good_lines(seals.read("done.jsonl"), run / "done.jsonl", check_mark)
        kept = [line.data + b"\n" for line in lines if line.content["job"] not in bad]
        write_atomically(run / "done.jsonl", b"".join(kept))
    return bad
