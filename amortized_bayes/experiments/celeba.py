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

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from amortized_bayes.data import DataUnavailable, display_name
from amortized_bayes.experiments.image_settings import DEFAULT, Config
from amortized_bayes.experiments.spec import Column, Drawn, Job, Lines, Table, Work

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab

__all__ = ["FIGURES", "FINDINGS", "PRESETS", "TABLES", "Config", "datasets", "jobs", "prepare"]

SECONDS_PER_MAC = 1e-10
"""Of a multiplication and addition of a convolution: on one thread of two cores."""


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
            "sandwich_gap",
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
