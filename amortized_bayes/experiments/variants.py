"""Five kinds of VAE that are followed along their training; experiments on them share these trainings.

After Cremer, Li & Duvenaud (*Inference Suboptimality in Variational Autoencoders*, ICML 2018), 5.5: on FashionMNIST,
20 latents, batches of 50; the larger networks have three hidden layers of 500 units. Which epochs and learning rates
they used for it is not printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from amortized_bayes.configuration import Above, AtLeast, Different, Settings
from amortized_bayes.experiments.settings import ENCODERS, VAEConfig, check_names, data_factors
from amortized_bayes.experiments.spec import Arrays, Job, Measured, Work
from amortized_bayes.limits import Natural

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab
    from amortized_bayes.experiments.trained import Trained

__all__ = ["PAPER_VARIANTS", "VARIANTS", "VariantsConfig", "checkpoint_jobs", "epochs_kept", "variant_models"]

VARIANTS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "realnvp": {"family": "realnvp"},
    "realnvp-contextual": {"family": "realnvp-contextual"},
    "larger-encoder": {"encoder": "large"},
    "larger-decoder": {"hidden": ENCODERS["large"]},
}
"""What each differs in from the first, which has two hidden layers of 200 units in each network."""

if TYPE_CHECKING:
    VariantName = str
else:  # choices of the flag
    VariantName = Literal[tuple(VARIANTS)]


@dataclass(frozen=True)
class VariantsConfig(Settings):
    """Five kinds of VAE that are followed along their training.

    Args:
        dataset: Data sets; one or more of fashion-mnist, binarized-mnist, mnist, digits, or a path.
        variants: Models to train. A Gaussian q, a flow, a flow with parameters from the encoder, and a Gaussian q with
            a larger encoder or decoder.
        epochs: Passes over the training images for each model.
        checkpoints: Number of epochs after which models are measured, evenly spaced on a log scale; the last epoch is
            one of them.
        latent_dim: Number of latent variables per image (D).
        batch_size: Images per step.
        learning_rate: Initial learning rate of Adam.
        schedule: How the learning rate falls.
        num_train: Number of training images, after a shuffle by seed; all if there are fewer.
        num_test: Number of test images, after a shuffle by seed; all if there are fewer.
        seeds: Random seeds for images, pixels, starting values and draws; models are trained for each.
    """

    dataset: Annotated[tuple[str, ...], Different()] = ("fashion-mnist", "binarized-mnist")
    variants: Annotated[tuple[VariantName, ...], Different()] = tuple(VARIANTS)
    epochs: Annotated[int, AtLeast(1)] = 100
    checkpoints: Annotated[int, AtLeast(1)] = 3
    latent_dim: Natural = 20
    batch_size: Annotated[int, AtLeast(1)] = 50
    learning_rate: Annotated[float, Above(0)] = 1e-3
    schedule: Literal["burda", "cosine", "constant"] = "constant"
    num_train: Annotated[int, AtLeast(2)] = 1_000
    num_test: Annotated[int, AtLeast(2)] = 2_000
    seeds: Annotated[tuple[int, ...], Different(), AtLeast(0, math.inf)] = (0,)

    def check(self) -> None:
        """Data sets need different names."""
        check_names(self.dataset)


PAPER_VARIANTS = VariantsConfig(epochs=3_280, checkpoints=12, schedule="burda", num_train=50_000, num_test=10_000)
"""The data set's size, latents and batches of 5.5; epochs and schedule are those of Tables 2 and 3."""


def epochs_kept(config: VariantsConfig) -> tuple[int, ...]:
    """Epochs after which models are measured, rising to the last one.

    Example:
        >>> epochs_kept(VariantsConfig(epochs=100, checkpoints=5))
        (1, 3, 10, 32, 100)
        >>> epochs_kept(VariantsConfig(epochs=2, checkpoints=5))
        (1, 2)
    """
    steps = max(1, config.checkpoints - 1)
    return tuple(sorted({config.epochs, *(round(config.epochs ** (i / steps)) for i in range(config.checkpoints - 1))}))


def variant_models(config: VariantsConfig) -> Iterator[tuple[str, VAEConfig]]:
    """The models, each with the name of its variant. None stops early: test images have no part in any."""
    shared = {f.name: getattr(config, f.name) for f in fields(VAEConfig) if hasattr(config, f.name)}
    shared |= {"network": "dense", "early_stopping": False, "keep_epochs": epochs_kept(config)}
    for dataset in config.dataset:
        for seed in config.seeds:
            for variant in config.variants:
                yield variant, VAEConfig(**{**shared, "dataset": dataset, "seed": seed, **VARIANTS[variant]})


def checkpoint_jobs(
    config: VariantsConfig,
    measure: Callable[[Trained], Iterable[Measured | Arrays]],
    work: Callable[[VAEConfig], Sequence[Work]],
    disk: float,
    lab: Lab,
) -> Iterator[Job]:
    """A job for each model and each epoch of which a copy is kept; its numbers are those of that step.

    Args:
        config: which models.
        measure: measures one of them as it was after an epoch.
        work: what that takes.
        disk: bytes that it leaves.
        lab: where jobs get their models.
    """
    for variant, model in variant_models(config):
        for epoch in model.keep_epochs:
            yield Job(
                {**data_factors(model), "variant": variant},
                partial(_measured, model, epoch, measure, lab),
                name=f"epoch-{epoch}",
                work=work(model),
                needs=[model],
                disk=disk,
            )


def _measured(
    model: VAEConfig, epoch: int, measure: Callable[[Trained], Iterable[Measured | Arrays]], lab: Lab
) -> Iterator[Measured | Arrays]:
    trained = lab.trained(model, epoch)
    step = epoch * (len(trained.data.train) // model.batch_size)
    for item in measure(trained):
        yield item._replace(step=step) if isinstance(item, Measured) else item
