"""The central experiments of *Inference Suboptimality in Variational Autoencoders* (Cremer, Li & Duvenaud, ICML 2018).

- ``test-set-gaps`` (their 5.2, Tables 2 and 3): models trained with different families, encoders, and with and without
  entropy annealing; three gaps each.
- ``frozen-decoder`` (their 5.3, Table 4): one decoder, held fixed, and encoders of all families and sizes for it.
- ``toy-posteriors`` (their 5.1): posteriors of a model with two latents beside what each family makes of them.

This file says what is run; files of the same names run it. *quick* takes minutes and falls short of the paper's
training; *paper* has its settings, but for the searches for q*, which start at the encoder's answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from amortized_bayes.experiments.checking import SettingError, at_least, different, flag, rate_above_zero
from amortized_bayes.experiments.settings import PAPER_BOUNDS, VAE_PRESETS, BoundsConfig, Family, QFamily, VAEConfig

__all__ = [
    "FROZEN_PRESETS",
    "SET_PRESETS",
    "TOY_PRESETS",
    "BoundsConfig",
    "FrozenDecoderConfig",
    "TestSetGapsConfig",
    "ToyConfig",
    "frozen_base",
    "frozen_encoders",
    "set_models",
    "toy_base",
]

ANNEALED_PART = 400 / 3280
"""Part of the run over which the paper anneals the entropy."""


def _searched(families: tuple[str, ...], bounds: BoundsConfig) -> None:
    """Gaps of a family need the best q of that family: held against another they would mean something else."""
    missing = [f for f in families if f.removesuffix("-contextual") not in bounds.best_families]
    if missing:
        among = ", ".join(bounds.best_families)
        raise SettingError(f"expected --families among those of --best-families ({among}), got {missing[0]!r}")


def _gaussian_first(name: str, families: tuple[str, ...]) -> None:
    if not families or families[0] != "gaussian" or len(set(families)) != len(families):
        raise SettingError(f"expected {flag(name)} that start with gaussian, each once, got {list(families)}")


@dataclass(frozen=True)
class TestSetGapsConfig:
    """Train models of several families, with and without entropy annealing, and measure three gaps of each.

    Args:
        preset: The setting that all other flags start from.
        dataset: binarized-mnist, mnist, fashion-mnist or digits; one or more.
        families: Of q(z|x).
        encoders: Capacities of the encoder.
        annealing: With and without entropy annealing, over the paper's part of the run.
        epochs: Of training each model.
        batch_size: Images a step.
        learning_rate: Of Adam, at the start.
        schedule: How it falls.
        points: Training points at which gaps are measured.
        bounds: How.
        seed: Of everything.
    """

    __test__ = False  # a name that pytest would take for a test

    preset: Literal["quick", "paper"] = "quick"
    dataset: tuple[str, ...] = ("binarized-mnist",)
    families: tuple[Family, ...] = ("gaussian", "auxiliary")
    encoders: tuple[Literal["small", "standard", "wide"], ...] = ("standard",)
    annealing: tuple[bool, ...] = (True, False)
    epochs: int = 60
    batch_size: int = 250
    learning_rate: float = 2e-3
    schedule: Literal["burda", "cosine", "constant"] = "cosine"
    points: int = 100
    bounds: BoundsConfig = field(default_factory=BoundsConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, {"epochs": 1, "batch_size": 1, "points": 2, "seed": 0})
        different(self, ("dataset", "families", "encoders", "annealing"))
        rate_above_zero(self.learning_rate)
        _searched(self.families, self.bounds)


@dataclass(frozen=True)
class FrozenDecoderConfig:
    """Train a Gaussian VAE, hold its decoder fixed, and train encoders of every family and size for it.

    Args:
        preset: The setting that all other flags start from.
        dataset: binarized-mnist, mnist, fashion-mnist or digits.
        epochs: Of training the VAE.
        encoders: Capacities.
        families: Of q(z|x).
        encoder_epochs: Of training each encoder, at most: it stops early on validation images.
        learning_rate: Of the encoders, at the start; it falls as a cosine.
        points: Training points at which gaps are measured.
        bounds: How.
        seed: Of everything.
    """

    preset: Literal["quick", "paper"] = "quick"
    dataset: str = "binarized-mnist"
    epochs: int = 60
    encoders: tuple[Literal["linear", "small", "standard", "wide"], ...] = ("linear", "small", "standard", "wide")
    families: tuple[Family, ...] = ("gaussian", "auxiliary", "realnvp")
    encoder_epochs: int = 30
    learning_rate: float = 2e-3
    points: int = 100
    bounds: BoundsConfig = field(default_factory=BoundsConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, {"epochs": 1, "encoder_epochs": 1, "points": 2, "seed": 0})
        different(self, ("encoders", "families"))
        rate_above_zero(self.learning_rate)
        _searched(self.families, self.bounds)


@dataclass(frozen=True)
class ToyConfig:
    """Draw true posteriors of a model with two latents beside what each family makes of them.

    Args:
        preset: The setting that all other flags start from.
        dataset: binarized-mnist, mnist, fashion-mnist or digits.
        epochs: Of training the VAE, whose decoder is then held fixed.
        families: Of q; each amortized, and the best for each point.
        encoder_epochs: Of training the encoder of each family.
        points: Points that are measured; the first four are drawn.
        grid: Cells of the grid along each side.
        steps: Of the search for the best q.
        seed: Of everything.
    """

    preset: Literal["quick", "paper"] = "quick"
    dataset: str = "binarized-mnist"
    epochs: int = 20
    families: tuple[QFamily, ...] = ("gaussian", "auxiliary", "realnvp")
    encoder_epochs: int = 10
    points: int = 50
    grid: int = 300
    steps: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, {"epochs": 1, "encoder_epochs": 1, "points": 4, "grid": 20, "steps": 10, "seed": 0})
        _gaussian_first("families", self.families)


SET_PRESETS: dict[str, TestSetGapsConfig] = {
    "quick": TestSetGapsConfig(),
    "paper": TestSetGapsConfig(
        preset="paper",
        dataset=("binarized-mnist", "fashion-mnist"),
        families=("gaussian", "auxiliary", "realnvp", "realnvp-contextual"),
        encoders=("standard", "wide"),
        epochs=3_280,
        batch_size=100,
        learning_rate=1e-3,
        schedule="burda",
        points=1_000,
        bounds=PAPER_BOUNDS,
    ),
}
FROZEN_PRESETS: dict[str, FrozenDecoderConfig] = {
    "quick": FrozenDecoderConfig(),
    "paper": FrozenDecoderConfig(
        preset="paper",
        epochs=3_280,
        families=("gaussian", "planar", "realnvp", "auxiliary", "realnvp-contextual"),
        encoder_epochs=400,
        learning_rate=1e-3,
        points=1_000,
        bounds=replace(PAPER_BOUNDS, best_families=("gaussian", "planar", "auxiliary", "realnvp")),
    ),
}
TOY_PRESETS: dict[str, ToyConfig] = {
    "quick": ToyConfig(),
    "paper": ToyConfig(preset="paper", epochs=200, encoder_epochs=100, points=1_000, steps=5_000),
}


def set_models(config: TestSetGapsConfig) -> list[VAEConfig]:
    """The models of ``test-set-gaps``."""
    return [
        VAEConfig(
            dataset=dataset,
            family=family,
            encoder=encoder,
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            schedule=config.schedule,
            entropy_annealing=max(1, round(ANNEALED_PART * config.epochs)) if annealed else 0,
            seed=config.seed,
        )
        for dataset in config.dataset
        for encoder in config.encoders
        for family in config.families
        for annealed in config.annealing
    ]


def frozen_base(config: FrozenDecoderConfig) -> VAEConfig:
    """The VAE whose decoder is held fixed; its validation images are held out from all encoders too."""
    base = replace(VAE_PRESETS[config.preset], entropy_annealing=0)
    return replace(base, dataset=config.dataset, epochs=config.epochs, early_stopping=True, seed=config.seed)


def frozen_encoders(config: FrozenDecoderConfig) -> list[tuple[str, str]]:
    """Encoder and family of each fit of ``frozen-decoder``."""
    return [(encoder, family) for family in config.families for encoder in config.encoders]


def toy_base(config: ToyConfig) -> VAEConfig:
    """The VAE with two latents."""
    base = replace(VAE_PRESETS[config.preset], entropy_annealing=0)
    return replace(base, dataset=config.dataset, latent_dim=2, epochs=config.epochs, seed=config.seed)
