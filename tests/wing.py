"""Experiments in tests: tiny settings, and how to run, interrupt and resume one without a command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from amortized_bayes.capture import CaptureError
from amortized_bayes.experiments import bounds, diagnosing, plans, running
from amortized_bayes.experiments.bounds_settings import BoundsConfig
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.setup import build_vae
from amortized_bayes.experiments.trained import Trained
from amortized_bayes.inference import capturing
from amortized_bayes.inference.settings import LocalSettings
from amortized_bayes.joint import replay
from amortized_bayes.results import RunFolder, find_run
from amortized_bayes.stopping import EVERY
from amortized_bayes.types import ROW_FIELDS

CPU = torch.device("cpu")
TINY = VAEConfig(
    dataset="digits",
    encoder="small",
    latent_dim=3,
    hidden=(16,),
    epochs=2,
    batch_size=50,
    num_train=200,
    num_test=50,
    early_stopping=False,
)
"""A model that is trained in a moment: 4 steps per epoch."""
BOUNDS = BoundsConfig(
    best_families=("gaussian",),
    particles=30,
    local_steps=10,
    local_rounds=1,
    flow_steps=3,
    chains=3,
    temperatures=4,
    simulated=3,
)
"""Bounds that are estimated in a moment."""

Watch = Callable[[str, str, int], None]


class QuickLab(Lab):
    """Forecasts at a guess, without the few steps of training that a forecast rests on."""

    every = EVERY
    """Seconds between two states that a job keeps; 0 in tests that kill it anywhere."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **{"keep_every": self.every, **named})

    def _step_seconds(self, config: VAEConfig) -> float:
        build_vae(config, self.images(config))
        return 1e-3

    def _evaluation_seconds(self, config: VAEConfig) -> float:
        return 1e-6


class Recorder:
    """Remembers what a run says; ``watch`` is called with the job, the stage and how much of it is done."""

    def __init__(self, watch: Watch = lambda *_: None) -> None:
        self.watch = watch
        self.lines: list[str] = []
        self.seen: list[tuple[str, Any]] = []
        self.fractions: list[float] = []

    def started(self, folder: RunFolder, num_jobs: int, forecast: Any) -> None:
        self.folder, self.num_jobs, self.seconds = folder, num_jobs, forecast.seconds

    def show(self, forecast: Any, job: str, stage: str, done: int, total: int, state: str) -> None:
        self.fractions.append(forecast.fraction)
        self.watch(job, stage, done)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def row(self, row: Any) -> None:
        pass

    def shown(self, job: str, shown: Any) -> None:
        self.seen.append((job, shown))


@contextmanager
def uncaptured() -> Iterator[None]:
    """Run programs as they are, and search q* in one round: for a few steps, capturing costs more than it saves."""

    def refuse(*_: Any, **__: Any) -> None:
        raise CaptureError("there are too few steps")

    with pytest.MonkeyPatch.context() as patch:
        for module in (capturing, replay):
            patch.setattr(module, "capture", refuse)
        for module in (bounds, diagnosing):
            patch.setattr(module, "LocalSettings", partial(LocalSettings, max_rounds=1))
        yield


def go(
    name: str,
    config: Any,
    out: Path,
    watch: Watch = lambda *_: None,
    given: Iterable[str] = ("dataset",),
    recorder: Recorder | None = None,
):
    """Run an experiment to its end, in a process that has loaded nothing yet."""
    plan = plans.new_plan(name, config, QuickLab(out, CPU), list(given), {"threads": 1})
    with uncaptured():
        return running.run(plan, recorder or Recorder(watch))


def resume(name: str, out: Path, text: str = "latest", watch: Watch = lambda *_: None) -> RunFolder:
    """Resume a run and finish it."""
    with uncaptured():
        return running.run(plans.resumed_plan(name, text, QuickLab(out, CPU)), Recorder(watch))


def cut(name: str, config: Any, out: Path, watch: Watch = lambda *_: None) -> RunFolder:
    """Run an experiment until something interrupts it."""
    with pytest.raises(KeyboardInterrupt):
        go(name, config, out, watch)
    return RunFolder.open(find_run(out, "latest", name))


def stop_at(stage: str, done: int = 0, job: str = "") -> Watch:
    """Interrupt where a stage of a job is so far; ``job`` is a part of its name."""

    def watch(name: str, now: str, count: int) -> None:
        if job in name and now == stage and count >= done:
            raise KeyboardInterrupt

    return watch


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def only(rows: pd.DataFrame, metric: str, **factors: Any) -> pd.DataFrame:
    """Rows of a metric with these factors; ``None`` for those without."""
    found = rows[rows["metric"] == metric]
    for name, value in factors.items():
        if value is None:
            found = found[found[name].isna()] if name in found else found
        else:
            found = found[(found[name] == value).fillna(False).astype(bool)]
    return found


def one(rows: pd.DataFrame, metric: str, **factors: Any) -> pd.Series:
    """The only row of a metric with these factors."""
    (found,) = (row for _, row in only(rows, metric, **factors).iterrows())
    return found


def values(rows: pd.DataFrame) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """What rows say, by what tells them apart, without times."""
    factors = [name for name in rows.columns if name not in ROW_FIELDS]
    found = {}
    for row in rows.astype(object).where(rows.notna(), None).to_dict("records"):
        if not row["metric"].startswith("seconds"):
            named = tuple((name, row[name]) for name in factors if row[name] is not None)
            found[row["metric"], row["step"], named] = tuple(
                row[name] for name in ("value", "standard_error", "error_over", "status", "note")
            )
    return found


def loaded(folder: RunFolder) -> Trained:
    """The model of a run of ``train``."""
    return Lab(folder.path.parents[1], CPU).checkpoint(folder.path)


def weights(folder: RunFolder) -> dict[str, np.ndarray]:
    """Weights that a run of ``train`` ended with."""
    (key,) = folder.done()
    return folder.load_tensors(key)


def assert_same_weights(one: RunFolder, other: RunFolder) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def files(folder: Path) -> dict[Path, bytes]:
    """Every file below, with its content."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
