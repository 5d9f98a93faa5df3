"""Reading a run folder: every file is read here, and compared with its recorded checksum."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from amortized_bayes.configuration import parse_config
from amortized_bayes.results.arrays import arrays_of
from amortized_bayes.results.checkpoints import checkpoint_names, metadata_of, tensors_of
from amortized_bayes.results.durable import load_generation
from amortized_bayes.results.environment_file import parse_environment
from amortized_bayes.results.packing import is_there
from amortized_bayes.results.places import REQUIRED, saved_file
from amortized_bayes.results.rows import to_frame
from amortized_bayes.results.seals import Seals
from amortized_bayes.results.verification import damage, lost_files, problems

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)

__all__ = ["RunReader"]


class RunReader:
    """A run on disk, for reading; ``RunFolder`` also writes to it.

    Every method that reads raises ``ValueError`` of one line where a file is not what it was kept as.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.experiment, self.name = ("", "", *Path(os.path.realpath(path)).parts)[-2:]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a run folder. Raises ``ValueError`` that says which file is missing."""
        path = Path(path)
        if not path.is_dir():
            raise ValueError(f"expected a run folder, got {path}: no such folder")
        missing = [file for file in REQUIRED if not is_there(path, file)]
        if missing:
            raise ValueError(f"expected a run folder, got {path}: no {missing[0]} in it")
        if not any(os.path.lexists(path / seal) for seal in ("STARTED", "FINISHED")):
            raise ValueError(
                f"expected a run folder, got {path}: no STARTED in it, since its start was interrupted or an older "
                "version started it, which kept no checksums; start it again"
            )
        return cls(path)

    @property
    def finished(self) -> bool:
        """Whether the run is over: nothing is written to it any more."""
        return os.path.lexists(self.path / "FINISHED")

    def read(self, file: str) -> bytes:
        """Return the bytes of a file of the run, by its name in it."""
        return Seals(self.path).read(file)

    def config(self, cls: type[Config]) -> Config:
        """Return the settings that the run was started with, as those of ``cls``."""
        return parse_config(cls, self.read("config.yaml"), self.path / "config.yaml")

    def environment(self) -> dict[str, Any]:
        """Return what ``environment.json`` says."""
        return parse_environment(self.read("environment.json"), self.path / "environment.json")

    def done(self) -> dict[str, str]:
        """Return the keys of the jobs that have ended, and how each did: ``"ok"`` or ``"failed"``."""
        return {job: mark["status"] for job, mark in Seals(self.path).marks.items()}

    def lines(self, job: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of jobs that are done, or of one ``job``, with their jobs, in the order of writing."""
        seals = Seals(self.path)
        keep = {"", *seals.marks, *([] if job is None else [job])}
        return [line.content for line in seals.rows(job) if line.content["job"] in keep]

    def rows(self, job: str | None = None) -> pd.DataFrame:
        """Return the rows of :meth:`lines` as a frame.

        Each factor is a column; see :func:`amortized_bayes.results.rows.to_frame`.
        """
        return to_frame(self.lines(job))

    def load_tensors(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of checkpoint ``name``.

        Where that of a job on its way does not match its checksum, the generation before is used, with a warning.
        """
        return tensors_of(self._checkpoint(name), name)

    def load_metadata(self, name: str) -> dict[str, str]:
        """Return the metadata saved with checkpoint ``name``; see :meth:`load_tensors`."""
        data = self._checkpoint(name)
        return metadata_of(data, f"checkpoint {name!r}")

    def _checkpoint(self, name: str) -> bytes:
        path = saved_file(self.path, "checkpoints", name, checkpoint_names(self.path), "safetensors")
        seals, file = Seals(self.path), path.relative_to(self.path).as_posix()
        return seals.read(file) if seals.finished or file in seals.of_files else load_generation(path)

    def load_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays saved under ``name``. Nothing is unpickled."""
        names = {path.stem for path in (self.path / "arrays").glob("[!.]*.npz")}
        path = saved_file(self.path, "arrays", name, names, "npz")
        return arrays_of(self.read(path.relative_to(self.path).as_posix()), path)

    def damaged(self) -> dict[str, str]:
        """Return the jobs of an unfinished run with missing files, which are run again, and the first such file."""
        return lost_files(Seals(self.path))

    def check(self) -> None:
        """Read every file with results of the run. Raises ``ValueError`` if one differs from what was recorded."""
        found = damage(self.path)
        if found:
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            raise ValueError(f"{self.path} is damaged: {found[0]}{more}; `verify {self.path}` lists everything")

    def verify(self) -> list[str]:
        """Return a line for each problem: a file missing or changed, a bad line, a bad checkpoint, a link.

        Raises nothing.
        """
        return problems(self.path)
