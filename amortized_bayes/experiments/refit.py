"""Refit the encoder to noisy test images, with the decoder held fixed: does it help images that it was not refit to?

After Mattei & Frellsen (*Refit your Encoder when New Data Comes by*, NeurIPS workshop on Bayesian deep learning, 2018):
some pixels of each test image are flipped; the encoder is refit to the images of set A, and IWAE with 50 particles is
followed on A and on a set B of other images with flips of their own.

``python run_experiments.py refit`` runs preset *quick* on fixed binarized MNIST and FashionMNIST with two seeds: twelve
refits of four models, about 15 minutes on two cores, less where models of ``train`` are there. Expect refitting to gain
more on A than on B and, on MNIST, more nats the more pixels are flipped. *paper* has 200 epochs of refitting, as
published.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from amortized_bayes.configuration import Above, AtLeast, Different, Settings
from amortized_bayes.experiments.settings import VAE_PRESETS, VAEConfig, check_names, data_factors
from amortized_bayes.experiments.settings import image_substitutes as substitutes
from amortized_bayes.experiments.spec import Arrays, Job, Lines, Measured, Table, Work, measured

if TYPE_CHECKING:
    import numpy as np

    from amortized_bayes.experiments.lab import Lab

__all__ = ["FIGURES", "PRESETS", "TABLES", "Config", "flip", "jobs", "substitutes", "two_sets"]


@dataclass(frozen=True)
class Config(Settings):
    """Flip pixels of test images, refit the encoder to one set of them, and follow IWAE on it and on another set.

    Args:
        dataset: Data sets; one or more of binarized-mnist, mnist, fashion-mnist, cifar10, digits, or a path.
        epochs: Number of passes over the training images for each model.
        split: Where both sets of images come from.
        points: Number of images of each set; half of the split if there are fewer. The sets share no image.
        flips: Numbers of pixels flipped in each image; in colour images, of values.
        refit_epochs: Number of passes over set A.
        refit_batch_size: Number of images per step of refitting.
        refit_learning_rate: Learning rate of Adam while refitting.
        every: Number of epochs of refitting between two evaluations.
        particles: Number of IWAE particles.
        seeds: Random seeds, each for a model, its images, flips and draws.
    """

    dataset: Annotated[tuple[str, ...], Different()] = ("binarized-mnist", "fashion-mnist")
    epochs: Annotated[int, AtLeast(1)] = VAE_PRESETS["quick"].epochs
    split: Literal["train", "test"] = "test"
    points: Annotated[int, AtLeast(2)] = 1_000
    flips: Annotated[tuple[int, ...], Different(), AtLeast(0)] = (10, 50, 100)
    refit_epochs: Annotated[int, AtLeast(1)] = 100
    refit_batch_size: Annotated[int, AtLeast(1)] = 100
    refit_learning_rate: Annotated[float, Above(0)] = 1e-4
    every: Annotated[int, AtLeast(1)] = 5
    particles: Annotated[int, AtLeast(2)] = 50
    seeds: Annotated[tuple[int, ...], Different(), AtLeast(0, math.inf)] = (0, 1)

    def check(self) -> None:
        """Data sets have different names."""
        check_names(self.dataset)


PRESETS = {"quick": Config(), "paper": Config(points=5_000, refit_epochs=200, seeds=(0, 1, 2, 3, 4))}
TABLES = (Table(("flips", "set"), ("iwae", "refit_gain", "late_gain"), "{dataset}: an encoder refit to set A"),)
FIGURES = {
    "refit_{dataset}": (
        Lines(
            "step",
            ("refit_gain",),
            hue="set",
            apart="flips",
            own_scale=True,
            title="{dataset}: IWAE gained by an encoder refit to A; B is other images",
        ),
    )
}


def jobs(config: Config, lab: Lab) -> Iterator[Job]:
    """A job per data set, seed and number of flips."""
    for dataset in config.dataset:
        for seed in config.seeds:
            model = VAEConfig(dataset=dataset, epochs=config.epochs, seed=seed)
            looks = 2 * config.points * config.particles * (2 + config.refit_epochs // config.every)
            steps = config.refit_epochs * max(1, config.points // config.refit_batch_size)
            for flips in config.flips:
                yield Job(
                    {**data_factors(model), "flips": flips},
                    lambda model=model, flips=flips: _refit(config, model, flips, lab),
                    work=[
                        Work("refit", steps, lambda model=model: lab.step_seconds(model), "a few steps of training"),
                        lab.evaluation_work("refit", model, looks / 2),  # without a gradient
                    ],
                    needs=[model],
                    disk=16.0 * config.points * (3 + config.refit_epochs / config.every),
                )


def two_sets(count: int, points: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the images of sets A and B among ``count``: ``points`` each, or half of all; none is in both."""
    from amortized_bayes.seeding import numpy_generator

    order, size = numpy_generator(seed, "refit").permutation(count), min(points, count // 2)
    return order[:size], order[size : 2 * size]


def flip(bits: np.ndarray, flips: int, seed: int, name: str) -> np.ndarray:
    """Bits ``(N, P)`` of which exactly ``flips`` of each row are flipped; those of a smaller number are among them.

    Raises:
        ValueError: more flips than there are pixels.
    """
    from amortized_bayes.seeding import numpy_generator

    if flips > bits.shape[1]:
        raise ValueError(f"expected --flips of at most {bits.shape[1]}, the pixels of an image, got {flips}")
    places = numpy_generator(seed, "flips", name).random(bits.shape).argsort(1)[:, :flips]
    flipped = bits.copy()
    flipped[[[row] for row in range(len(bits))], places] ^= 1
    return flipped


def _refit(config: Config, model: VAEConfig, flips: int, lab: Lab) -> Iterator[Measured | Arrays]:
    """IWAE on both sets along the refit, from the first step on, and what it gains at each point."""
    import numpy as np
    import torch

    from amortized_bayes.experiments.refitting import refit
    from amortized_bayes.per_point import mean_over_points

    trained = lab.trained(model)
    images = getattr(trained.data, config.split)
    places = dict(zip("AB", two_sets(len(images), config.points, model.seed), strict=True))
    noisy = {n: flip(images[torch.from_numpy(p)].cpu().numpy(), flips, model.seed, n) for n, p in places.items()}
    sets = {name: torch.from_numpy(bits).to(images.device).float() for name, bits in noisy.items()}
    found: dict[str, list[np.ndarray]] = {"A": [], "B": []}
    for step, seconds, values in refit(trained, sets, config, lab):
        for name, value in values.items():
            found[name].append(value)
            for metric, now in (("iwae", value), ("refit_gain", value - found[name][0])):
                yield measured(metric, mean_over_points(now), set=name)._replace(step=step, seconds=seconds)
    for name, values in found.items():
        yield measured("late_gain", mean_over_points(values[-1] - values[len(values) // 2]), set=name)
    yield Arrays({f"places_{n}": p for n, p in places.items()} | {f"iwae_{n}": np.stack(v) for n, v in found.items()})
