"""``list``, ``plot`` and ``table``: look at runs on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from amortized_bayes.results import RunFolder, find_run, list_runs

__all__ = ["List", "Plot", "Table"]

RunName = Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True)
class List:
    """List runs on disk, oldest first.

    Args:
        out: Folder with results.
    """

    out: Path = Path("results")

    def run(self, given: list[str]) -> None:
        """Print a line a run."""
        del given
        found = list_runs(self.out)
        for info in found:
            print(f"{info.experiment}/{info.name}  {info.status}  {info.num_fits} fits done  started {info.started}")
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
        from amortized_bayes.commands.drawing import draw_all

        folder = RunFolder.open(find_run(self.out, self.name))
        for path in draw_all(folder, folder.rows(), self.into):
            print(path)


@dataclass(frozen=True)
class Table:
    """Print a run's table and findings, and the published claims beside it.

    Args:
        name: The run: its path, its name, or latest.
        out: Folder with results.
        claims: Print the published claims as well.
    """

    name: RunName = "latest"
    out: Path = Path("results")
    claims: bool = True

    def run(self, given: list[str]) -> None:
        """Print tables and sentences."""
        del given
        from amortized_bayes.commands.tables import print_run

        folder = RunFolder.open(find_run(self.out, self.name))
        print_run(folder, claims=self.claims)
        for problem in folder.verify() if folder.finished else []:
            print(f"warning: {problem}")
