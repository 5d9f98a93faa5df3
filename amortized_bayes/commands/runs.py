"""``list``, ``plot`` and ``table``: runs on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from amortized_bayes.experiments import experiment
from amortized_bayes.progress import counted
from amortized_bayes.results import RunFolder, find_run, list_runs

__all__ = ["List", "Plot", "Table"]

RunName = Annotated[str, tyro.conf.Positional]
NO_PAIRS = tyro.conf.FlagCreatePairsOff


@dataclass(frozen=True)
class List:
    """List runs on disk, oldest first.

    Args:
        out: Folder with results.
    """

    out: Path = Path("results")

    def run(self, given: list[str]) -> None:
        """Print a line per run."""
        del given
        found = list_runs(self.out)
        for info in found:
            part = f"  for {info.part_of}" if info.part_of else ""
            done = f"{counted(info.num_jobs, 'job')} done"
            print(f"{info.experiment}/{info.name}  {info.status}  {done}  started {info.started}{part}")
        if not found:
            print(f"no runs in {self.out}")


@dataclass(frozen=True)
class Plot:
    """Draw a run's figures again, from its rows.

    Args:
        name: The run: its path, its name, or latest.
        out: Folder with results.
        into: Folder to write the figures to; the run's own by default.
    """

    name: RunName = "latest"
    out: Path = Path("results")
    into: Path | None = None

    def run(self, given: list[str]) -> None:
        """Draw everything."""
        del given
        from amortized_bayes.presenting import draw

        if self.into is not None and self.into.exists() and not self.into.is_dir():
            raise ValueError(f"expected a folder as --into, got {self.into}: a file")
        folder = RunFolder.open(find_run(self.out, self.name))
        for path in draw(experiment(folder.experiment), folder, self.into):
            print(path)


@dataclass(frozen=True)
class Table:
    """Print what a run found: sentences, tables, published numbers beside them, and published claims.

    Args:
        name: The run: its path, its name, or latest.
        out: Folder with results.
        wide: Print every table, those too that need a wide terminal.
        claims: Print the published claims as well.
    """

    name: RunName = "latest"
    out: Path = Path("results")
    wide: Annotated[bool, NO_PAIRS] = False
    claims: bool = True

    def run(self, given: list[str]) -> None:
        """Print tables and sentences."""
        del given
        from amortized_bayes.presenting import tell

        folder = RunFolder.open(find_run(self.out, self.name))
        tell(experiment(folder.experiment), folder, wide=self.wide, claims=self.claims)
        for problem in folder.verify() if folder.finished else []:
            print(f"warning: {problem}")
