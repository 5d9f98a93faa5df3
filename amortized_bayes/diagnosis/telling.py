"""What a diagnosis reports on its way: how far it is, how long it will take, and its numbers as they are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from amortized_bayes.per_point import mean_over_points
from amortized_bayes.progress import Forecast, Told
from amortized_bayes.types import Row

__all__ = ["Telling"]

SHORTER = (
    "fewer points, `DiagnosisSettings(ais=AISSettings(num_chains=, num_temperatures=))`, or a certificate of a larger "
    "`target_gap`"
)
FLOW_STEP = 3.0
"""Gradients that a step of a search for a flow takes the time of, about."""


class Telling:
    """Where a diagnosis reports to.

    Args:
        told: shows progress.
        on_row: called with each number.
        seed: random seed of the run, a factor of rows.
    """

    def __init__(self, told: Told, on_row: Callable[[Row], object] | None, seed: int) -> None:
        self._told, self._on_row, self._seed = told, on_row, seed
        self._began = time.monotonic()
        self._forecast = Forecast(told, SHORTER)
        self._work: dict[str, float] = {}

    def expect(self, settings: Any, num_points: int, num_draws: int, *, is_flow: bool) -> None:
        """What is to be done, for the forecast: B points, T draws of shared latents, q* a flow or not."""
        self._work = _work(settings, num_points, num_draws, is_flow)

    def stage(self, name: str) -> Callable[[int, int], None]:
        """Progress of one stage."""

        def tick(done: int, total: int) -> None:
            self._told(name, done, total)
            if name == "bdmc":  # it comes first, on pilot points
                self._forecast(self._work["pilot"] * done / total, sum(self._work.values()))

        return tick

    def estimates(self, found: Mapping[str, tuple[Tensor, Tensor]], draw: int) -> None:
        """Means of values per point, given one draw of the shared latents."""
        for name, (values, _) in found.items():
            self._row(name, *mean_over_points(values), draw=draw)

    def gaps(self, summary: Any) -> None:
        """Gaps, over all draws of the shared latents."""
        for name, row in summary.iterrows():
            if name.endswith("_gap"):
                self._row(name, row["mean"], row["standard_error"])

    def _row(self, metric: str, value: float, error: float, **more: int) -> None:
        if self._on_row is None or value != value:
            return
        factors = {"dataset": "data", "seed": self._seed, **more}
        known = None if error != error else error
        seconds = time.monotonic() - self._began
        self._on_row(Row("diagnose", factors, 0, seconds, metric, value, known, None if known is None else "points"))


def _work(settings: Any, num_points: int, num_draws: int, is_flow: bool) -> dict[str, float]:
    """Gradients of log p(x, z) in each stage, of one row each, at most."""
    walk, search, flow = settings.ais, settings.local, settings.flow_search
    simulated = min(settings.certificate.num_points, num_points)
    there_and_back = walk.num_warm_up + walk.num_pilot + 2 * (walk.num_temperatures - 1)
    per_point = walk.num_chains * walk.num_leapfrog * there_and_back
    optimize = search.max_steps * search.num_samples + search.num_windows * search.num_kept + search.num_score
    return {
        "pilot": max(2, simulated // 4) * per_point,
        "certificate": num_draws * simulated * per_point,
        "ais": num_draws * num_points * walk.num_chains * walk.num_gradients,
        "q*": num_draws * num_points * search.num_restarts * optimize,
        "flow": num_draws * num_points * flow.num_steps * flow.num_samples * FLOW_STEP * is_flow,
    }
