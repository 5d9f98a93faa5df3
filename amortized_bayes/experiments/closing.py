"""What each method of ``close-the-gap`` recovers at the same points of one decoder, and the seconds that it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from amortized_bayes.experiments.bounds import some_points
from amortized_bayes.experiments.encoders import fitted_encoder
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.spec import Arrays, Measured, measured
from amortized_bayes.experiments.trained import Trained
from amortized_bayes.guides import LocalGuide
from amortized_bayes.inference.families import Diagonal
from amortized_bayes.inference.members import score
from amortized_bayes.inference.optimize import LocalSettings, optimize_local
from amortized_bayes.inference.refine import RefineSettings, refine
from amortized_bayes.joint import Gaussian, LogJoint, joint_density
from amortized_bayes.per_point import mean_over_points
from amortized_bayes.seeding import torch_generator

__all__ = ["Place", "answer_of", "gain_over", "refined", "search", "trained_encoder"]

MAX_ROWS = 20_000
LOOKS = 20
"""Evaluations of an encoder on validation images, at most."""
ROUNDS = 2
"""Of a search for the best q, at most; the second is for points that the first leaves far off."""
TIMINGS = 5
"""An answer is asked for so many times, after one that is not timed; the median counts."""


class Place(NamedTuple):
    """Where methods are measured: settings of ``close-the-gap``, the model, and who loads it."""

    config: Any
    model: VAEConfig
    lab: Lab

    @property
    def subject(self) -> tuple[Trained, Tensor]:
        """The trained model, and the points ``(B, P)``."""
        trained = self.lab.trained(self.model)
        return trained, some_points(trained, self.config.split, self.config.points, self.config.seed, "close")[1]


def gain_over(
    joint: LogJoint, start: Gaussian, q: Gaussian, num_draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """L[q] - L[start] and the ELBOs of both, ``(B,)`` each, in nats; all from the same noise."""
    family = Diagonal(torch.ones_like(q.loc[0]))
    points = torch.arange(joint.num_points, device=q.loc.device)
    found = []
    for some in (q, start):
        generator = torch_generator(seed, "close", device=q.loc.device)
        weights = score(joint, family, points, family.rows(some), num_draws, MAX_ROWS, generator)
        found.append(weights.mean(0).cpu().numpy())
    return found[0] - found[1], found[0], found[1]


@torch.no_grad()
def answer_of(guide: nn.Module, x: Tensor) -> tuple[Gaussian, float]:
    """What a guide says of points ``(B, P)`` at once, and how many seconds it takes for each of them."""
    assert isinstance(guide, LocalGuide)
    index, seconds, rows = torch.arange(len(x), device=x.device), [], x
    for _ in range(1 + TIMINGS):
        _wait(x.device)
        begin = time.perf_counter()
        rows = guide.answer(x, index)
        _wait(x.device)
        seconds.append(time.perf_counter() - begin)
    loc, log_scale = rows.chunk(2, -1)
    return Gaussian(loc, log_scale.exp()), float(np.median(seconds[1:])) / len(x)


def search(place: Place, first: str, start: str) -> Iterator[Measured | Arrays]:
    """The best q of each point, from the encoder's answer or from the prior; its seconds include its scoring."""
    config, (trained, x) = place.config, place.subject
    own, seconds = answer_of(trained.guide, x)
    begin = time.perf_counter()
    found = optimize_local(
        trained.model,
        own if start == "encoder" else None,
        x,
        settings=LocalSettings(max_steps=config.search_steps, max_rounds=ROUNDS, num_score=config.score),
        seed=config.seed,
        progress=partial(place.lab.watch, "q*"),
    )
    spent = (time.perf_counter() - begin) / len(x)
    joint = joint_density(trained.model, x)
    gain, best, plain = gain_over(joint, own, found.q, config.score, config.seed)
    if not first:  # what there is to recover, beside it
        yield measured("elbo", mean_over_points(plain), split=config.split)
        yield measured("elbo_star", mean_over_points(best), split=config.split)
        yield measured("amortization_gap", mean_over_points(gain), split=config.split)
    from_start = seconds if start == "encoder" else 0.0
    yield from _rows(place, first, gain, spent + from_start, 0.0)
    yield Arrays({"recovered": gain, "elbo": best, "elbo_encoder": plain, "seconds_encoder": np.array(seconds)})


def refined(place: Place, first: str, optimizer: str) -> Iterator[Measured | Arrays]:
    """Per-point steps from the encoder's answer."""
    config, (trained, x) = place.config, place.subject
    rate = {"learning_rate": config.adam_rate} if optimizer == "adam" else {}
    settings = RefineSettings(
        steps=config.steps,
        num_samples=config.refine_samples,
        optimizer=optimizer,  # pyright: ignore[reportArgumentType]
        num_score=config.score,
        **rate,
    )
    watch = partial(place.lab.watch, "refinement")
    found = refine(trained.model, trained.guide, x, settings=settings, seed=config.seed, progress=watch)
    gains = found.gain.cpu().numpy()
    for steps, gain, seconds in zip(found.steps, gains, found.seconds.tolist(), strict=True):
        if steps:
            yield from _rows(place, first, gain, seconds / len(x), 0.0, budget=steps)
    yield Arrays({"steps": np.array(found.steps), "recovered": gains})


def trained_encoder(place: Place, first: str, wanted: VAEConfig, further: bool) -> Iterator[Measured | Arrays]:
    """An encoder that is trained for the decoder, further or afresh."""
    config, (trained, x) = place.config, place.subject
    start = answer_of(trained.guide, x)[0]
    looks = min(LOOKS, 2 * wanted.epochs)  # with per-point steps, these cost more than a pass
    fit = fitted_encoder(trained, wanted, place.lab, further=further, looks=looks)
    q, seconds = answer_of(fit.guide, x)
    gain, elbo, _ = gain_over(joint_density(trained.model, x), start, q, config.score, config.seed)
    yield from _rows(place, first, gain, seconds, fit.seconds)
    yield Arrays({"recovered": gain, "elbo": elbo})


def _rows(
    place: Place, first: str, gain: np.ndarray, seconds: float, training: float, **factors: int
) -> Iterator[Measured]:
    """What was recovered at each point, in nats and of what the best q recovers, and what it took."""
    mean, error = mean_over_points(gain)
    yield measured("recovered", (mean, error), **factors)
    ceiling = gain.mean() if not first else place.lab.arrays(first)["recovered"].mean()
    if ceiling > 0:
        yield Measured("recovered_share", float(mean / ceiling), factors=factors)
    yield Measured("seconds_per_point", seconds, factors=factors)
    if training:
        yield Measured("training_seconds", training, factors=factors)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
