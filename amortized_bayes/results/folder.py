"""One run on disk: rows, marks of finished jobs, checkpoints and arrays, written under a lock and read again."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from amortized_bayes.plain_files import check_folder
from amortized_bayes.results import durable
from amortized_bayes.results.arrays import save_arrays
from amortized_bayes.results.checkpoints import save_tensors
from amortized_bayes.results.creation import create_run
from amortized_bayes.results.durable import sha256, write_atomically, writing
from amortized_bayes.results.places import check_name
from amortized_bayes.results.reading import RunReader
from amortized_bayes.results.repair import repair
from amortized_bayes.results.rows import Line, check_mark, check_row, good_lines, mark, to_frame
from amortized_bayes.results.seals import Seals, read_file, seal
from amortized_bayes.results.summary import summarise
from amortized_bayes.results.unfinished import has_unfinished, remove_unfinished, unfinished_name
from amortized_bayes.results.verification import checksums
from amortized_bayes.types import Row

if TYPE_CHECKING:
    import numpy as np

__all__ = ["RunFolder"]


class RunFolder(RunReader):
    """One run on disk, from ``create`` or ``open``; ``with run:`` locks it for writing.

    ``recovered`` says in words what a crash before had left torn, and was cut off on entering. Every method that
    writes raises ``ValueError`` outside ``with``, on a finished run, and where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.recovered: list[str] = []
        self._lock: int | None = None
        self._files: dict[str, int] = {}
        self._done: dict[str, str] = {}
        self._rows: Counter[str] = Counter()
        self._sums: defaultdict[str, Any] = defaultdict(hashlib.sha256)
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

    def __enter__(self) -> Self:
        check_folder(self.path)
        self._lock = durable.take_lock(self.path / "lock")
        try:
            if not self.finished:
                self._recover()
                self.check()
                self._done, self._kept = self.done(), {}
                for file in ("rows.jsonl", "done.jsonl"):
                    self._files[file] = durable.open_for_append(self.path / file)
                self._count_rows()
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
        self._count(line.encode(), job)

    def _count(self, line: bytes, job: str) -> None:
        """Keep the number of rows of a job, and their running checksum, for its mark."""
        self._rows[job] += 1
        self._sums[job].update(line + b"\n")

    def _count_rows(self) -> None:
        """Count the rows on disk of jobs that are not done."""
        self._rows.clear()
        self._sums.clear()
        for line in self._lines("rows.jsonl"):
            if line.content["job"] not in self._done:
                self._count(line.data, line.content["job"])

    def mark_done(self, key: str, status: str = "ok") -> None:
        """Sync the rows to disk, then record that the job ``key`` has ended, ``"ok"`` or ``"failed"``.

        The mark says how many rows the job has, their checksum, and that of each file that was saved for it, or for no
        job in particular since the mark before.
        """
        files = self._writable()
        kept = {**self._kept.get("", {}), **self._kept.get(key, {})}
        line = json.dumps(mark(key, status, self._rows[key], kept, self._sums[key].hexdigest()))
        if key in self._done:
            return
        with writing(self.path / "done.jsonl"):
            os.fsync(files["rows.jsonl"])
            durable.append_line(files["done.jsonl"], line)
            os.fsync(files["done.jsonl"])
        self._done[key] = status
        for job in ("", key):
            self._kept.pop(job, None)
        if status == "ok":  # of a job that failed, the last good state stays
            remove_unfinished(self.path, key)

    def forget(self, keys: Collection[str]) -> None:
        """Remove the marks of jobs, which are then run again."""
        self._writable()
        kept = [line for line in self._lines("done.jsonl") if line.content["job"] not in keys]
        self._rewrite("done.jsonl", kept)
        self._done = {line.content["job"]: line.content["status"] for line in kept}
        self._count_rows()

    def done(self) -> dict[str, str]:
        """Return the keys of the jobs that have ended, and how each did: ``"ok"`` or ``"failed"``."""
        if self._files:  # locked: nobody else adds any
            return dict(self._done)
        return super().done()

    def drop_unfinished_rows(self, job: str | None = None) -> int:
        """Rewrite the rows without those of unfinished jobs, or of one ``job``: the first step of a resume.

        Returns how many rows went; they come back when their job is run again.
        """
        self._writable()
        keep = {"", *self.done()}
        lines = self._lines("rows.jsonl")
        kept = [line for line in lines if line.content["job"] in keep or job not in (None, line.content["job"])]
        if len(kept) < len(lines):
            self._rewrite("rows.jsonl", kept)
            self._count_rows()
        return len(lines) - len(kept)

    def sort(self, keys: Sequence[str]) -> None:
        """Put rows and marks in the order of the jobs ``keys``, whichever finished first."""
        self._writable()
        place = {key: number for number, key in enumerate(("", *keys))}
        for file in ("rows.jsonl", "done.jsonl"):
            lines = self._lines(file)
            ordered = sorted(lines, key=lambda line: place.get(line.content["job"], len(place)))
            if ordered != lines:
                self._rewrite(file, ordered)

    def _lines(self, file: str) -> list[Line]:
        check = check_row if file == "rows.jsonl" else check_mark
        return good_lines(read_file(self.path, file), self.path / file, check)

    def _rewrite(self, file: str, lines: list[Line]) -> None:
        os.close(self._files.pop(file))  # Windows replaces no file that is open
        try:
            write_atomically(self.path / file, b"".join(line.data + b"\n" for line in lines))
        finally:
            self._files[file] = durable.open_for_append(self.path / file)

    def save_tensors(
        self, name: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None, job: str = ""
    ) -> None:
        """Save arrays and numbers as the checkpoint ``name`` of ``job``, and keep the previous generation.

        ``metadata`` maps texts to texts. Raises ``ValueError`` for what is not numbers.
        """
        self._writable()
        self._keep(save_tensors(self.path, name, tensors, metadata), job)

    def save_unfinished(self, job: str, tensors: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> None:
        """Save what the unfinished ``job`` needs to resume from here; it is removed when the job ends."""
        self._writable()
        save_tensors(self.path, unfinished_name(job), tensors, texts)

    def load_unfinished(self, job: str) -> tuple[dict[str, np.ndarray], dict[str, str]] | None:
        """Return what an unfinished job saved, ``None`` for one that starts; checked like any checkpoint."""
        if not has_unfinished(self.path, job):
            return None
        name = unfinished_name(job)
        return self.load_tensors(name), self.load_metadata(name)

    def save_arrays(self, name: str, job: str = "", /, **arrays: np.ndarray) -> None:
        """Save arrays of ``job`` as ``arrays/<name>.npz``. Raises ``ValueError`` for an array of objects."""
        self._writable()
        self._keep(save_arrays(self.path, name, arrays), job)

    def save_file(self, name: str, data: bytes, job: str = "") -> None:
        """Write a file of ``job``, such as ``diagnosis_train.safetensors``, whole or not at all."""
        self._writable()
        path = self.path / check_name("file", name)
        write_atomically(path, data)
        self._keep(path, job)

    def _keep(self, path: Path, job: str) -> None:
        self._kept.setdefault(job, {})[path.relative_to(self.path).as_posix()] = sha256(path.read_bytes())

    def finish(self) -> None:
        """Close the run for good: write ``summary.csv``, and the checksums of all files to ``FINISHED``.

        Raises ``ValueError`` where rows of a job are there that was not marked done, and where a file is not what it
        was kept as: ``FINISHED`` would certify it.
        """
        files = self._writable()
        seals = Seals(self.path)
        rows = [line.content for line in seals.rows()]
        unfinished = sorted({line["job"] for line in rows} - self._done.keys() - {""})
        if unfinished:
            raise ValueError(f"{self.path} cannot be finished: job {unfinished[0]!r} has rows and is not marked done")
        if seals.marks.keys() != self._done.keys():
            raise ValueError(f"{self.path} cannot be finished: marks are missing from done.jsonl; resume the run")
        for job in (job for job, status in self._done.items() if status == "ok"):  # a kill may have left some of it
            remove_unfinished(self.path, job)
        text = summarise(to_frame(rows)).to_csv(index=False, lineterminator="\n")
        write_atomically(self.path / "summary.csv", text.encode(errors="backslashreplace"))
        with writing(self.path / "rows.jsonl"):
            os.fsync(files["rows.jsonl"])
        write_atomically(self.path / "FINISHED", seal("finished", checksums(self.path, seals)))

    def repair(self) -> list[str]:
        """Leave out what is damaged, and return a line for each change.

        Of a finished run, files that are gone are no longer expected. Of an unfinished one, lines that cannot be read
        go, and so do the marks of jobs whose rows or files have changed: a resume runs these again. Raises
        ``ValueError`` where something else is damaged, which nothing gives again.
        """
        check_folder(self.path)
        lock = durable.take_lock(self.path / "lock")
        try:
            if not self.finished:
                self._recover()
            return repair(self.path)
        finally:
            durable.release_lock(lock)

    def _writable(self) -> dict[str, int]:
        """Descriptors of the files of lines, if this process may write to the run."""
        if self.finished:
            raise ValueError(f"{self.path} is finished and cannot be changed: expected an unfinished run")
        if not self._files:
            raise ValueError(f"{self.path} is not locked for writing: expected `with run:` around what writes to it")
        return self._files

    def _recover(self) -> None:
        for folder in (self.path, self.path / "checkpoints", self.path / "arrays"):
            check_folder(folder)
            durable.remove_leftovers(folder)
        for file in ("rows.jsonl", "done.jsonl"):
            torn = durable.cut_torn_line(self.path / file)
            if torn:
                self.recovered.append(f"{file}: {len(torn)} bytes of an unfinished last line were cut off")
