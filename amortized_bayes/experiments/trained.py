"""Models by configuration: trained once, kept as a run, and taken up by every experiment that needs them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from amortized_bayes.configuration import load_config, to_mapping
from amortized_bayes.data import load_dataset
from amortized_bayes.experiments.settings import VAEConfig, same_model
from amortized_bayes.experiments.setup import ImageData, build_vae, load_vae_images, vae_options
from amortized_bayes.experiments.training import KEY, state_of, train
from amortized_bayes.guides import LocalGuide
from amortized_bayes.inference.options import Divergence
from amortized_bayes.inference.svi import Training
from amortized_bayes.models import DeepGenerative
from amortized_bayes.results import RunFolder, environment, list_runs

__all__ = ["Trained", "TrainingFailed", "estimate_training", "find_trained", "load_trained", "obtain"]


class Trained(NamedTuple):
    """A trained model, its guide and its data."""

    config: VAEConfig
    data: ImageData
    model: DeepGenerative
    guide: LocalGuide


def load_trained(folder: RunFolder, *, device: torch.device, data_dir: Path | None = None) -> Trained:
    """Load the model of a training run with its data.

    Raises:
        ValueError: a run of another kind or one that failed; a checkpoint that is damaged, of another architecture than
            the run's configuration, or not finite; data that cannot be had.
    """
    if folder.experiment != "train":
        raise ValueError(f"expected a run of `train` as checkpoint, got {folder.path}, a run of {folder.experiment}")
    tensors = folder.load_tensors(KEY)
    config = load_config(VAEConfig, folder.path / "config.yaml")
    data = load_vae_images(config, load_dataset(config.dataset, data_dir=data_dir, seed=config.seed), device)
    before = json.loads((folder.path / "environment.json").read_bytes()).get("data")
    if before is not None and before != dict(data.source.sha256):
        raise ValueError(f"expected the data that {folder.path} was trained on, got other files of {data.name}")
    model, guide = build_vae(config, data)
    expected = {name: tuple(value.shape) for name, value in state_of(model, guide).items()}
    got = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in [*expected, *got]:
        if expected.get(name) != got.get(name):
            raise ValueError(
                f"{folder.path}: expected a checkpoint of the architecture in its config.yaml, with {name} of shape "
                f"{expected.get(name, 'none')}, got {got.get(name, 'none')}"
            )
    bad = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if bad:
        raise ValueError(f"{folder.path}: expected finite weights, got nan or inf in {bad[0]}")
    for prefix, module in (("model", model), ("guide", guide)):
        own = {k.split(".", 1)[1]: torch.from_numpy(v) for k, v in tensors.items() if k.startswith(f"{prefix}.")}
        module.load_state_dict(own)
        module.requires_grad_(False)
    return Trained(config, data, model, guide)


def find_trained(out: Path, config: VAEConfig) -> RunFolder | None:
    """The latest finished run under ``out`` that trained exactly this configuration; ``None`` without one."""
    for info in reversed(list_runs(out)):
        if info.experiment != "train" or info.status != "finished":
            continue
        folder = RunFolder.open(info.path)
        if _is_of(info.path, config) and (folder.path / "checkpoints" / f"{KEY}.safetensors").exists():
            return folder
    return None


def _is_of(run: Path, config: VAEConfig) -> bool:
    """Whether a run trains this configuration, by whatever preset it was named."""
    try:
        found = load_config(VAEConfig, run / "config.yaml")
    except ValueError:  # of a configuration that this version cannot read
        return False
    return same_model(found, config)


def _unfinished(out: Path, config: VAEConfig, sums: dict[str, str]) -> RunFolder | None:
    """A run of this configuration and data that was interrupted, to be taken up."""
    for info in reversed(list_runs(out)):
        if info.experiment == "train" and info.status == "unfinished" and _is_of(info.path, config):
            before = json.loads((info.path / "environment.json").read_bytes()).get("data")
            if before == sums:
                return RunFolder.open(info.path)
    return None


class TrainingFailed(RuntimeError):
    """Training a model that an experiment needs diverged, at ``step``."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step = step


def obtain(
    config: VAEConfig,
    out: Path,
    *,
    device: torch.device,
    data_dir: Path | None = None,
    watch: Callable[[str, int, int], None] = lambda *_: None,
) -> Trained:
    """The model of this configuration: the one that ``out`` holds, or a new one, trained into a run of its own there.

    Raises:
        TrainingFailed: training diverged.
        ValueError: as :func:`train` and :func:`load_trained`.
    """
    folder = find_trained(out, config)
    if folder is None:
        sums = dict(load_dataset(config.dataset, data_dir=data_dir).sha256)
        described = environment(torch.get_num_threads()) | {"device": str(device), "data": sums}
        folder = _unfinished(out, config, sums) or RunFolder.create(out, "train", to_mapping(config), described)
        with folder:
            options: Any = {"watch": lambda done, total, _: watch("training", done, total)}
            rows = list(train(config, folder, device=device, data_dir=data_dir, **options))
            folder.finish()
        failed = next((row for row in rows if row.status == "failed"), None)
        if failed is not None:
            raise TrainingFailed(failed.step, f"training diverged: {failed.note}")
    return load_trained(folder, device=device, data_dir=data_dir)


def estimate_training(config: VAEConfig, device: torch.device, data_dir: Path | None, num_steps: int = 10) -> float:
    """Seconds that training takes, from a few steps of it.

    Raises:
        ValueError: as :func:`train`.
    """
    data = load_vae_images(config, load_dataset(config.dataset, data_dir=data_dir, seed=config.seed), device)
    training = Training(*build_vae(config, data), data.train, vae_options(config), config.seed)
    start = time.perf_counter()
    with suppress(Divergence):  # training itself will record it
        list(training.run(num_steps))  # captures
        start = time.perf_counter()
        list(training.run(num_steps))
    return (time.perf_counter() - start) / num_steps * config.epochs * training.batches.per_epoch
