"""The refit itself: an encoder fitted to new data, its decoder held fixed, and IWAE along the way."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from amortized_bayes.divergence import Divergence
from amortized_bayes.evaluation.bounds import iwae
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.setup import rows_at_once, taken_in_training
from amortized_bayes.experiments.trained import Trained, reconstructions
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.inference.svi import Training
from amortized_bayes.joint import global_seed
from amortized_bayes.keeping import kept

__all__ = ["refit"]


def refit(
    trained: Trained, sets: Mapping[str, Tensor], config: Any, lab: Lab
) -> Iterator[tuple[int, float, dict[str, np.ndarray]]]:
    """Fit a copy of the encoder to the first set; yield steps, seconds and the IWAE of each point of each set.

    ``config`` are the settings of ``refit``. The draws of IWAE are the same at every evaluation, so that differences
    along the way are paired.

    Raises:
        Divergence: the loss, or a bound, is not finite.
    """
    model, guide = trained.model, copy.deepcopy(trained.guide).requires_grad_()
    model.requires_grad_(False)
    x, seed = next(iter(sets.values())), trained.config.seed
    options = FitOptions(
        batch_size=min(config.refit_batch_size, len(x)), learning_rate=config.refit_learning_rate, average=None
    )
    # The model counts its own training images: programs that take no places count those that they are given.
    training = Training(model, guide, x, options, seed, pass_index=False)

    def found() -> dict[str, np.ndarray]:
        values = {}
        for name, images in sets.items():
            with global_seed(seed, "refit", name):
                bound = iwae(
                    model, guide, images, num_particles=config.particles, max_rows=rows_at_once(trained.config)
                ).value
            if not bool(bound.isfinite().all()):
                raise Divergence(training.steps, bound.mean().item())
            values[name] = bound.double().cpu().numpy()
        return values

    each = training.batches.per_epoch
    total = config.refit_epochs * each
    wanted = [*range(config.every * each, total, config.every * each), total]
    told: list[tuple[int, float, dict[str, np.ndarray]]] = []
    with kept("refit", lambda: [training.state(), told]) as loop:
        if loop.found is None:
            told.append((0, 0.0, found()))
        else:
            state, known = loop.found
            training.load_state(state)
            told += [(step, seconds, values) for step, seconds, values in known]
        yield from told
        left = total - training.steps
        for record in taken_in_training(training.run(left, wanted, 0, lambda: loop.due), guide) if left else ():
            lab.watch("refit", record.step, total, f"ELBO {record.elbo:.1f}")
            if record.step in wanted:
                told.append((record.step, record.seconds, found()))
                lab.show(record.step, reconstructions(trained._replace(guide=guide), x))
                yield told[-1]
            loop.offer()
