"""Models by configuration: trained once, kept as a run, and shared by every experiment that needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro
import torch
from torch import nn

from amortized_bayes.data import to_pictures
from amortized_bayes.evaluation.errors import mean_latents
from amortized_bayes.experiments.settings import VAEConfig, model_factors, serves
from amortized_bayes.experiments.setup import ImageData, build_vae
from amortized_bayes.experiments.spec import FailedAt, job_key
from amortized_bayes.joint import global_seed
from amortized_bayes.models import DeepGenerative
from amortized_bayes.results import RunFolder, list_runs

__all__ = [
    "Trained",
    "TrainingFailed",
    "copy_name",
    "find_trained",
    "load_state",
    "load_trained",
    "model_key",
    "reconstruct",
    "reconstructions",
    "state_of",
]


SHOWN = 10
"""Points whose reconstructions are shown on the way."""


class Trained(NamedTuple):
    """A trained model, its guide and its data."""

    config: VAEConfig
    data: ImageData
    model: DeepGenerative
    guide: nn.Module


class TrainingFailed(FailedAt):
    """Training a model that an experiment needs diverged, at ``step``."""


def model_key(config: VAEConfig) -> str:
    """Key of the only job of the run that trains this model."""
    return job_key(model_factors(config))


def copy_name(epoch: int) -> str:
    """Name of the checkpoint with the model as it was after an epoch."""
    return f"epoch-{epoch}"


def load_trained(folder: RunFolder, images: Callable[[VAEConfig], ImageData], epoch: int | None = None) -> Trained:
    """Load the model of a finished training run with its data, which ``images`` loads.

    With ``epoch`` it is the model as it was after that epoch, of which the run keeps a copy.

    Raises:
        TrainingFailed: its training diverged.
        ValueError: a run of another kind or one that is not finished; a checkpoint that is damaged, of another
            architecture than the run's configuration, or not finite; data that are unavailable or others.
    """
    if folder.experiment != "train":
        raise ValueError(f"expected a run of train as checkpoint, got {folder.path}, a run of {folder.experiment}")
    config = folder.config(VAEConfig)
    key = model_key(config)
    status = folder.done().get(key)
    if status == "failed":
        rows = folder.rows()
        failure = rows[rows["metric"] == "failure"].iloc[-1]
        raise TrainingFailed(int(failure["step"]), f"training of {folder.path} failed: {failure['note']}")
    if status is None and folder.finished:
        trained = ", ".join(folder.done()) or "none"
        raise ValueError(f"{folder.path}: expected the model of its config.yaml, {key}, got {trained}")
    if status is None:
        raise ValueError(
            f"expected a finished run of train, got {folder.path}: `train --resume {folder.path}` finishes it"
        )
    before = folder.environment().get("data", {})
    data = images(config)
    if data.name in before and before[data.name] != dict(data.source.sha256):
        raise ValueError(f"expected the data that {folder.path} was trained on, got other files of {data.name}")
    model, guide = build_vae(config, data)
    name = key if epoch is None else f"{key}.{copy_name(epoch)}"
    load_state(model, guide, folder.load_tensors(name), str(folder.path))
    for module in (model, guide):
        module.requires_grad_(False)
    return Trained(config, data, model, guide)


def load_state(model: nn.Module, guide: nn.Module, tensors: dict[str, np.ndarray], where: str) -> None:
    """Put the weights of :func:`state_of` into a model and a guide.

    Raises:
        ValueError: another architecture, or weights that are not finite.
    """
    expected = {name: tuple(value.shape) for name, value in state_of(model, guide).items()}
    got = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in [*expected, *got]:
        if expected.get(name) != got.get(name):
            raise ValueError(
                f"{where}: expected a checkpoint of the architecture in its config.yaml, with {name} of shape "
                f"{expected.get(name, 'none')}, got {got.get(name, 'none')}"
            )
    bad = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if bad:
        raise ValueError(f"{where}: expected finite weights, got nan or inf in {bad[0]}")
    for prefix, module in (("model", model), ("guide", guide)):
        own = {k.split(".", 1)[1]: torch.from_numpy(v) for k, v in tensors.items() if k.startswith(f"{prefix}.")}
        module.load_state_dict(own)


def state_of(model: nn.Module, guide: nn.Module) -> dict[str, np.ndarray]:
    """Copies of the weights of both by name, ``model.network.0.weight`` and so on."""
    return {
        f"{prefix}.{name}": value.detach().cpu().numpy().copy()
        for prefix, module in (("model", model), ("guide", guide))
        for name, value in module.state_dict().items()
    }


@torch.no_grad()
def reconstruct(trained: Trained, x: torch.Tensor, seed: int) -> torch.Tensor:
    """Means of the pixels ``(B, P)`` given the means of q at points ``(B, P)``; a Bayesian decoder is drawn once."""
    with pyro.validation_enabled(False), global_seed(seed, "reconstruct"):
        weights = trained.model.weights()
        return trained.model.observation(trained.model.decode(mean_latents(trained.guide, x), weights)).mean


def reconstructions(trained: Trained, x: torch.Tensor) -> dict[str, np.ndarray]:
    """The first of some points ``(B, P)`` as images, and what becomes of them; nothing of points that are none."""
    shape, few = trained.data.image_shape, x[:SHOWN].float()
    if shape is None:
        return {}
    seen = {"original": few, "reconstruction": reconstruct(trained, few, trained.config.seed)}
    return {name: to_pictures(pixels.cpu().numpy(), shape) for name, pixels in seen.items()}


def find_trained(
    out: Path, config: VAEConfig, statuses: tuple[str, ...], data: Mapping[str, Mapping[str, str]] = {}
) -> RunFolder | None:
    """The latest run under ``out``, of one of these statuses, that trains this model; ``None`` without one.

    It keeps the copies of the model that are wanted on the way. ``data`` are checksums of files by data set: a run on
    other files is passed over.
    """
    for info in reversed(list_runs(out)):
        if info.experiment == "train" and info.status in statuses:
            try:
                folder = RunFolder.open(info.path)
                found = folder.config(VAEConfig)
            except ValueError:  # of a configuration that this version cannot read
                continue
            if serves(found, config) and _is_on(folder, data):
                return folder
    return None


def _is_on(folder: RunFolder, data: Mapping[str, Mapping[str, str]]) -> bool:
    try:
        before = folder.environment().get("data", {})
    except ValueError:  # damaged
        return False
    return all(name not in before or before[name] == dict(sums) for name, sums in data.items())
