"""Joint training of a generator that is known: ELBO and Fréchet distance of images, after stage by stage.

After Shekhovtsov, Schlesinger & Flach (*VAE Approximation Error: ELBO and Exponential Families*, ICLR 2022) and its
reproduction (Kyrylov et al., ReScience C 9(2), 2023). A DCGAN that is trained here is the true decoder G, frozen
afterwards: z ~ N(0, I), x ~ N(G(z), 0.05² I). An encoder of factorized Gaussians is fitted to it by forward KL, on
samples of the truth; then encoder and decoder are trained by the ELBO, on samples of the truth again. Batch norm is in
evaluation mode wherever anything is measured, and decoder and encoder are trained jointly in it too, so that what is
trained is what is measured.

``python run_experiments.py celeba`` runs preset *quick* on FashionMNIST, padded to 32x32, and is planned for a quarter
of an hour on two cores. Expect that joint training raises the ELBO by tens of thousands of nats per point, and that
samples move away from those of the truth. ``--dataset celeba`` and ``--images FOLDER`` run the same at 64x64; *paper*
has the published settings, which want a GPU and days.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from amortized_bayes.configuration import Above, AtLeast, Different, SettingError, Settings
from amortized_bayes.data import DataUnavailable, display_name
from amortized_bayes.experiments.spec import Column, Drawn, Job, Lines, Table, Work

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab

__all__ = ["FIGURES", "FINDINGS", "PRESETS", "TABLES", "Config", "datasets", "jobs", "prepare"]

DEFAULT = "fashion-mnist"
SECONDS_PER_MAC = 1e-10
"""Of a multiplication and addition of a convolution: on one thread of two cores."""


@dataclass(frozen=True)
class Config(Settings):
    """Train a known generator jointly with an encoder of factorized Gaussians (Shekhovtsov et al. 2022).

    Args:
        dataset: Images that the ground truth is trained on: fashion-mnist, mnist, cifar10, celeba, digits, or your own.
        images: Folder of images to use instead, all of one size; they are cropped to squares and resized to 64x64.
        latent_dim: Latents of the generator.
        channels: Channels of the networks next to the image; doubled at each halving of its sides.
        sigma: Whether the pixels' standard deviation stays what --noise says, or is learned jointly with the decoder.
        noise: Standard deviation of pixels in [-1, 1] given the generator's image.
        gan_steps: Steps of generator and discriminator.
        classifier_steps: Steps of the classifier whose features the Fréchet distance uses.
        encoder_steps: Steps of Adam for the encoder alone, by forward KL.
        joint_steps: Steps for encoder and decoder, by the ELBO.
        gan_rate: Learning rate of generator, discriminator and classifier.
        encoder_rate: Learning rate of the encoder alone.
        joint_rate: Learning rate of encoder and decoder.
        batch_size: Images a step.
        checkpoints: Times of each stage at which everything is measured.
        features: Features of the Fréchet distance; auto is a classifier where the images have labels.
        frechet_images: Images in each of the sets that a Fréchet distance compares.
        noisy: Whether the Fréchet distance compares images with noise, on both sides, instead of their means.
        test_points: New points for the ELBO.
        points: New points whose best q and log p(x) are searched.
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


PRESETS = {
    "quick": Config(),
    "paper": Config(
        dataset="celeba",
        channels=64,
        gan_steps=60_000,
        classifier_steps=20_000,
        encoder_steps=1_000_000,
        joint_steps=1_000_000,
        encoder_rate=2e-5,
        joint_rate=1e-5,
        checkpoints=10,
        frechet_images=200_000,
        test_points=10_000,
        points=50,
    ),
}
FEATURES = ("classifier", "discriminator")
DISTANCES = tuple(f"frechet_{name}" for name in FEATURES)
REDECODED, SAMPLES, OTHERS = "re-decoded", "samples", "truth again"
"""Sets that are compared with images of the truth."""
TABLES = (
    Table(
        ("stage",),
        (
            Column("elbo", {"split": "test"}),
            *(
                Column(name, {"set": shown}, f"Fréchet, {name.removeprefix('frechet_')}: {shown}")
                for shown in (REDECODED, SAMPLES, OTHERS)
                for name in DISTANCES
            ),
            "learned_sigma",
        ),
        "{dataset}: new points from the truth, and images of the truth against those of the decoder",
        published="shekhovtsov2022_celeba",
    ),
    Table(
        ("stage",),
        ("elbo", "reconstruction", "kl", "log_q_of_truth", "log_p_of_truth", "log_p_above"),
        "{dataset}: parts of the ELBO at new points, and of its counterpart from above",
        where={"split": "test"},
        wide=True,
    ),
    Table(
        ("stage",),
        (
            "log_p",
            "elbo_star",
            "elbo",
            "approximation_gap",
            "amortization_gap",
            "kl_to_original",
            "log_p_lost",
            "certificate_gap",
            "residual",
        ),
        "{dataset}: few new points, each with its own search; log p(x) is a lower bound",
        where={"split": "searched"},
    ),
)
FIGURES = {
    "celeba_training": (
        Lines(
            "step",
            ("elbo",),
            hue="stage",
            where={"split": "test"},
            title="A known generator, trained: ELBO of new points, and images against those of the truth",
        ),
        *(
            Lines(
                "step",
                (name,),
                hue="set",
                style="stage",
                where={"split": None},
            )
            for name in DISTANCES
        ),
    ),
    "celeba_images": Drawn("pictures", {"heading": "The truth, and what joint training makes of it"}),
}
FINDINGS = ("drifting_images",)


def datasets(config: Config, lab: Lab) -> tuple[str, ...]:
    """The images."""
    del lab
    return (config.read_from,)


def prepare(config: Config, lab: Lab) -> Config:
    """Refuse what could not be measured in the end; a folder gets its whole path.

    Raises:
        DataUnavailable: no CelebA; the message says what to put where.
        ValueError: no torchmetrics, too few images for a distance, or images of other sides than powers of two.
    """
    from amortized_bayes.evaluation.frechet import check_frechet
    from amortized_bayes.experiments.image_setup import critic_of, image_source

    if config.images:
        config = replace(config, images=str(Path(config.images).expanduser().resolve()))
    try:
        source = image_source(config, lab, config.seeds[0])
    except DataUnavailable as error:
        hint = f"; without --dataset {config.dataset} the same stages run on {DEFAULT}"
        raise DataUnavailable(f"{error}{hint if config.dataset != DEFAULT else ''}") from None
    if config.features == "classifier" and source.labels is None:
        raise ValueError(f"expected images with labels for --features classifier, got {config.read_from} without")
    if len(source.pixels) < config.batch_size:
        raise ValueError(f"expected --batch-size of at most {len(source.pixels):,} images, got {config.batch_size:,}")
    check_frechet(config.frechet_images, critic_of(config, source, 1).num_features)
    return config


def jobs(config: Config, lab: Lab) -> Iterator[Job]:
    """Of each seed: the ground truth, the features, and the stages, which read both."""
    from amortized_bayes.experiments.image_measures import measured_images
    from amortized_bayes.experiments.image_setup import bytes_of, features_from, image_source, macs_of
    from amortized_bayes.experiments.image_stages import stages
    from amortized_bayes.experiments.image_training import ground_truth, learned_features

    for seed in config.seeds:
        factors = {"dataset": display_name(config.read_from), "seed": seed}
        source = image_source(config, lab, seed)
        macs = macs_of(config, source)
        batch = macs * config.batch_size * SECONDS_PER_MAC

        def work(stage: str, steps: int, networks: float, batch: float = batch) -> Work:
            return Work(stage, steps, lambda: networks * batch, "habit")

        truth = Job(
            factors,
            partial(ground_truth, config, lab, seed),
            name="truth",
            work=[work("ground truth", config.gan_steps, 13)],
            disk=bytes_of(config, source),
        )
        yield truth
        after = [truth.key]
        if features_from(config, source) == "classifier":
            features = Job(
                factors,
                partial(learned_features, config, lab, seed),
                name="features",
                work=[work("classifier", config.classifier_steps, 3)],
                disk=bytes_of(config, source),
            )
            yield features
            after.append(features.key)
        yield Job(
            factors,
            partial(stages, config, lab, seed, after),
            work=[
                work("encoder alone", config.encoder_steps, 4),
                work("jointly", config.joint_steps, 7),
                Work("measures", measured_images(config), lambda m=macs: m * SECONDS_PER_MAC, "habit"),
            ],
            after=after,
            disk=1e6,
        )
