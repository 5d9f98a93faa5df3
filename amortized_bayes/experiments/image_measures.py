"""What ``celeba`` measures: bounds of few points, ELBO of many, and Fréchet distances."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from amortized_bayes.dcgan import evaluating
from amortized_bayes.evaluation.bounds import Elbo, elbo
from amortized_bayes.evaluation.frechet import features_of, frechet_distance
from amortized_bayes.evaluation.laplace import Laplace, laplace, sandwich
from amortized_bayes.experiments.image_setup import (
    Sample,
    Source,
    encode,
    features_from,
    images_at,
    scale_of,
    shown,
    simulate,
)
from amortized_bayes.experiments.protocol import Bounds
from amortized_bayes.experiments.spec import Measured, measured
from amortized_bayes.guides import Amortized
from amortized_bayes.inference.optimize import optimize_local
from amortized_bayes.inference.settings import LocalSettings
from amortized_bayes.joint import Gaussian, global_seed
from amortized_bayes.keeping import known
from amortized_bayes.models import DeepGenerative
from amortized_bayes.per_point import mean_over_points
from amortized_bayes.seeding import torch_generator

if TYPE_CHECKING:
    from amortized_bayes.experiments.image_settings import Config

__all__ = ["SEARCHED", "WATCHED", "Measures", "SearchedBounds", "best_mode", "forward_kl", "measured_images"]

ROWS = 250
"""Images at once."""
PICTURES = 10
"""Images of a kind that are shown."""
DRAWS = 4
"""Of q for the ELBO of each new point."""
OWN_DRAWS = 100
"""Of q for the ELBO of each point that is searched."""
CERTIFICATE_STARTS = 4
"""Draws of the encoder's q from which the certificate climbs."""
CLIMB = 30
"""Steps to a mode of a point's posterior."""
SEARCH = LocalSettings(max_steps=100, max_rounds=2, num_samples=10, num_score=200)
"""Of the best q of each point, which starts at the best for the Gaussian around the mode."""
SEARCHED = "searched"
WATCHED = {"encoder": "encoder alone", "joint": "jointly"}
"""Stages in words."""


def measured_images(config: Config) -> float:
    """Images that pass a network where something is measured."""
    checks, searches = 2 * config.checkpoints + 2, config.checkpoints + 1
    search = 2 * CLIMB * 2 * config.latent_dim + 60 * SEARCH.max_steps + config.particles
    return checks * (6.0 * config.frechet_images + 10 * config.test_points) + searches * config.points * search


def forward_kl(guide: Amortized, x: Tensor, z: Tensor) -> Tensor:
    """Log q(z|x) of latents ``(B, D)`` and the points that were drawn from them, ``(B,)``."""
    loc, log_scale = guide.locate(x, torch.arange(len(x))).chunk(2, -1)
    return torch.distributions.Normal(loc, log_scale.exp()).log_prob(z).sum(-1)


class SearchedBounds:
    """Bounds of few points, each with a search of its own, once for each state of a model.

    Args:
        sample: the points, with the latents that they were simulated from.
        particles: draws of each for the bounds on log p(x).
        seed: random seed for all draws.
    """

    def __init__(self, sample: Sample, particles: int, seed: int) -> None:
        self.sample, self.particles, self.seed = sample, particles, seed
        self.known: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.last = ""

    def as_bounds(self) -> Bounds:
        """What the protocol calls."""

        def star(model: DeepGenerative, guide: Amortized, x: Tensor) -> Tensor:
            return self._search(model, guide, x)[1]

        def log_p(model: DeepGenerative, guide: Amortized, x: Tensor) -> Tensor:
            return self._search(model, guide, x)[0]

        return Bounds(self._elbo, star, log_p)

    def rows(self) -> Iterator[Measured]:
        """What the searches of the last model report to be missing."""
        yield measured("residual", mean_over_points(self.known[self.last][2]), split=SEARCHED)

    def certificate(self, truth: DeepGenerative, guide: Amortized) -> Measured:
        """How far log p(x) of the truth may lie above its bound: from modes that are found without the true latents."""

        def compute() -> list[Any]:
            network, scale, x = truth.network, scale_of(truth), self.sample.x
            assert network is not None
            draws = torch_generator(self.seed, "certificate", device=x.device)
            with evaluating(truth, guide):
                starts = [encode(guide, x, draws) for _ in range(CERTIFICATE_STARTS)]
                near = best_mode(network, x, starts, scale)
                return list(sandwich(network, x, near, scale, self.particles, draws, self.sample.z))

        lower, upper = known("certificate", compute)
        lower = torch.maximum(lower, self.known[_fingerprint(truth)][0])
        return measured("sandwich_gap", mean_over_points(upper - lower), split=SEARCHED)

    def _elbo(self, model: DeepGenerative, guide: Amortized, x: Tensor) -> Elbo:
        def compute() -> list[Any]:
            with evaluating(model, guide), global_seed(self.seed, "elbo"):
                return list(elbo(model, guide, x, num_draws=OWN_DRAWS))

        return Elbo(*known("elbo", compute))

    def _search(self, model: DeepGenerative, guide: Amortized, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.last = key = _fingerprint(model)
        if key in self.known:
            return self.known[key]
        scale = scale_of(model)
        network = model.network
        assert network is not None

        def bounds() -> list[Any]:
            with evaluating(model, guide):
                loc, _ = guide.locate(x, torch.arange(len(x))).chunk(2, -1)
                near = best_mode(network, x, (self.sample.z, loc), scale)
                lower, _ = sandwich(
                    network, x, near, scale, self.particles, torch_generator(self.seed, "sandwich", device=x.device)
                )
                return [near.mean, near.factorized_scale, lower]

        mean, spread, lower = known("searched", bounds)
        model.eval()
        start = Gaussian(mean.to(x), spread.to(x))
        found = optimize_local(model, start, x, settings=SEARCH, seed=self.seed)
        self.known[key] = lower, found.elbo_star, found.residual
        return self.known[key]


def best_mode(network: nn.Module, x: Tensor, starts: Sequence[Tensor], scale: float) -> Laplace:
    """The highest mode of each point that is found from several starts."""
    found = [laplace(network, x, start, scale, CLIMB) for start in starts]
    best = torch.stack([one.log_joint for one in found]).argmax(0)
    rows = torch.arange(len(x), device=x.device)
    return Laplace(*(torch.stack(parts)[best, rows] for parts in zip(*found, strict=True)))


def _fingerprint(model: nn.Module) -> str:
    whole = hashlib.sha256()
    for tensor in model.state_dict().values():
        whole.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return whole.hexdigest()


class Measures:
    """ELBO of new points, and Fréchet distances, with everything in evaluation mode.

    Args:
        config: settings of the run.
        seed: random seed for all draws; they are the same at each checkpoint.
        truth: the generator that data come from.
        source: the images that it was trained on.
        extract: features of images.
    """

    def __init__(
        self,
        config: Config,
        seed: int,
        truth: DeepGenerative,
        source: Source,
        extract: Callable[[Tensor], Tensor],
    ) -> None:
        self.config, self.seed, self.truth, self.source, self.extract = config, seed, truth, source, extract
        self.device = truth.zero.device
        self.test = simulate(truth, config.test_points, torch_generator(seed, "celeba", "test", device=self.device))
        self.metric = f"frechet_{features_from(config, source)}"
        self.of_truth = self.features(lambda real, _: real)
        self.again = self.features(lambda _, other: other)

    def rows(self, model: DeepGenerative, guide: Amortized) -> Iterator[Measured]:
        """All that is measured at a checkpoint."""
        yield from (Measured(*row) for row in known("look", lambda: list(self._rows(model, guide))))

    def features(self, images: Callable[[Sample, Sample], Sample]) -> Tensor:
        """Features of images made of points of the truth, or of other draws from the prior, a batch at a time."""
        generator = torch_generator(self.seed, "celeba", "frechet", device=self.device)

        def batches() -> Iterator[Tensor]:
            for start in range(0, self.config.frechet_images, ROWS):
                count = min(ROWS, self.config.frechet_images - start)
                shown = images(*(simulate(self.truth, count, generator) for _ in range(2)))
                yield shown.x if self.config.noisy else shown.mean

        return features_of(self.extract, batches())

    def samples(self, model: DeepGenerative) -> Tensor:
        """Features of a model's images at the latents of the truth's second set."""
        draws = torch_generator(self.seed, "celeba", "samples", device=self.device)
        return self.features(lambda _, other: images_at(model, other.z, draws))

    def redecoded(self, model: DeepGenerative, guide: Amortized) -> Tensor:
        """Features of a model's images at latents from q(z|x) of the truth's points."""
        draws = torch_generator(self.seed, "celeba", "re-decoded", device=self.device)
        return self.features(lambda real, _: images_at(model, encode(guide, real.x, draws), draws))

    def pictures(self, model: DeepGenerative, guide: Amortized, stage: str) -> dict[str, np.ndarray]:
        """Means of the pixels of a few points, re-decoded, and of samples."""
        draws = torch_generator(self.seed, "celeba", "pictures", device=self.device)
        count = min(PICTURES, len(self.test.x), len(self.source.pixels))
        z, mean, x = (tensor[:count] for tensor in self.test)
        when = WATCHED[stage].replace(" ", "_")
        data = self.source.batch(torch.arange(count))
        found = {
            "images_it_was_trained_on": data,
            "truth": mean,
            f"re-decoded,_{when}": images_at(model, encode(guide, x, draws), draws).mean,
        }
        if stage == "joint":
            found[f"samples,_{when}_(same_latents)"] = images_at(model, z, draws).mean
        return {f"picture_{name}": shown(self.source, images) for name, images in found.items()}

    def _rows(self, model: DeepGenerative, guide: Amortized) -> Iterator[Measured]:
        x, z = self.test.x, self.test.z
        with evaluating(model, guide), global_seed(self.seed, "look"):
            found = elbo(model, guide, x, num_draws=DRAWS, chunk_size=ROWS)
            log_q = torch.cat([forward_kl(guide, *part) for part in zip(x.split(ROWS), z.split(ROWS), strict=True)])
        residual = (x - self.test.mean) / scale_of(self.truth)
        log_p = torch.distributions.Normal(0.0, 1.0).log_prob(residual).double().sum(-1)
        log_p = log_p - x.shape[-1] * math.log(scale_of(self.truth))
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).double().sum(-1)
        for name, values in {
            "elbo": found.value,
            "reconstruction": found.log_likelihood,
            "kl": found.kl,
            "log_p_of_truth": log_p,
            "log_q_of_truth": log_q,
            "log_p_above": log_p + prior - log_q,
        }.items():
            yield measured(name, mean_over_points(values), split="test")
        if self.config.sigma == "learned":
            yield Measured("learned_sigma", scale_of(model))
        with evaluating(model, guide):
            sets = {
                "re-decoded": (self.of_truth, self.redecoded(model, guide)),
                "samples": (self.of_truth, self.samples(model)),
                "truth again": (self.of_truth, self.again),
            }
        for name, (real, other) in sets.items():
            value, error = frechet_distance(real, other)
            yield Measured(self.metric, value, error, "points", {"set": name})
