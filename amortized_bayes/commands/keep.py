"""``keep``: a small copy of a finished run, to keep in a repository with the numbers taken from it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from amortized_bayes.commands.flags import without_flags
from amortized_bayes.results import RunFolder, find_run
from amortized_bayes.results.kept import keep

__all__ = ["Keep"]

PLACES = ("out", "data-dir")
"""Flags of folders, on which no number depends."""


@dataclass(frozen=True)
class Keep:
    """Copy a finished run without arrays, checkpoints and figures, and compress its rows.

    Args:
        name: Run to copy: its path, its name, or latest.
        out: Folder with results.
        into: Folder with results to copy it into; it may hold others.
        new_name: Name of the copy; by default that of the run.
    """

    name: Annotated[str, tyro.conf.Positional] = "latest"
    out: Path = Path("results")
    into: Path = Path("results/reported")
    new_name: str | None = None

    def run(self, given: list[str]) -> None:
        """Write the copy."""
        del given
        folder = RunFolder.open(find_run(self.out, self.name))
        name = folder.name if self.new_name is None else self.new_name
        path = keep(folder, self.into, name, _for_others(folder.environment()))
        size = sum(file.stat().st_size for file in path.iterdir())
        print(f"{path}: {size / 1000:,.0f} kB")


def _for_others(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was started on, without folders and without the build of its operating system."""
    kept = dict(about)
    if "command" in about:
        kept["command"] = shlex.join(without_flags(shlex.split(about["command"]), PLACES))
    if "platform" in about:
        kept["platform"] = about["platform"].split("-")[0]
    return kept
