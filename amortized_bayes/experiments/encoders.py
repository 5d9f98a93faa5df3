"""An encoder, with its flow, trained for a decoder that is held fixed."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from amortized_bayes.divergence import Divergence
from amortized_bayes.evaluation.bounds import elbo
from amortized_bayes.experiments.bounds import ELBO_DRAWS, PointBounds, elbo_of, same_points
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.setup import build_encoder, taken_in_training, vae_options
from amortized_bayes.experiments.trained import Trained, reconstructions
from amortized_bayes.inference.semi_amortized import SemiAmortized
from amortized_bayes.inference.svi import Training
from amortized_bayes.keeping import kept
from amortized_bayes.seeding import torch_seed
from amortized_bayes.sites import latent_sites
from amortized_bayes.types import Guide, Model

__all__ = ["FittedEncoder", "MeasuredEncoder", "fit_encoder", "fitted_encoder", "measured_encoder"]

NUM_EVALUATIONS = 20
SHOWN_EVERY = 4
"""Evaluations from one at which reconstructions are shown to the next."""
PATIENCE = 5
"""Evaluations without a better validation ELBO before stopping."""
VALIDATION_DRAWS = 4


class FittedEncoder(NamedTuple):
    """An encoder with its flow, and the seconds that the steps of its training took."""

    guide: nn.Module
    seconds: float


class MeasuredEncoder(NamedTuple):
    """An encoder with its flow, the points it is measured at, its L[q] there, and what an earlier job found there."""

    guide: nn.Module
    x: Tensor
    found: PointBounds
    known: dict[str, np.ndarray]


def measured_encoder(
    model: VAEConfig, wanted: VAEConfig, key: str, lab: Lab, num_draws: int = ELBO_DRAWS
) -> MeasuredEncoder:
    """Fit the encoder of ``wanted`` for a trained model, and measure it at the points of the job ``key``."""
    trained, x, known = same_points(model, key, lab)
    guide = fit_encoder(trained, wanted, lab)
    return MeasuredEncoder(guide, x, elbo_of(trained.model, guide, x, wanted.seed, num_draws), known)


def fit_encoder(trained: Trained, wanted: VAEConfig, lab: Lab) -> nn.Module:
    """As :func:`fitted_encoder`: an encoder that is trained afresh."""
    return fitted_encoder(trained, wanted, lab).guide


def fitted_encoder(
    trained: Trained, wanted: VAEConfig, lab: Lab, *, further: bool = False, looks: int = NUM_EVALUATIONS
) -> FittedEncoder:
    """Fit the encoder and family of ``wanted`` to the training images, with the decoder of ``trained`` held fixed.

    With validation images the encoder that is best on them is returned, and fitting stops when it gets no better.

    Args:
        trained: the model; none of its parameters moves.
        wanted: encoder, family, seed, and how to fit: the most passes over the images, batch size, learning rate, its
            schedule, and epochs of KL warm-up.
        lab: who is told how far it is, as the stage ``encoder``.
        further: start at the encoder of ``trained``, which has the same networks, and not afresh; with validation
            images the start itself is returned where nothing later is better on them.
        looks: evaluations on validation images, the last at the end.

    Raises:
        Divergence: the loss, or the validation ELBO, is not finite.
    """
    data, model = trained.data, trained.model
    model.requires_grad_(False)
    guide = build_encoder(wanted, data, model, latent_sites(model, data.train[:2].float()).local).to(data.train.device)
    if further:
        _without_steps(guide).load_state_dict(_without_steps(trained.guide).state_dict())
    training = Training(model, guide, data.train, vae_options(wanted), wanted.seed)
    total = wanted.epochs * training.batches.per_epoch
    evaluations = {round(total * (i + 1) / looks) for i in range(looks)}
    shown = set(sorted(evaluations)[SHOWN_EVERY - 1 :: SHOWN_EVERY])
    ticks = evaluations | {round(total * i / 200) for i in range(1, 200)}
    best, state, since = -math.inf, copy.deepcopy(guide.state_dict()), 0
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed(wanted.seed, "encoder looks"))
        with kept("encoder", lambda: [training.state(), best, state, since]) as loop:
            if loop.found is not None:
                now, best, state, since = loop.found
                training.load_state(now)
            elif further and data.validation is not None:
                best = _validation_elbo(model, guide, data.validation, 0)  # the start may be the best there is
            left = total - training.steps if since < PATIENCE else 0
            records = training.run(left, ticks, 0, lambda: loop.due) if left else iter(())
            for record in taken_in_training(records, guide):
                lab.watch("encoder", record.step, total, f"ELBO {record.elbo:.1f}")
                if data.validation is not None and record.step in evaluations:
                    with training.averaged():
                        value = _validation_elbo(model, guide, data.validation, record.step)
                        since += 1
                        if value > best:
                            best, state, since = value, copy.deepcopy(guide.state_dict()), 0
                        lab.show(record.step, validation_elbo=value)
                if record.step in shown:
                    with training.averaged():
                        lab.show(record.step, reconstructions(trained._replace(guide=guide), data.test))
                loop.offer()
                if since >= PATIENCE:
                    break
    if data.validation is None:
        training.settle()
    else:
        guide.load_state_dict(state)
    return FittedEncoder(guide.requires_grad_(False), training.seconds)


def _without_steps(guide: nn.Module) -> nn.Module:
    return guide.guide if isinstance(guide, SemiAmortized) else guide


def _validation_elbo(model: Model, guide: Guide, images: Tensor, step: int) -> float:
    """ELBO of validation images in nats per point.

    Raises:
        Divergence: it is not finite.
    """
    value = elbo(model, guide, images.float(), num_draws=VALIDATION_DRAWS).value.mean().item()
    if not math.isfinite(value):
        raise Divergence(step, value)
    return value
