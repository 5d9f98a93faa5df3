"""What is reported during a run: progress of the whole run, failures and main results as they come, curves."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

from amortized_bayes.experiments.forecast import Forecast
from amortized_bayes.experiments.spec import Shown
from amortized_bayes.labels import describe, metric_name
from amortized_bayes.plain_files import check_folder
from amortized_bayes.progress import Progress, counted, duration
from amortized_bayes.results import RunFolder
from amortized_bayes.types import Row

__all__ = ["Reporting"]

HEADLINES = ("final_elbo", "inference_gap", "approximation_gap", "behind_reference", "tune_elbo")
"""Metrics that get a line as soon as they are known."""
SHOWN_EVERY = 0.2
"""Least seconds between two updates of the progress: with a thousand jobs, an update takes a hundredth of a second."""
UNSAID = {"label", "epochs"}
"""Factors of rows that are too many to report: of single classes, or of fits with one of several budgets."""


class Reporting(ExitStack):
    """Tells a terminal, and TensorBoard if asked to, how a run goes.

    Args:
        tensorboard: whether to write curves and images for it, into the run's folder.

    Raises:
        ValueError: TensorBoard is asked for and not installed.
    """

    def __init__(self, *, tensorboard: bool = False) -> None:
        if tensorboard and find_spec("tensorboard") is None:
            raise ValueError(
                "expected the package tensorboard for --log tensorboard: pip install 'amortized_bayes[tensorboard]'"
            )
        super().__init__()
        self.tensorboard, self.writer = tensorboard, None
        self.progress: Progress | None = None
        self.last_shown = -math.inf

    def started(self, folder: RunFolder, num_jobs: int, forecast: Forecast) -> None:
        """Say where a run goes, and how long it may take."""
        self.progress = self.enter_context(Progress())
        left = f"about {duration(forecast.seconds)} left{forecast.basis}"
        side = f", {forecast.workers} at a time" if forecast.workers > 1 else ""
        self.say(f"{counted(num_jobs, 'job')} into {folder.path}{side}; {left}")
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            check_folder(folder.path / "tensorboard")
            self.writer = self.enter_context(SummaryWriter(str(folder.path / "tensorboard")))

    def show(self, forecast: Forecast, job: str, stage: str, done: int, total: int, state: str) -> None:
        """Show how far a stage of a job is, and the run with it."""
        assert self.progress is not None
        now = time.monotonic()
        if now - self.last_shown < SHOWN_EVERY:
            return
        self.last_shown = now
        self.progress.show(forecast.fraction, forecast.seconds_left, job, stage, done, total, state)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        assert self.progress is not None
        self.progress.say(line)

    def row(self, row: Row) -> None:
        """Say what is worth a line; pass points of curves on to TensorBoard."""
        if row.metric == "failure":
            self.say(f"{describe(row.factors)}: failed at step {row.step}: {row.note}")
        elif row.metric in HEADLINES and row.value is not None and not UNSAID & row.factors.keys():
            error = "" if row.standard_error is None else f"±{row.standard_error:.2f}"
            mark = "" if row.status == "ok" else f" ({row.status})"
            self.say(f"{describe(row.factors)}: {metric_name(row.metric)} {row.value:.2f}{error}{mark}")
        if self.writer is not None and row.step and row.value is not None:
            shown: Any = [str(v) for name, v in row.factors.items() if name not in ("seed", "dataset")]
            self.writer.add_scalar("/".join([row.metric, *shown]), row.value, row.step)

    def shown(self, job: str, shown: Shown) -> None:
        """Pass numbers and images of a job on to TensorBoard: originals, what a model makes of them, draws from it."""
        if self.writer is None:
            return
        from amortized_bayes.presenting.pictures import pictures_of

        for name, value in shown.numbers.items():
            self.writer.add_scalar(f"{name}/{job}", value, shown.step)
        for name, images in pictures_of(shown.images).items():
            self.writer.add_images(f"{name}/{job}", images, shown.step, dataformats="NHWC")
