"""One run on disk: rows, marks of finished fits, checkpoints and arrays go in, under a lock, and come out again."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from amortized_bayes.results import durable
from amortized_bayes.results.arrays import load_arrays, save_arrays
from amortized_bayes.results.checkpoints import load_metadata, load_tensors, save_tensors
from amortized_bayes.results.creation import create_run
from amortized_bayes.results.durable import write_atomically, writing
from amortized_bayes.results.encoding import json_bytes
from amortized_bayes.results.places import REQUIRED
from amortized_bayes.results.rows import check_fit, check_row, good_lines, to_frame
from amortized_bayes.results.summary import summarise
from amortized_bayes.results.verification import checksums, problems
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
        self._done: set[str] = set()

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

    def append(self, row: Row, fit: str = "") -> None:
        """Append one row, as one line by one write.

        ``fit`` is the key of the fit that the row belongs to: the row counts once ``mark_done(fit)`` was called. A row
        without one counts at once and stays on resume. Raises ``ValueError`` for a number that is not finite (the
        caller records a row of status ``"failed"``), and for a fit that is done already.
        """
        line = json.dumps(check_row({**row._asdict(), "fit": fit}), allow_nan=False)
        files = self._writable()
        if fit in self._done:
            raise ValueError(f"fit {fit!r} of {self.path} is done already: expected rows of another fit")
        with writing(self.path / "rows.jsonl"):
            durable.append_line(files["rows.jsonl"], line)

    def append_all(self, rows: Iterable[Row], fit: str = "") -> None:
        """Append rows one by one; see ``append``."""
        for row in rows:
            self.append(row, fit)

    def mark_done(self, key: str) -> None:
        """Sync the rows to disk, then record that the fit ``key`` is finished."""
        files = self._writable()
        line = json.dumps(check_fit({"fit": key}))
        if key in self._done:
            return
        with writing(self.path / "done.jsonl"):
            os.fsync(files["rows.jsonl"])
            durable.append_line(files["done.jsonl"], line)
            os.fsync(files["done.jsonl"])
        self._done.add(key)

    def done(self) -> set[str]:
        """Return the keys of the finished fits."""
        if self._files:  # locked: nobody else adds any
            return set(self._done)
        return {line["fit"] for line in good_lines(self.path / "done.jsonl", check_fit)}

    def drop_unfinished_rows(self, finished: Collection[str] = ()) -> int:
        """Rewrite the rows without those of fits that are not done, nor in ``finished``: the first step of a resume.

        Returns how many rows went; they come back when their fit is run again.
        """
        self._writable()
        keep = {"", *self.done(), *finished}
        lines = good_lines(self.path / "rows.jsonl", check_row)
        kept = [line for line in lines if line["fit"] in keep]
        if len(kept) < len(lines):
            data = "".join(f"{json.dumps(line, allow_nan=False)}\n" for line in kept).encode()
            write_atomically(self.path / "rows.jsonl", data)
            os.close(self._files.pop("rows.jsonl"))
            self._files["rows.jsonl"] = durable.open_for_append(self.path / "rows.jsonl")
        return len(lines) - len(kept)

    def rows(self, unfinished: bool = False) -> pd.DataFrame:
        """Return the rows as a frame with the columns ``ROW_FIELDS``, in the order of writing.

        Rows of fits that are not done are left out, unless ``unfinished``. ``k`` is ``Int64`` with ``NA``, ``seed`` and
        ``step`` are ``int64``, numbers ``float64`` with ``nan``. Raises ``ValueError`` naming a line that is no row.
        """
        lines = good_lines(self.path / "rows.jsonl", check_row)
        keep = {"", *self.done()}
        return to_frame(line for line in lines if unfinished or line["fit"] in keep)

    def write_summary(self, frame: pd.DataFrame) -> None:
        """Write ``summary.csv``."""
        self._writable()
        text = frame.to_csv(index=False, lineterminator="\n")
        write_atomically(self.path / "summary.csv", text.encode(errors="backslashreplace"))

    def save_tensors(
        self, name: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Save arrays and numbers as the checkpoint ``name``, and keep the generation before.

        ``metadata`` maps texts to texts. Raises ``ValueError`` for what is not numbers.
        """
        self._writable()
        save_tensors(self.path, name, tensors, metadata)

    def load_tensors(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of checkpoint ``name``, checked against its checksum.

        Where it does not match, the generation before is used, with a warning; without one, raises ``ValueError``.
        """
        return load_tensors(self.path, name)

    def load_metadata(self, name: str) -> dict[str, str]:
        """Return the metadata saved with checkpoint ``name``; checks and errors as ``load_tensors``."""
        return load_metadata(self.path, name)

    def save_arrays(self, name: str, /, **arrays: np.ndarray) -> None:
        """Save what figures need as ``arrays/<name>.npz``. Raises ``ValueError`` for an array of objects."""
        self._writable()
        save_arrays(self.path, name, arrays)

    def load_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays saved under ``name``. Nothing is unpickled. Raises ``ValueError`` for a damaged file."""
        return load_arrays(self.path, name)

    def finish(self) -> None:
        """Close the run for good: write the checksums of all its files to ``FINISHED``.

        A summary that nobody wrote is made by ``summarise``. Raises ``ValueError`` where rows of a fit are there that
        was not marked done.
        """
        files = self._writable()
        lines = good_lines(self.path / "rows.jsonl", check_row)
        open_fits = sorted({line["fit"] for line in lines} - self._done - {""})
        if open_fits:
            raise ValueError(f"{self.path} cannot be finished: fit {open_fits[0]!r} has rows and is not marked done")
        if not (self.path / "summary.csv").exists():
            self.write_summary(summarise(self.rows()))
        with writing(self.path / "rows.jsonl"):
            os.fsync(files["rows.jsonl"])
        sha256 = checksums(self.path)
        content = {"finished": datetime.now(UTC).isoformat(), "sha256": sha256}
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
