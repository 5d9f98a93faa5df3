"""Data, model and guide of one fit, from a configuration: where experiments choose concrete classes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from amortized_bayes.data import binarize, load_dataset
from amortized_bayes.experiments.sweep import Fit, Rates, SweepConfig
from amortized_bayes.guides import Amortized, Constant, Factorized, LocalGuide, MeanField
from amortized_bayes.inference.options import FitOptions, settling
from amortized_bayes.models import DeepGenerative
from amortized_bayes.networks import MLP
from amortized_bayes.seeding import torch_seed
from amortized_bayes.sites import LatentSites, latent_sites
from amortized_bayes.types import Dataset

__all__ = [
    "Problem",
    "build_guide",
    "build_model",
    "check_pixels",
    "fit_options",
    "load_problem",
    "model_name",
    "rates",
]


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


def load_problem(config: SweepConfig, dataset: str, seed: int, data_dir: Path | None, device: torch.device) -> Problem:
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


def check_pixels(config: SweepConfig, found: Dataset) -> None:
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


def model_name(config: SweepConfig) -> str:
    """Name of the model in rows."""
    likelihood = config.likelihood if config.likelihood == "bernoulli" else f"gaussian-{config.gaussian_scale}"
    return f"{config.decoder}-{likelihood}"


def build_model(config: SweepConfig, problem: Problem, seed: int) -> tuple[DeepGenerative, LatentSites]:
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


def build_guide(
    config: SweepConfig, problem: Problem, sites: LatentSites, fit: Fit, start: LocalGuide | None = None
) -> LocalGuide:
    """The guide of a fit. ``start`` is the A-VI solution that ``factorized-from-amortized`` starts at.

    Raises:
        ValueError: an unknown family, or one that needs a start and got none.
    """
    device, size = problem.train.device, len(problem.train)
    torch.manual_seed(torch_seed(fit.seed, "guide", fit.guide, fit.k or 0))
    published = config.init == "published"
    shared = None
    if sites.shared:
        shared = (
            MeanField(sites.shared, log_scale=-2.0) if published else MeanField(sites.shared, locs=sites.shared_draw)
        )
    if fit.guide == "amortized":
        observed, width = problem.train.shape[1], fit.k or 1
        # the published encoder starts like any network of torch's, ours at the common q(z)
        encoder = MLP([observed, *[width] * config.depth, 2 * config.latent_dim]) if published else None
        guide = Amortized(sites.local, size, observed, width, config.depth, encoder=encoder, shared=shared)
    elif fit.guide == "constant":
        guide = Constant(sites.local, size, start=_published_rows(1, config)[0] if published else None, shared=shared)
    elif fit.guide == "factorized":
        guide = Factorized(sites.local, size, start=_published_rows(size, config) if published else None, shared=shared)
    elif fit.guide == "factorized-from-amortized" and start is not None:
        guide = _factorized_from(start, problem, sites, shared)
    else:
        raise ValueError(f"expected a known guide (and a start for factorized-from-amortized), got {fit.guide!r}")
    return guide.to(device)


@torch.no_grad()
def _factorized_from(start: LocalGuide, problem: Problem, sites: LatentSites, shared: nn.Module | None) -> Factorized:
    """F-VI whose rows are an encoder's answers, beside a copy of its q(theta)."""
    size = len(problem.train)
    rows = start.locate(problem.train.float(), torch.arange(size, device=problem.train.device))
    if shared is not None and start.shared is not None:
        shared.load_state_dict(start.shared.state_dict())
    return Factorized(sites.local, size, start=rows.cpu(), shared=shared)


def _published_rows(count: int, config: SweepConfig) -> Tensor:
    """Location ~ N(0, 1) and log scale ~ N(0, 1) - 1, as in the code of Margossian & Blei (2024)."""
    location, log_scale = torch.randn(count, config.latent_dim), torch.randn(count, config.latent_dim) - 1
    return torch.cat([location, log_scale], 1)


def rates(config: SweepConfig, guide: str) -> Rates:
    """Learning rates of a family."""
    by_family = {"amortized": config.rates_amortized, "constant": config.rates_constant}
    return Rates(*by_family.get(guide, config.rates_factorized))


def fit_options(config: SweepConfig, fit: Fit, num_data: int, chosen: Rates | None = None) -> FitOptions:
    """How to fit a guide."""
    rate = chosen or rates(config, fit.guide)
    return FitOptions(
        batch_size=min(config.batch_size, num_data),
        learning_rate=rate.local,
        shared_learning_rate=rate.shared,
        row_learning_rate=rate.local,
        local_reparametrization=config.local_reparametrization and config.decoder == "bayesian",
        capture=config.compile_step,
        # only a reference, which no other fit is timed against: let its step fall, so that its rows settle
        schedule=settling if fit.guide == "factorized-from-amortized" else None,
    )
