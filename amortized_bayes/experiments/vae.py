"""A trained model to be diagnosed: a VAE or a Bayesian decoder, by configuration.

The setting of *paper* is that of Cremer, Li & Duvenaud (*Inference Suboptimality in Variational Autoencoders*, ICML
2018): encoder 784-200-200, 50 latents, mirrored decoder, ELU, Bernoulli pixels, batches of 100, Adam with Burda's
schedule over 3,280 epochs, entropy annealing over 400. *quick* is the same model with fewer and longer steps and
without annealing: a few minutes on two cores.
This file says what is trained; :mod:`~amortized_bayes.experiments.trained` trains it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from amortized_bayes.experiments.checking import SettingError, at_least, flag, rate_above_zero

__all__ = ["CHANNELS", "ENCODERS", "VAE_PRESETS", "Family", "VAEConfig", "family_name"]

Family = Literal[
    "gaussian",
    "planar",
    "realnvp",
    "auxiliary",
    "sylvester",
    "spline",
    "planar-contextual",
    "realnvp-contextual",
    "auxiliary-contextual",
    "sylvester-contextual",
    "spline-contextual",
]
FAMILY_NAMES = {"gaussian": "FFG", "auxiliary": "AF", "realnvp": "R-NVP"}
"""Short names of the papers'; others are called as they are."""

ENCODERS: dict[str, tuple[int, ...]] = {"linear": (), "small": (100,), "standard": (200, 200), "wide": (500, 500)}
"""Hidden layers of the dense encoders."""
CHANNELS: dict[str, tuple[int, int]] = {"small": (16, 32), "standard": (32, 64), "wide": (64, 128)}
"""Channels of the convolutional ones."""


@dataclass(frozen=True)
class VAEConfig:
    """Train a VAE, or a decoder with a posterior over its weights.

    Args:
        preset: The setting that all other flags start from.
        dataset: binarized-mnist, mnist, fashion-mnist, digits, or the path of an .npz or .npy file.
        binarization: Draw the pixels once by seed (fixed), afresh at each visit (dynamic), or cut grey values at one
            half (threshold); auto cuts fashion-mnist, as the paper does, and draws others once.
        network: Fully connected or convolutional.
        encoder: Its capacity; hidden layers of 100, of 200 and 200, of 500 and 500, or none (linear).
        family: Of q(z|x), a Gaussian or a flow after one; contextual flows get parameters from the encoder.
        num_flows: Layers of the flow; pairs of couplings of an auxiliary one.
        decoder: Point-estimated (a VAE) or Bayesian (a mean-field Gaussian over its weights).
        latent_dim: D, latents of one image.
        hidden: Widths of the dense decoder's hidden layers.
        epochs: Passes over the training images.
        batch_size: Images a step.
        learning_rate: Of Adam, at the start.
        schedule: How it falls. Burda's stages are scaled to the number of epochs.
        entropy_annealing: Epochs over which the weight of log q alone rises from 0 to 1.
        kl_warm_up: Epochs over which the weight of the whole KL divergence rises from 0 to 1.
        early_stopping: Keep the iterate that is best on a validation split, and stop when it gets no better.
        num_validation: Training images held out for that.
        patience: Looks without a better validation ELBO before stopping; there are fifty looks in all.
        num_train: Training images, after a seeded shuffle; all if there are fewer.
        num_test: Test images, likewise.
        seed: Of images, pixels, starts and draws.
    """

    preset: Literal["quick", "paper"] = "quick"
    dataset: str = "binarized-mnist"
    binarization: Literal["auto", "fixed", "dynamic", "threshold"] = "auto"
    network: Literal["dense", "convolutional"] = "dense"
    encoder: Literal["linear", "small", "standard", "wide"] = "standard"
    family: Family = "gaussian"
    num_flows: int = 2
    decoder: Literal["point", "bayesian"] = "point"
    latent_dim: int = 50
    hidden: tuple[int, ...] = (200, 200)
    epochs: int = 150
    batch_size: int = 250
    learning_rate: float = 2e-3
    schedule: Literal["burda", "cosine", "constant"] = "cosine"
    entropy_annealing: int = 0
    kl_warm_up: int = 0
    early_stopping: bool = False
    num_validation: int = 5_000
    patience: int = 10
    num_train: int = 60_000
    num_test: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"latent_dim": 1, "epochs": 1, "batch_size": 1, "num_validation": 1, "patience": 1, "num_train": 2}
        least |= {"num_flows": 1, "num_test": 2, "seed": 0, "entropy_annealing": 0, "kl_warm_up": 0}
        at_least(self, least)
        if any(width < 1 for width in self.hidden):
            raise SettingError(f"expected --hidden of 1 or more, got {list(self.hidden)}")
        rate_above_zero(self.learning_rate)
        for name in ("entropy_annealing", "kl_warm_up"):
            if getattr(self, name) > self.epochs:
                raise SettingError(f"expected {flag(name)} of at most {self.epochs} epochs, got {getattr(self, name)}")
        if self.network == "convolutional" and self.encoder not in CHANNELS:
            raise SettingError(f"expected a convolutional --encoder {' or '.join(CHANNELS)}, got {self.encoder!r}")
        if self.dataset == "binarized-mnist" and self.binarization in ("dynamic", "threshold"):
            raise SettingError(
                f"expected --binarization fixed for binarized-mnist, drawn already, got {self.binarization!r}; "
                "--dataset mnist has grey values"
            )

    @property
    def way_to_binarize(self) -> str:
        """``fixed``, ``dynamic`` or ``threshold``."""
        if self.binarization != "auto":
            return self.binarization
        return "threshold" if self.dataset == "fashion-mnist" else "fixed"

    @property
    def name(self) -> str:
        """The model in a few words, for rows and titles."""
        kind = "VAE" if self.decoder == "point" else "Bayesian decoder"
        parts = [kind, *([] if self.family == "gaussian" else [family_name(self.family)]), f"{self.encoder} encoder"]
        parts += ["convolutional"] if self.network == "convolutional" else []
        parts += ["entropy annealing"] if self.entropy_annealing else []
        parts += ["KL warm-up"] if self.kl_warm_up else []
        return ", ".join(parts)


def family_name(family: str) -> str:
    """Name of a family in tables: ``FFG``, ``AF``, ``R-NVP``, ``contextual R-NVP``, ``planar``."""
    base = family.removesuffix("-contextual")
    name = FAMILY_NAMES.get(base, base)
    return name if base == family else f"contextual {name}"


VAE_PRESETS: dict[str, VAEConfig] = {
    "quick": VAEConfig(),
    "paper": VAEConfig(
        preset="paper", epochs=3_280, batch_size=100, learning_rate=1e-3, schedule="burda", entropy_annealing=400
    ),
}
"""Settings by name."""
