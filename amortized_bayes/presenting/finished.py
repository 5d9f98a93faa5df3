"""Finished runs, and the one of them that answers for an experiment on a data set."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from amortized_bayes.results import RunFolder, list_runs
from amortized_bayes.results.summary import summarise

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FinishedRun", "answering", "finished_runs"]


class FinishedRun(NamedTuple):
    """A finished run, and the number under which a page names it."""

    number: int
    folder: RunFolder
    preset: str
    finals: pd.DataFrame

    @property
    def seeds(self) -> list[int]:
        """Seeds of its rows."""
        return sorted({int(seed) for seed in self.finals["seed"].dropna()}) if "seed" in self.finals.columns else []

    @property
    def num_points(self) -> int:
        """Points per split that its settings ask for; 0 where they do not say."""
        points = yaml.safe_load(self.folder.read("config.yaml")).get("points")
        return points if isinstance(points, int) else 0


def finished_runs(out: Path, experiments: Collection[str]) -> list[FinishedRun]:
    """The finished runs of some experiments under ``out``.

    Raises:
        ValueError: there are none, or one of them is damaged.
    """
    runs: list[FinishedRun] = []
    for info in list_runs(out):
        if info.damage:
            raise ValueError(f"{info.path}: {info.damage}")
        if info.status == "finished" and info.experiment in experiments:
            folder = RunFolder.open(info.path)
            folder.check()
            preset = str(folder.environment().get("preset", ""))
            runs.append(FinishedRun(len(runs) + 1, folder, preset, summarise(folder.rows())))
    if not runs:
        raise ValueError(f"expected finished runs under {out}, got none")
    return runs


def answering(runs: Iterable[FinishedRun], experiment: str, preset: str, dataset: str) -> FinishedRun | None:
    """The run with the most seeds, of those the one with the most points, of those the last; ``None`` without any."""
    able = (
        run
        for run in runs
        if run.folder.experiment == experiment and run.preset == preset and dataset in set(run.finals["dataset"])
    )
    return max(able, key=lambda run: (len(run.seeds), run.num_points, run.number), default=None)
