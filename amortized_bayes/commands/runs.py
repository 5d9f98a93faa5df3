"""``list``, ``plot``, ``table`` and ``verify``: runs on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from amortized_bayes.experiments import experiment
from amortized_bayes.progress import counted
from amortized_bayes.results import RunFolder, find_run, list_runs
from amortized_bayes.results.places import REQUIRED
from amortized_bayes.results.verification import covered

__all__ = ["List", "Plot", "Table", "Verify"]

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
            if info.damage:
                print(f"{info.experiment}/{info.name}  damaged  {info.damage}")
                continue
            part = f"  for {info.part_of}" if info.part_of else ""
            done = f"{counted(info.num_jobs, 'job')} done"
            print(f"{info.experiment}/{info.name}  {info.status}  {done}  started {info.started}{part}")
        if not found:
            print(f"no runs in {self.out}")


@dataclass(frozen=True)
class Plot:
    """Draw a run's figures again, from its rows.

    Args:
        name: Run to draw: its path, its name, or latest.
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
        folder.check()
        for path in draw(experiment(folder.experiment), folder, self.into):
            print(path)


@dataclass(frozen=True)
class Table:
    """Print what a run found: sentences, tables, published numbers beside them, and published claims.

    Args:
        name: Run to show: its path, its name, or latest.
        out: Folder with results.
        wide: Print every table, including those that need a wide terminal.
        claims: Print the published claims as well.
        markdown: Print only the tables, in Markdown.
    """

    name: RunName = "latest"
    out: Path = Path("results")
    wide: Annotated[bool, NO_PAIRS] = False
    claims: bool = True
    markdown: Annotated[bool, NO_PAIRS] = False

    def run(self, given: list[str]) -> None:
        """Print tables and sentences."""
        del given
        from amortized_bayes.presenting import tell

        folder = RunFolder.open(find_run(self.out, self.name))
        folder.check()
        tell(experiment(folder.experiment), folder, wide=self.wide, claims=self.claims, markdown=self.markdown)


@dataclass(frozen=True)
class Verify:
    """Compare every file of a run with its recorded checksum; exit with 1 if something is wrong.

    Args:
        name: Run to verify: its path, its name, or latest.
        out: Folder with results.
        repair: Leave out what is damaged. A finished run then no longer expects missing files; in an unfinished run,
            jobs whose rows or files have changed are run again when it is resumed.
    """

    name: RunName = "latest"
    out: Path = Path("results")
    repair: Annotated[bool, NO_PAIRS] = False

    def run(self, given: list[str]) -> None:
        """Print a line for each problem, or that there is none."""
        del given
        path = Path(self.name) if Path(self.name).is_dir() else find_run(self.out, self.name)
        folder = RunFolder(path) if any(os.path.lexists(path / file) for file in REQUIRED) else RunFolder.open(path)
        for line in folder.repair() if self.repair else []:
            print(line)
        problems = folder.verify()
        for problem in problems:
            print(problem)
        if problems:
            print(f"{path} is damaged: {counted(len(problems), 'problem')}", flush=True)
            raise SystemExit(1)
        known, others = covered(path)
        print(f"{path} is intact: {counted(len(known), 'file')} with their recorded checksums")
        if others:
            print(f"not part of the results, so not compared: {', '.join(others)}")
