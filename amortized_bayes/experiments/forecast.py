"""How long an experiment of *Inference Suboptimality* will take, before it starts."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.suboptimality import (
    BoundsConfig,
    FrozenDecoderConfig,
    TestSetGapsConfig,
    ToyConfig,
    frozen_base,
    set_models,
    toy_base,
)
from amortized_bayes.experiments.trained import estimate_training, find_trained
from amortized_bayes.models import DeepGenerative

__all__ = ["forecast"]

ROWS = 2_000
FLOW_COST = 4.0
"""A step of a flow of each point's own over one of the Gaussian, with 10 draws, measured once on a 50-latent VAE."""
GPU_SPEED = 1e13
"""Floating-point operations a second that small batches reach on a large GPU: an order of magnitude to plan with."""
FIRST = 6.0
"""Seconds that loading, tracing and capturing take for each model."""


def forecast(
    config: TestSetGapsConfig | FrozenDecoderConfig | ToyConfig, out: Path, device: torch.device, data_dir: Path | None
) -> tuple[float, float]:
    """Seconds here, from a few steps of training and a few gradients, and on a GPU, by arithmetic.

    Raises:
        ValueError: data that cannot be had.
    """
    if isinstance(config, TestSetGapsConfig):
        models = set_models(config)
        fits, bounds, measured = [], config.bounds, len(models)
    elif isinstance(config, FrozenDecoderConfig):
        base = frozen_base(config)
        models, bounds, measured = [base], config.bounds, 1
        fits = [
            replace(base, encoder=encoder, family=family, epochs=config.encoder_epochs)
            for family in config.families
            for encoder in config.encoders
        ]
    else:
        base = toy_base(config)
        models, measured = [base], 1
        fits = [replace(base, family=family, epochs=config.encoder_epochs) for family in config.families]
        bounds = BoundsConfig(best_families=config.families, local_steps=config.steps, flow_steps=config.steps)
    missing = [model for model in models if find_trained(out, model) is None]
    training = sum(_training_seconds([*missing, *fits], device, data_dir))
    evaluations = measured * config.points * _evaluations(bounds)
    each = _seconds_an_evaluation(models[0], device)
    here = training + evaluations * each + FIRST * (len(missing) + len(fits) + measured)
    steps = sum(model.epochs * model.num_train // model.batch_size for model in [*missing, *fits])
    flops = 6.0 * sum(p.numel() for p in _model(models[0], device).parameters())
    return here, steps * 1e-3 + evaluations * flops / GPU_SPEED + FIRST * (len(missing) + len(fits))


def _training_seconds(models: list[VAEConfig], device: torch.device, data_dir: Path | None) -> list[float]:
    """Of each model, timed once for each family and encoder, and scaled by epochs."""
    known: dict[tuple[str, str, str, int], float] = {}
    found = []
    for model in models:
        key = (model.dataset, model.family, model.encoder, model.batch_size)
        if key not in known:
            known[key] = estimate_training(model, device, data_dir, num_steps=3) / model.epochs
        found.append(known[key] * model.epochs)
    return found


def _evaluations(bounds: BoundsConfig) -> float:
    """Decoder evaluations a point, in units of one with its gradient."""
    flows = FLOW_COST * 10 * bounds.flow_steps * (len(bounds.best_families) - 1)
    chains = bounds.chains * 2 * (bounds.temperatures + 24)
    return 10 * bounds.local_steps + flows + 2.5 * chains + bounds.particles / 2


def _seconds_an_evaluation(config: VAEConfig, device: torch.device) -> float:
    """Seconds that a decoder evaluation with its gradient takes, in blocks."""
    model = _model(config, device)
    z = torch.randn(ROWS, config.latent_dim, device=device, requires_grad=True)
    least = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        output = model.decode(z, model.weights())
        torch.autograd.grad(model.observation(output).log_prob(torch.ones_like(output)).sum(), z)
        least = min(least, time.perf_counter() - start)
    return least / ROWS


def _model(config: VAEConfig, device: torch.device) -> DeepGenerative:
    """A decoder of the size of the configuration's, on images of 28 by 28."""
    return DeepGenerative(784, config.latent_dim, config.hidden, 1, bayesian=False, activation="elu").to(device)
