"""Guide and options of one fit of the sweep, from its configuration."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amortized_bayes.experiments.setup import ImageData, load_images
from amortized_bayes.experiments.sweep import Fit, Rates, SweepConfig
from amortized_bayes.guides import Amortized, Constant, Factorized, LocalGuide, MeanField
from amortized_bayes.inference.options import FitOptions, settling
from amortized_bayes.likelihoods import with_scale
from amortized_bayes.networks import MLP
from amortized_bayes.seeding import torch_seed
from amortized_bayes.sites import LatentSites
from amortized_bayes.types import Dataset

__all__ = [
    "build_guide",
    "fit_options",
    "load_sweep_images",
    "model_name",
    "rates",
]


def load_sweep_images(config: SweepConfig, source: Dataset, seed: int, device: torch.device) -> ImageData:
    """Images of the sweep from a data set shuffled by ``seed``.

    Raises:
        ValueError: as :func:`~amortized_bayes.experiments.setup.load_images`.
    """
    return load_images(
        source,
        likelihood=with_scale(config.likelihood, config.gaussian_scale),
        seed=seed,
        num_train=config.num_train,
        num_test=config.num_test,
        device=device,
    )


def model_name(config: SweepConfig) -> str:
    """Name of the model in rows."""
    likelihood = config.likelihood if config.likelihood == "bernoulli" else f"gaussian-{config.gaussian_scale}"
    return f"{config.decoder}-{likelihood}"


def build_guide(
    config: SweepConfig, problem: ImageData, sites: LatentSites, fit: Fit, start: LocalGuide | None = None
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
def _factorized_from(start: LocalGuide, problem: ImageData, sites: LatentSites, shared: nn.Module | None) -> Factorized:
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
