"""Files of a run that a job reads on another machine: each is checked here, and can be checked again there."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from amortized_bayes.results.durable import load_generation, sha256
from amortized_bayes.results.places import REQUIRED
from amortized_bayes.results.rows import check_mark, good_lines
from amortized_bayes.results.seals import Seals, read_file
from amortized_bayes.results.unfinished import has_unfinished, unfinished_name

__all__ = ["excerpt", "finished_excerpt"]

FOLDERS = ("arrays/", "checkpoints/")
"""Folders with what a job leaves to others."""


def excerpt(run: Path, jobs: Collection[str], job: str) -> dict[str, bytes]:
    """Return the files of an unfinished run that ``job`` can read, by their names in it.

    These are the run's settings, rows and files of ``jobs``, which are done, and checkpoints of ``job`` itself.

    Raises:
        ValueError: one is not as it was kept.
    """
    seals = Seals(run)
    files = {file: seals.read(file) for file in ("STARTED", *REQUIRED[:2])}
    marks = good_lines(seals.read("done.jsonl"), run / "done.jsonl", check_mark)
    for name, lines in (("rows.jsonl", seals.rows()), ("done.jsonl", marks)):
        files[name] = b"".join(line.data + b"\n" for line in lines if line.content["job"] in jobs)
    of_jobs = [file for mark in marks if mark.content["job"] in jobs for file in mark.content["files"]]
    files |= {file: seals.read(file) for file in of_jobs if file.startswith(FOLDERS)}
    for path in _own_checkpoints(run, job):
        if (file := f"checkpoints/{path.name}") not in seals.of_files:
            files[file] = load_generation(path)
            files[f"checkpoints/{path.stem}.sha256"] = f"{sha256(files[file])}  {path.name}\n".encode()
    return files


def finished_excerpt(run: Path, checkpoints: Collection[str]) -> dict[str, bytes]:
    """Return the files of a finished run that say what it is, and some of its checkpoints, by their names in it.

    Raises:
        ValueError: one is not as it was kept.
    """
    seals = Seals(run)
    found = [file for name in checkpoints if (file := f"checkpoints/{name}.safetensors") in seals.of_files]
    return {file: seals.read(file) for file in (*REQUIRED, *found)} | {"FINISHED": read_file(run, "FINISHED")}


def _own_checkpoints(run: Path, job: str) -> list[Path]:
    """Checkpoints of an unfinished job; those of another job whose key starts alike do no harm."""
    paths = (run / "checkpoints").glob("[!.]*.safetensors")
    own = [path for path in paths if path.name.startswith(f"{job}.") and not path.stem.endswith(".previous")]
    kept = run / "checkpoints" / f"{unfinished_name(job)}.safetensors"
    if has_unfinished(run, job) and kept not in own:  # its newest generation is gone
        own.append(kept)
    return sorted(own)
