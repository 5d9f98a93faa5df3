"""Data, model and guide of one fit, from a configuration: where experiments choose concrete classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from amortized_bayes.data import binarize, load_dataset
from amortized_bayes.models import DeepGenerative
from amortized_bayes.seeding import torch_seed
from amortized_bayes.sites import LatentSites, latent_sites
from amortized_bayes.types import Dataset

__all__ = ["Problem", "build_model", "check_pixels", "load_problem"]


class Problem(NamedTuple):
    """A data set as the model sees it (``train``, ``test``) and as it was (grey values in [0, 1], or reals).

    All tensors are ``(N, P)`` and live on the device.
    """

    name: str
    train: Tensor
    test: Tensor
    grey_train: Tensor
    grey_test: Tensor
    image_shape: tuple[int, int] | None
    sha256: dict[str, str]
    source: str


def load_problem(config: Any, dataset: str, seed: int, data_dir: Path | None, device: torch.device) -> Problem:
    """Load, subsample and (for a Bernoulli likelihood) binarize a data set, all by the seed.

    Raises:
        ValueError: the data cannot be had, or are no grey values where the likelihood is Bernoulli.
    """
    found = load_dataset(dataset, data_dir=data_dir, seed=seed)
    pixels = {"train": found.train.pixels[: config.num_train], "test": found.test.pixels[: config.num_test]}
    grey = {split: (p / np.float32(found.grey_levels)).astype(np.float32) for split, p in pixels.items()}
    seen = grey
    check_pixels(config, found)
    if config.likelihood == "bernoulli":
        seen = {split: binarize(p, found.grey_levels, seed, split) for split, p in pixels.items()}

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Problem(
        found.name,
        on_device(seen["train"]),
        on_device(seen["test"]),
        on_device(grey["train"]),
        on_device(grey["test"]),
        found.image_shape,
        found.sha256,
        found.source,
    )


def check_pixels(config: Any, found: Dataset) -> None:
    """Refuse data that are no grey values where the likelihood is Bernoulli.

    Raises:
        ValueError: values outside [0, 1].
    """
    splits = (found.train.pixels, found.test.pixels)
    low, high = (float(extreme) / found.grey_levels for extreme in (min(map(np.min, splits)), max(map(np.max, splits))))
    if config.likelihood == "bernoulli" and (low < 0 or high > 1):
        raise ValueError(
            f"expected uint8 or values in [0, 1] for --likelihood bernoulli, got {low:.3g} to {high:.3g} "
            f"in {found.source}; use --likelihood gaussian"
        )


def build_model(config: Any, problem: Problem, seed: int) -> tuple[DeepGenerative, LatentSites]:
    """The model, and its latent sites with the start of q(theta), equal for all guides of a seed."""
    torch.manual_seed(torch_seed(seed, "start", problem.name))
    learned = config.likelihood == "gaussian" and config.gaussian_scale == "learned"
    model = DeepGenerative(
        problem.train.shape[1],
        config.latent_dim,
        config.hidden,
        len(problem.train),
        likelihood="gaussian-learned" if learned else config.likelihood,
        bayesian=config.decoder == "bayesian",
        weight_prior=config.weight_prior,
    )
    return model.to(problem.train.device), latent_sites(model, problem.train[:2].float())
