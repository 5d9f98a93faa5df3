"""Settings of ``celeba``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Literal

from amortized_bayes.configuration import Above, AtLeast, Different, SettingError, Settings

__all__ = ["DEFAULT", "Config"]

DEFAULT = "fashion-mnist"


@dataclass(frozen=True)
class Config(Settings):
    """Train a known generator jointly with an encoder of factorized Gaussians (Shekhovtsov et al. 2022).

    Args:
        dataset: Images that the ground truth is trained on: fashion-mnist, mnist, cifar10, celeba, digits, or your own.
        images: Folder of images to use instead, all of one size; they are cropped to squares and resized to 64x64.
        latent_dim: Latents of the generator.
        channels: Channels of the networks next to the image; doubled at each halving of its sides.
        sigma: Whether the pixels' standard deviation is fixed at --noise, or learned jointly with the decoder.
        noise: Standard deviation of pixels in [-1, 1] given the generator's image.
        gan_steps: Steps of generator and discriminator.
        classifier_steps: Steps of the classifier whose features the Fréchet distance uses.
        encoder_steps: Steps of Adam for the encoder alone, by forward KL.
        joint_steps: Steps for encoder and decoder, by the ELBO.
        gan_rate: Learning rate of generator, discriminator and classifier.
        encoder_rate: Learning rate of the encoder alone.
        joint_rate: Learning rate of encoder and decoder.
        batch_size: Images per step.
        checkpoints: Number of measurements in each stage.
        features: Features of the Fréchet distance; auto is a classifier where the images have labels.
        frechet_images: Images in each of the sets that a Fréchet distance compares.
        noisy: Whether the Fréchet distance compares images with noise, on both sides, instead of their means.
        test_points: New points for the ELBO.
        points: New points for which the best q is searched and log p(x) is bounded.
        particles: Draws of each such point for the bounds on log p(x).
        seeds: One run per seed; seeds choose first weights, batches and draws.
    """

    dataset: str = DEFAULT
    images: str = ""
    latent_dim: Annotated[int, AtLeast(1, 10_000)] = 100
    channels: Annotated[int, AtLeast(1, 10_000)] = 16
    sigma: Literal["fixed", "learned"] = "fixed"
    noise: Annotated[float, Above(0)] = 0.05
    gan_steps: Annotated[int, AtLeast(1)] = 1_200
    classifier_steps: Annotated[int, AtLeast(1)] = 800
    encoder_steps: Annotated[int, AtLeast(1)] = 1_000
    joint_steps: Annotated[int, AtLeast(1)] = 1_000
    gan_rate: Annotated[float, Above(0)] = 2e-4
    encoder_rate: Annotated[float, Above(0)] = 1e-3
    joint_rate: Annotated[float, Above(0)] = 2e-4
    batch_size: Annotated[int, AtLeast(2)] = 64
    checkpoints: Annotated[int, AtLeast(1, 100)] = 4
    features: Literal["auto", "classifier", "discriminator"] = "auto"
    frechet_images: Annotated[int, AtLeast(2)] = 2_000
    noisy: bool = False
    test_points: Annotated[int, AtLeast(2)] = 1_000
    points: Annotated[int, AtLeast(2)] = 8
    particles: Annotated[int, AtLeast(25)] = 1_000
    seeds: Annotated[tuple[int, ...], Different(), AtLeast(0)] = (0,)

    def check(self) -> None:
        """One source of images, and enough of them for a distance."""
        if not self.seeds:
            raise SettingError("expected a seed at least")
        if self.images and self.dataset != DEFAULT:
            raise SettingError("expected --dataset or --images, got both")

    @property
    def source(self) -> str:
        """What the images are read from, as data sets are named."""
        return self.images if not self.images or "/" in self.images else os.path.join(".", self.images)

    @property
    def read_from(self) -> str:
        """The data set, or the folder given instead."""
        return self.source or self.dataset
