"""What a job may ask for: data, trained models, and results of earlier jobs; each loaded or computed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from amortized_bayes.data import DATASETS, DataUnavailable, load_dataset, read_dataset, shuffle
from amortized_bayes.data.documents import Corpus, read_corpus
from amortized_bayes.divergence import Divergence
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.setup import (
    ImageData,
    build_vae,
    find_labels,
    in_training,
    load_vae_images,
    vae_options,
)
from amortized_bayes.experiments.spec import Checkpoint, Shown, Work
from amortized_bayes.experiments.trained import Trained, find_trained, load_trained, model_key
from amortized_bayes.inference.capturing import COMPILED_FROM
from amortized_bayes.inference.svi import Training
from amortized_bayes.results import RunFolder
from amortized_bayes.stopping import EVERY
from amortized_bayes.types import Dataset

__all__ = ["Lab", "Watch", "seconds_per_step"]

T = TypeVar("T")
Watch = Callable[[str, int, int, str], None]
RECENT = 4
"""Values of a kind that are kept where each seed has its own: two data sets of two seeds."""
STEPS = 5
"""Steps that are timed for a forecast."""
COMPILED = 0.6
"""What a compiled step takes of a replayed one: 0.52 to 0.79 in docs/benchmarks.md, 0.59 in docs/tuning.md."""
ROWS = 2_000
"""Decoder evaluations that are timed at once, in a block of about the size that estimators use."""


def seconds_per_step(training: Training, count: int, planned: int) -> float:
    """Seconds that a step of a fit of ``planned`` steps takes, from ``count`` of them after as many that warm it up.

    Steps that will be compiled are timed as they are replayed, and reckoned at ``COMPILED`` of that.
    """
    waits = planned >= COMPILED_FROM and training.options.capture == "auto" and not training.data.is_cuda
    start = time.perf_counter()
    with suppress(Divergence):  # the fit itself will record it
        training.prepare(min(planned, COMPILED_FROM - 1))  # compiling takes longer than a forecast may
        list(training.run(count))
        start = time.perf_counter()
        list(training.run(count))
    return (time.perf_counter() - start) / count * (COMPILED if waits else 1.0)


@dataclass
class Lab:
    """Where jobs get what they need.

    Args:
        out: folder with results; models trained there before are shared.
        device: where to compute.
        data_dir: where to look for data first.
        keep_every: seconds between two states that a job keeps of itself, at least.
        away: whether jobs run where the run is not: what they read was brought to ``out`` with each of them.
        folder: the run that jobs write to; ``None`` while jobs are only listed.
        report: called with a stage of the running job, what is done of it, all of it, and a state in words.
        display: called with what those who look on may see of the running job.
        nested: runs another experiment to its end, in a run of its own; returns nothing in a dry run.
        cache: what was made before.
    """

    out: Path
    device: torch.device
    data_dir: Path | None = None
    keep_every: float = EVERY
    away: bool = False
    folder: RunFolder | None = None
    report: Watch = lambda *_: None
    display: Callable[[Shown], None] = lambda _: None
    nested: Callable[[str, Any], RunFolder | None] = lambda *_: None
    cache: dict[Any, Any] = field(default_factory=dict)

    def watch(self, stage: str, done: int, total: int, state: str = "") -> None:
        """Say how far a stage of the running job is."""
        self.report(stage, done, total, state)

    def show(self, step: int, images: Mapping[str, np.ndarray] = {}, **numbers: float) -> None:
        """Let those who look on see images, as a job keeps them, and numbers of the running job at a step."""
        self.display(Shown(step, images, numbers))

    def cached(self, key: Any, make: Callable[[], T]) -> T:
        """What ``make`` made when this key was first asked for."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    def recent(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """The same for what each seed has its own of, and takes much memory: the last few of a kind, ``key[0]``."""
        value = self.cache.pop(key) if key in self.cache else make()
        older = [other for other in self.cache if isinstance(other, tuple) and other[0] == key[0]]
        for other in older[: max(0, len(older) + 1 - RECENT)]:
            del self.cache[other]
        self.cache[key] = value  # the last one
        return value

    # results of this run

    @property
    def run(self) -> RunFolder:
        """The run that jobs write to."""
        if self.folder is None:
            raise RuntimeError("a job reads results while jobs are only listed")
        return self.folder

    def status(self, key: str) -> str | None:
        """How a job ended, ``"ok"`` or ``"failed"``; ``None`` for one that has not."""
        return self.run.done().get(key)

    def arrays(self, key: str) -> dict[str, np.ndarray]:
        """Arrays of a job that ended well.

        Raises:
            ArithmeticError: it failed.
            ValueError: its file is missing or damaged.
        """
        return self._kept(key, self.run.load_arrays)

    def tensors(self, key: str) -> dict[str, np.ndarray]:
        """Checkpoint of a job; errors as :meth:`arrays`."""
        return self._kept(key, self.run.load_tensors)

    def texts(self, key: str) -> dict[str, str]:
        """Texts in the checkpoint of a job; errors as :meth:`arrays`."""
        return self._kept(key, self.run.load_metadata)

    def _kept(self, key: str, load: Callable[[str], T]) -> T:
        if self.status(key) == "failed":
            raise ArithmeticError(f"{key} failed")
        return load(key)

    def rows(self, key: str) -> pd.DataFrame:
        """Rows of a job."""
        return self.run.rows(key)

    def kept(self, key: str, name: str) -> Checkpoint:
        """What a job that goes on after a kill had kept under ``name``, to be kept again.

        Raises:
            ValueError: it is missing or damaged.
        """
        place = f"{key}.{name}"
        return Checkpoint(self.run.load_tensors(place), self.run.load_metadata(place), name)

    # data and models

    def dataset(self, name: str, seed: int = 0) -> Dataset:
        """A data set in memory, shuffled by ``seed``; its files are read and checked once for all seeds.

        Raises:
            ValueError: it is unavailable or damaged.
        """
        whole = self.cached(("files", name), lambda: read_dataset(name, data_dir=self.data_dir))
        return self.recent(("dataset", name, seed), lambda: shuffle(whole, seed))

    def corpus(self, name: str) -> Corpus:
        """Documents in memory, in the order of their files, which are read and checked once.

        Raises:
            ValueError: they are unavailable or damaged.
        """
        return self.cached(("corpus", name), lambda: read_corpus(name, data_dir=self.data_dir))

    def images(self, config: VAEConfig) -> ImageData:
        """Images of a model's data set as the model sees them, on the device."""
        seen = (config.dataset, config.pixels, config.likelihood, config.num_train, config.num_test, config.seed)
        held_out = (config.early_stopping, config.num_validation)
        source = self.dataset(config.dataset, config.seed)
        return self.recent(("images", *seen, *held_out), lambda: load_vae_images(config, source, self.device))

    def find(self, config: VAEConfig) -> RunFolder | None:
        """The run that trained this model, finished or failed; ``None`` without one."""
        data = self.dataset(config.dataset, config.seed)
        return find_trained(self.out, config, ("finished", "failed"), {data.name: data.sha256})

    def trained(self, config: VAEConfig, epoch: int | None = None) -> Trained:
        """A trained model that some job of the run needs, at its end or after one of its ``keep_epochs``.

        Raises:
            TrainingFailed: its training diverged.
            ValueError: it was not trained, or its run is damaged.
        """
        folder = self.find(config)
        if folder is None:
            raise ValueError(f"expected a trained model ({model_key(config)}) in {self.out}, got none")
        return self.checkpoint(folder.path, epoch)

    def run_named(self, name: str) -> Path:
        """Where a run is that settings name by its path, which may be relative to the folder of results."""
        return self.out / Path(*Path(name).parts[-2:]) if self.away else self.out / name

    def checkpoint(self, path: Path, epoch: int | None = None) -> Trained:
        """The model of a run of ``train``, at its end or after an epoch."""
        key = ("trained", path.resolve(), epoch)
        return self.cached(key, lambda: load_trained(RunFolder.open(path), self.images, epoch))

    def labels(self, trained: Trained, split: str, places: np.ndarray) -> dict[str, np.ndarray]:
        """Labels of points of a split, ``(n,)``, under that name; nothing where none are known."""
        found = find_labels(trained.data, split, places, self._origin)
        return {} if found is None else {"labels": found}

    def label_sums(self, name: str) -> Mapping[str, str] | None:
        """Checksums of the files from which the labels of a data set come that has none; ``None`` without them."""
        known = DATASETS.get(name)
        if known is None or not known.labels_from:
            return {}
        try:
            return self._origin(known.labels_from).sha256
        except DataUnavailable:
            return None

    def _origin(self, name: str) -> Dataset:
        return self.cached(("labels", name), lambda: load_dataset(name, data_dir=self.data_dir, download=False))

    # costs, for the forecast

    def training_work(self, stage: str, config: VAEConfig, epochs: int) -> Work:
        """Passes over the training images of a model, or of an encoder for it."""
        return Work(stage, epochs, lambda: self.epoch_seconds(config), "a few steps of training")

    def evaluation_work(self, stage: str, config: VAEConfig, count: float) -> Work:
        """Evaluations of a model's decoder with gradient."""
        return Work(stage, count, lambda: self.evaluation_seconds(config), "a few decoder evaluations")

    def epoch_seconds(self, config: VAEConfig) -> float:
        """Seconds that an epoch of training takes, from a few steps."""
        return self.step_seconds(config) * max(1, len(self.images(config).train) // config.batch_size)

    def step_seconds(self, config: VAEConfig) -> float:
        """Seconds that a training step of a model takes, from a few of them."""
        alike = replace(
            config,
            epochs=1,
            learning_rate=1e-3,
            entropy_annealing=0,
            kl_warm_up=0,
            patience=1,
            keep_epochs=(),
            seed=0,
        )
        return self.cached(("step", alike), lambda: self._step_seconds(config))

    def _step_seconds(self, config: VAEConfig) -> float:
        data = self.images(config)
        programs = build_vae(config, data)
        training = Training(*programs, data.train, vae_options(config), config.seed)
        with in_training(*programs):
            return seconds_per_step(training, STEPS, config.epochs * training.batches.per_epoch)

    def evaluation_seconds(self, config: VAEConfig) -> float:
        """Seconds that a decoder evaluation with its gradient takes, in blocks."""
        key = ("evaluation", config.dataset, config.hidden, config.latent_dim, config.architecture)
        return self.cached(key, lambda: self._evaluation_seconds(config))

    def _evaluation_seconds(self, config: VAEConfig) -> float:
        model, _ = build_vae(replace(config, decoder="point", family="gaussian"), self.images(config))
        z = torch.randn(ROWS, config.latent_dim, device=self.device, requires_grad=True)
        least = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            output = model.decode(z, model.weights())
            torch.autograd.grad(model.observation(output).log_prob(torch.ones_like(output)).sum(), z)
            least = min(least, time.perf_counter() - start)
        return least / ROWS
