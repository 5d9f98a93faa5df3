"""``report``: one page of HTML about a run, or about several side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

__all__ = ["Report"]

FILE = "report.html"


@dataclass(frozen=True)
class Report:
    """Write a self-contained HTML page about a run, or about several side by side.

    Args:
        names: Runs to report on: their paths, their names, or latest.
        out: Folder with results.
        into: File to write to; by default report.html in the run's folder, or for several runs in the --out folder.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ("latest",)
    out: Path = Path("results")
    into: Path | None = None

    def run(self, given: list[str]) -> None:
        """Write the page."""
        del given
        from amortized_bayes.page.rendering import render
        from amortized_bayes.presenting.run_page import run_page
        from amortized_bayes.results import RunFolder, find_run
        from amortized_bayes.results.durable import write_atomically

        if self.into is not None and self.into.is_dir():
            raise ValueError(f"expected a file as --into, got {self.into}: a folder")
        if not self.names:
            raise ValueError("expected a run or more, got none")
        folders = [RunFolder.open(find_run(self.out, name)) for name in self.names]
        into = self.into or (folders[0].path if len(folders) == 1 else self.out) / FILE
        write_atomically(into, render(run_page(folders)).encode())
        print(into)
