"""Gradients of encoder and decoder on batches of training, of a model that is not moved."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyro
import torch

from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.setup import build_vae, vae_options
from amortized_bayes.experiments.trained import Trained, load_state, state_of
from amortized_bayes.inference.svi import Training
from amortized_bayes.joint import global_seed

__all__ = ["BatchGradients", "batch_gradients"]


class BatchGradients(NamedTuple):
    """Norms of gradients, one per batch ``(n,)`` for each part, and how many parameters each part has."""

    norms: dict[str, np.ndarray]
    sizes: dict[str, int]


def batch_gradients(trained: Trained, count: int, lab: Lab) -> BatchGradients:
    """Gradients of the loss, the negative ELBO per point of a batch, on the first ``count`` batches of training.

    Batches and draws are the same for all models of one seed and data set. The encoder's parameters include those of
    the flow. Each batch is taken once: ``count`` is at most the number of batches in an epoch.

    Raises:
        ArithmeticError: a gradient that is not finite.
    """
    config, data = trained.config, trained.data
    model, guide = build_vae(config, data)  # with gradients, which a trained model does not take
    load_state(model, guide, state_of(trained.model, trained.guide), "the model")
    training = Training(model, guide, data.train, vae_options(config), config.seed)
    decoder = {id(parameter) for parameter in model.parameters()}
    parts = ["decoder" if id(parameter) in decoder else "encoder" for parameter in training.variables.parameters]
    squares: dict[str, list[float]] = {"encoder": [], "decoder": []}
    count = min(count, training.batches.per_epoch)
    with pyro.validation_enabled(False), global_seed(config.seed, "gradients"):
        for number in range(count):
            index = training.batches[number]
            _, *gradients = training.loss_and_gradients(data.train[index].to(training.dtype), index)
            for part, found in squares.items():
                own = [g.double().square().sum() for g, p in zip(gradients, parts, strict=True) if p == part]
                found.append(float(torch.stack(own).sum()))
            lab.watch("gradients", number + 1, count)
    norms = {part: np.sqrt(np.array(found)) for part, found in squares.items()}
    for part, values in norms.items():
        if not np.isfinite(values).all():
            raise ArithmeticError(f"the gradient of the {part} is not finite in batch {np.isfinite(values).argmin()}")
    sizes = {
        part: sum(p.numel() for p, own in zip(training.variables.parameters, parts, strict=True) if own == part)
        for part in norms
    }
    return BatchGradients(norms, sizes)
