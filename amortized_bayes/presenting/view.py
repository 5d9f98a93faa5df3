"""What figures may see of a run: its rows, its settings, and the arrays of its jobs. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from amortized_bayes.plain_yaml import parse_yaml
from amortized_bayes.results import RunFolder

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from amortized_bayes.types import Factor

__all__ = ["RunView"]


class RunView:
    """A run to be drawn.

    Args:
        folder: where it is.

    Raises:
        ValueError: rows or settings that cannot be read.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.rows: pd.DataFrame = folder.rows()
        self.config: Mapping[str, Any] = parse_yaml(folder.read("config.yaml"), folder.path / "config.yaml") or {}
        self.jobs: dict[str, dict[str, Factor]] = {key: {} for key, end in folder.done().items() if end == "ok"}
        """Factors of each finished job: those that all its rows share."""
        of_job: dict[str, list[dict[str, Factor]]] = {}
        for line in folder.lines():
            of_job.setdefault(line["job"], []).append(line["factors"])
        for key in self.jobs:
            first, *others = of_job.get(key, [{}])
            self.jobs[key] = {n: v for n, v in first.items() if all(n in o and o[n] == v for o in others)}

    def find(self, factors: Mapping[str, Factor | None], name: str = "") -> list[str]:
        """Keys of finished jobs that have a name (or none), these factors, and arrays."""
        return [
            key
            for key, own in self.jobs.items()
            if _name(key) == name
            and (self.folder.path / "arrays" / f"{key}.npz").is_file()
            and all(own.get(n) == v for n, v in factors.items())
        ]

    def arrays(self, key: str) -> dict[str, np.ndarray]:
        """The arrays of a job.

        Raises:
            ValueError: there are none, or they are damaged.
        """
        return self.folder.load_arrays(key)


def _name(key: str) -> str:
    first = key.split("+")[0]
    return "" if "=" in first else first
