"""A trained model to be measured: a VAE, or a decoder with a posterior over its weights, by configuration.

``python run_experiments.py train`` trains preset *quick* on fixed binarized MNIST: about four minutes on two cores, a
training ELBO near -94 nats per point. *paper* has the setting of Cremer, Li & Duvenaud (*Inference Suboptimality in
Variational Autoencoders*, ICML 2018): encoder 784-200-200, 50 latents, mirrored decoder, ELU, batches of 100, Burda's
schedule over 3,280 epochs, entropy annealing over 400; it has not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from amortized_bayes.experiments.settings import VAE_PRESETS, VAEConfig, model_factors
from amortized_bayes.experiments.settings import image_substitutes as substitutes
from amortized_bayes.experiments.spec import Arrays, Checkpoint, Drawn, Job, Lines, Measured, Table

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab

__all__ = ["FIGURES", "PRESETS", "TABLES", "Config", "jobs", "substitutes", "train_job"]

Config = VAEConfig
PRESETS = VAE_PRESETS
CHECKPOINTS = 14
"""Copies of a model that its run keeps: the model, the best one, and two generations of the training's state."""
TABLES = (
    Table(
        (),
        ("final_elbo", "final_iwae", "final_kl"),
        "{model}",
        across="split",
    ),
    Table((), ("active_units", "seconds_per_step", "status"), "of the model"),
)
FIGURES = {
    "training": (
        Lines("step", ("elbo",), hue="split", log="x", title="{model}"),
        Lines("step", ("kl",), hue="split", log="x"),
    ),
    "images": Drawn("pictures", {"heading": "Test images, what the model makes of them, and draws from its prior"}),
}


def jobs(config: VAEConfig, lab: Lab) -> list[Job]:
    """One job: the model."""
    return [train_job(config, lab)]


def train_job(config: VAEConfig, lab: Lab) -> Job:
    """Train one model."""

    def run() -> Iterator[Measured | Checkpoint | Arrays]:
        from amortized_bayes.experiments.training import train

        return train(config, lab)

    work = [lab.training_work("training", config, config.epochs)]
    copies = CHECKPOINTS + len(config.keep_epochs)
    return Job(model_factors(config), run, work=work, disk=copies * 8.0 * 784 * max(200, *config.hidden, 0))
