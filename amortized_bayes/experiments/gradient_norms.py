"""Norms of the gradients of encoder and decoder along the training of five kinds of VAE.

After Cremer, Li & Duvenaud (*Inference Suboptimality in Variational Autoencoders*, ICML 2018), 5.5. The models are
those of ``learning-dynamics``, trained once for both: each is measured as it was after the epochs of which copies are
kept, on the same batches with the same draws. Norms are those of the gradient of the loss of a batch, the negative ELBO
per point, at the averaged iterates that a training reports; the parameters of a flow belong to the encoder. Divided by
√(number of parameters), parts of different sizes compare.

``python run_experiments.py gradient-norms`` runs preset *quick* on FashionMNIST and fixed binarized MNIST: about three
minutes on two cores, one where ``learning-dynamics`` was run before. Expect gradients of the encoder that are 1.5
to 2.7 times as large as the decoder's on FashionMNIST, and 1.0 to 1.5 times on MNIST, at the end. *paper* has the
models of its namesake.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from amortized_bayes.configuration import AtLeast, Settings
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.settings import image_substitutes as substitutes
from amortized_bayes.experiments.spec import Arrays, Column, Job, Lines, Measured, Table, Work
from amortized_bayes.experiments.variants import PAPER_VARIANTS, VariantsConfig, checkpoint_jobs

if TYPE_CHECKING:
    import numpy as np

    from amortized_bayes.experiments.lab import Lab
    from amortized_bayes.experiments.trained import Trained

__all__ = ["FIGURES", "PRESETS", "TABLES", "Config", "jobs", "substitutes"]


@dataclass(frozen=True)
class Config(Settings):
    """Follow the gradients of encoder and decoder along the training of five kinds of VAE (Cremer et al. 2018, 5.5).

    Args:
        model: Which models, and how they are trained.
        batches: Number of training batches on which gradients are taken; each batch of an epoch once if there are
            fewer.
    """

    model: VariantsConfig = field(default_factory=VariantsConfig)
    batches: Annotated[int, AtLeast(2)] = 20


PRESETS = {
    "quick": Config(),
    "paper": Config(replace(PAPER_VARIANTS, dataset=("fashion-mnist",)), batches=100),
}
PARTS = ("encoder", "decoder")
TABLES = (
    Table(
        ("variant",),
        (
            *(
                Column(metric, {"part": part}, f"{part}, {name}")
                for metric, name in (("gradient_norm", "norm"), ("gradient_rms", "over √parameters"))
                for part in PARTS
            ),
            "gradient_ratio",
            "gradient_rms_ratio",
        ),
        "{dataset}: norms of gradients at the end of training",
    ),
    Table(
        ("variant",),
        tuple(Column("num_parameters", {"part": part}, f"parameters of the {part}") for part in PARTS),
        "{dataset}: sizes",
        wide=True,
    ),
)
FIGURES = {
    "gradient_norms_{dataset}": (
        Lines(
            *("step", ("gradient_norm",), "variant", "part"),
            log="xy",
            title="{dataset}: gradients of encoder and decoder along training",
        ),
        Lines("step", ("gradient_rms",), "variant", "part", log="xy"),
    ),
    "gradient_ratios_{dataset}": (
        Lines(
            "step",
            ("gradient_ratio",),
            "variant",
            log="xy",
            title="{dataset}: encoder over decoder",
        ),
        Lines("step", ("gradient_rms_ratio",), "variant", log="xy"),
    ),
}


def jobs(config: Config, lab: Lab) -> Iterator[Job]:
    """A job per model and checkpoint."""
    return checkpoint_jobs(
        config.model, partial(_measure, config, lab), partial(_work, config, lab), 32.0 * config.batches, lab
    )


def _work(config: Config, lab: Lab, model: VAEConfig) -> list[Work]:
    step = partial(lab.step_seconds, model)
    return [Work("gradients", config.batches, step, "a few steps of training")]


def _measure(config: Config, lab: Lab, trained: Trained) -> Iterator[Measured | Arrays]:
    """Norms of both parts and their ratios, with standard errors over batches."""
    from amortized_bayes.experiments.gradients import batch_gradients

    norms, sizes = batch_gradients(trained, config.batches, lab)
    scaled = {part: norm / math.sqrt(sizes[part]) for part, norm in norms.items()}
    for part in PARTS:
        yield _over_batches("gradient_norm", norms[part], part)
        yield _over_batches("gradient_rms", scaled[part], part)
        yield Measured("num_parameters", float(sizes[part]), factors={"part": part})
    yield _over_batches("gradient_ratio", norms["encoder"] / norms["decoder"])
    yield _over_batches("gradient_rms_ratio", scaled["encoder"] / scaled["decoder"])
    yield Arrays(norms)


def _over_batches(metric: str, values: np.ndarray, part: str = "") -> Measured:
    from amortized_bayes.per_point import mean_over_points

    mean, error = mean_over_points(values)
    return Measured(metric, mean, error, "batches", {"part": part} if part else {})
