"""One run on disk: rows, marks of finished jobs, checkpoints and arrays go in, under a lock, and come out again."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from amortized_bayes.results import durable
from amortized_bayes.results.arrays import load_arrays, save_arrays
from amortized_bayes.results.checkpoints import load_metadata, load_tensors, save_tensors
from amortized_bayes.results.creation import create_run
from amortized_bayes.results.durable import sha256, write_atomically, writing
from amortized_bayes.results.encoding import json_bytes
from amortized_bayes.results.places import REQUIRED, check_name
from amortized_bayes.results.rows import check_mark, check_row, good_lines, to_frame
from amortized_bayes.results.summary import summarise
from amortized_bayes.results.verification import checksums, problems, wrong_files
from amortized_bayes.types import Row

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = ["RunFolder"]


class RunFolder:
    """One run on disk. Made by ``create`` or ``open``; ``with run:`` locks it for writing.

    ``recovered`` says in words what a crash before had left torn, and was cut off on entering. Every method that
    writes raises ``ValueError`` outside ``with``, on a finished run, and where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.experiment, self.name = Path(os.path.abspath(path)).parts[-2:]
        self.recovered: list[str] = []
        self._lock: int | None = None
        self._files: dict[str, int] = {}
        self._done: dict[str, str] = {}
        self._rows: Counter[str] = Counter()
        self._kept: dict[str, dict[str, str]] = {}

    @classmethod
    def create(
        cls,
        out: Path,
        experiment: str,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        name: str | None = None,
    ) -> Self:
        """Make a new run folder; ``name`` is by default the time and a hash of ``config``.

        Raises ``ValueError`` where the run is there already, a name cannot be a folder, ``config`` or
        ``environment`` holds what YAML or JSON does not, or ``out`` cannot be written to.
        """
        return cls(create_run(out, experiment, config, environment, name))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a run folder. Raises ``ValueError`` that says which file is missing."""
        path = Path(path)
        if not path.is_dir():
            raise ValueError(f"expected a run folder, got {path}: no such folder")
        missing = [file for file in REQUIRED if not (path / file).is_file()]
        if missing:
            raise ValueError(f"expected a run folder, got {path}: no {missing[0]} in it")
        return cls(path)

    def __enter__(self) -> Self:
        self._lock = durable.take_lock(self.path / "lock")
        try:
            if not self.finished:
                self._recover()
                self._done = self.done()
                self._rows, self._kept = Counter(), {}
                for file in ("rows.jsonl", "done.jsonl"):
                    self._files[file] = durable.open_for_append(self.path / file)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}
        if self._lock is not None:
            durable.release_lock(self._lock)
        self._lock = None

    @property
    def finished(self) -> bool:
        """Whether ``finish`` was called: nothing is written to this run any more."""
        return (self.path / "FINISHED").exists()

    def append(self, row: Row, job: str = "") -> None:
        """Append one row, as one line by one write.

        ``job`` is the key of the job that the row belongs to: the row counts once ``mark_done(job)`` was called. A row
        without one counts at once and stays on resume. Raises ``ValueError`` for a number that is not finite (the
        caller records a row of status ``"failed"``), and for a job that is done already.
        """
        line = json.dumps(check_row({**row._asdict(), "factors": dict(row.factors), "job": job}), allow_nan=False)
        files = self._writable()
        if job in self._done:
            raise ValueError(f"job {job!r} of {self.path} is done already: expected rows of another job")
        with writing(self.path / "rows.jsonl"):
            durable.append_line(files["rows.jsonl"], line)
        self._rows[job] += 1

    def mark_done(self, key: str, status: str = "ok") -> None:
        """Sync the rows to disk, then record that the job ``key`` has ended, ``"ok"`` or ``"failed"``.

        The mark says how many rows the job has, and the checksum of each file that was saved for it, or for no job in
        particular since the mark before.
        """
        files = self._writable()
        kept = {**self._kept.get("", {}), **self._kept.get(key, {})}
        mark = {"job": key, "status": status, "rows": self._rows[key], "files": kept}
        line = json.dumps(check_mark(mark))
        if key in self._done:
            return
        with writing(self.path / "done.jsonl"):
            os.fsync(files["rows.jsonl"])
            durable.append_line(files["done.jsonl"], line)
            os.fsync(files["done.jsonl"])
        self._done[key] = status
        for job in ("", key):
            self._kept.pop(job, None)

    def damaged(self) -> dict[str, str]:
        """Return the jobs whose results are no longer those that they were marked with, and what is wrong with each."""
        counts = Counter(line["job"] for line in good_lines(self.path / "rows.jsonl", check_row))
        found = {}
        for mark in good_lines(self.path / "done.jsonl", check_mark):
            wrong = wrong_files(self.path, mark["files"])
            if counts[mark["job"]] < mark["rows"]:
                wrong.append(f"rows.jsonl: {counts[mark['job']]} of {mark['rows']} rows")
            if wrong:
                found[mark["job"]] = wrong[0]
        return found

    def forget(self, keys: Collection[str]) -> None:
        """Take back the marks of jobs, which are then run again."""
        self._writable()
        kept = [line for line in good_lines(self.path / "done.jsonl", check_mark) if line["job"] not in keys]
        self._rewrite("done.jsonl", kept)
        self._done = {line["job"]: line["status"] for line in kept}

    def done(self) -> dict[str, str]:
        """Return the keys of the jobs that have ended, and how each did: ``"ok"`` or ``"failed"``."""
        if self._files:  # locked: nobody else adds any
            return dict(self._done)
        return {line["job"]: line["status"] for line in good_lines(self.path / "done.jsonl", check_mark)}

    def drop_unfinished_rows(self) -> int:
        """Rewrite the rows without those of jobs that are not done: the first step of a resume.

        Returns how many rows went; they come back when their job is run again.
        """
        self._writable()
        keep = {"", *self.done()}
        lines = good_lines(self.path / "rows.jsonl", check_row)
        kept = [line for line in lines if line["job"] in keep]
        if len(kept) < len(lines):
            self._rewrite("rows.jsonl", kept)
        return len(lines) - len(kept)

    def sort(self, keys: Sequence[str]) -> None:
        """Put rows and marks in the order of the jobs ``keys``, whichever of them was done first."""
        self._writable()
        place = {key: number for number, key in enumerate(("", *keys))}
        for file, check in (("rows.jsonl", check_row), ("done.jsonl", check_mark)):
            lines = good_lines(self.path / file, check)
            ordered = sorted(lines, key=lambda line: place.get(line["job"], len(place)))
            if ordered != lines:
                self._rewrite(file, ordered)

    def _rewrite(self, file: str, lines: list[dict[str, Any]]) -> None:
        data = "".join(f"{json.dumps(line, allow_nan=False)}\n" for line in lines).encode()
        write_atomically(self.path / file, data)
        os.close(self._files.pop(file))
        self._files[file] = durable.open_for_append(self.path / file)

    def rows(self, job: str | None = None) -> pd.DataFrame:
        """Return the rows of jobs that are done, or of one ``job``, as a frame, in the order of writing.

        Each factor is a column; see :func:`amortized_bayes.results.rows.to_frame`. Raises ``ValueError`` naming a line
        that is no row.
        """
        lines = good_lines(self.path / "rows.jsonl", check_row)
        keep = {"", *self.done()} if job is None else {job}
        return to_frame(line for line in lines if line["job"] in keep)

    def environment(self) -> dict[str, Any]:
        """Return what ``environment.json`` says. Raises ``ValueError`` where it cannot be read."""
        path = self.path / "environment.json"
        try:
            content = json.loads(path.read_bytes())
            if not isinstance(content, dict):
                raise ValueError(f"expected a mapping, got {type(content).__name__}")
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        return content

    def save_tensors(
        self, name: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None, job: str = ""
    ) -> None:
        """Save arrays and numbers as the checkpoint ``name`` of ``job``, and keep the generation before.

        ``metadata`` maps texts to texts. Raises ``ValueError`` for what is not numbers.
        """
        self._writable()
        self._keep(save_tensors(self.path, name, tensors, metadata), job)

    def load_tensors(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of checkpoint ``name``, checked against its checksum.

        Where it does not match, the generation before is used, with a warning; without one, raises ``ValueError``.
        """
        return load_tensors(self.path, name)

    def load_metadata(self, name: str) -> dict[str, str]:
        """Return the metadata saved with checkpoint ``name``; checks and errors as ``load_tensors``."""
        return load_metadata(self.path, name)

    def save_arrays(self, name: str, job: str = "", /, **arrays: np.ndarray) -> None:
        """Save what figures need of ``job`` as ``arrays/<name>.npz``. Raises ``ValueError`` for an array of objects."""
        self._writable()
        self._keep(save_arrays(self.path, name, arrays), job)

    def load_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays saved under ``name``. Nothing is unpickled. Raises ``ValueError`` for a damaged file."""
        return load_arrays(self.path, name)

    def save_file(self, name: str, data: bytes, job: str = "") -> None:
        """Write a file of ``job``, such as ``diagnosis_train.safetensors``, whole or not at all."""
        self._writable()
        path = self.path / check_name("file", name)
        write_atomically(path, data)
        self._keep(path, job)

    def _keep(self, path: Path, job: str) -> None:
        self._kept.setdefault(job, {})[str(path.relative_to(self.path))] = sha256(path.read_bytes())

    def finish(self) -> None:
        """Close the run for good: write ``summary.csv``, and the checksums of all files to ``FINISHED``.

        Raises ``ValueError`` where rows of a job are there that was not marked done.
        """
        files = self._writable()
        lines = good_lines(self.path / "rows.jsonl", check_row)
        unfinished = sorted({line["job"] for line in lines} - self._done.keys() - {""})
        if unfinished:
            raise ValueError(f"{self.path} cannot be finished: job {unfinished[0]!r} has rows and is not marked done")
        text = summarise(self.rows()).to_csv(index=False, lineterminator="\n")
        write_atomically(self.path / "summary.csv", text.encode(errors="backslashreplace"))
        with writing(self.path / "rows.jsonl"):
            os.fsync(files["rows.jsonl"])
        content = {"finished": datetime.now(UTC).isoformat(), "sha256": checksums(self.path)}
        write_atomically(self.path / "FINISHED", json_bytes(content))

    def verify(self) -> list[str]:
        """Return a line for each thing that is wrong: a file missing or changed, a bad line, a bad checkpoint."""
        return problems(self.path)

    def _writable(self) -> dict[str, int]:
        """Descriptors of the files of lines, if this process may write to the run."""
        if self.finished:
            raise ValueError(f"{self.path} is finished and is not changed any more: expected an unfinished run")
        if not self._files:
            raise ValueError(f"{self.path} is not locked for writing: expected `with run:` around what writes to it")
        return self._files

    def _recover(self) -> None:
        for folder in (self.path, self.path / "checkpoints", self.path / "arrays"):
            durable.remove_leftovers(folder)
        for file in ("rows.jsonl", "done.jsonl"):
            torn = durable.cut_torn_line(self.path / file)
            if torn:
                self.recovered.append(f"{file}: {len(torn)} bytes of an unfinished last line were cut off")
