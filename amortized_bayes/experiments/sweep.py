"""The sweep: how wide must the encoder be, what does amortizing cost, and what does it save?

For each data set and seed one model is fitted with constant VI, with A-VI of every width k, with F-VI, and with F-VI
started at the best A-VI solution. This file says what is run; :mod:`~amortized_bayes.experiments.sweep_run` runs it.

``python run_experiments.py`` runs preset *quick*: under 25 minutes for both data sets on two cores. On MNIST expect
k = 256 two nats behind the best F-VI, k = 16 fourteen, k = 1 seventy-five (README has the table).
``python run_experiments.py sweep --preset paper`` runs the setting of Margossian & Blei (UAI 2024) with its mistakes
mended: hours on a GPU, days on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from amortized_bayes.experiments.checking import SettingError, different, flag

__all__ = ["PRESETS", "Fit", "Rates", "SweepConfig", "grid", "report_steps"]


class Rates(NamedTuple):
    """Learning rates of one family, from the grid of ``--tune``.

    Args:
        shared: of q(theta) and of the model's parameters.
        local: of what gives the local factors: the encoder (A-VI), the rows (F-VI), the shared vector (constant VI).
    """

    shared: float
    local: float


@dataclass(frozen=True)
class SweepConfig:
    """Sweep encoder widths against F-VI and constant VI.

    Args:
        dataset: mnist, fashion-mnist, binarized-mnist, digits, or the path of an .npz or .npy file.
        widths: Encoder widths k.
        depth: Hidden layers of the encoder, each of width k; 0 makes it linear.
        seeds: One run for each seed; seeds choose images, pixels, starts and draws.
        preset: The setting that all other flags start from.
        likelihood: Of the pixels; bernoulli binarizes them once, by seed.
        gaussian_scale: Standard deviation of the gaussian likelihood, fixed at 1 or learned.
        latent_dim: D, latents of one image.
        hidden: Widths of the decoder's hidden layers.
        decoder: Bayesian (a mean-field Gaussian over its weights) or point-estimated.
        weight_prior: Variance of the decoder weights' priors, 1 / inputs or 1.
        init: Common starts for all families, or the published ones, which differ.
        epochs: Passes over the training images.
        batch_size: Images a step.
        num_train: Training images, after a seeded shuffle; all if there are fewer.
        num_test: Test images, likewise.
        local_reparametrization: Draw the decoder's outputs instead of its weights while fitting.
        compile_step: Replay the captured step, compile it too, do so where it pays (auto), or do neither.
        rates_amortized: Learning rates of A-VI: of q(theta), and of the encoder.
        rates_factorized: Learning rates of F-VI: of q(theta), and of the rows.
        rates_constant: Learning rates of constant VI: of q(theta), and of the shared vector.
        tune: Choose the learning rates first, from the grid, on a seed of their own.
        elbo_draws: Draws for the final ELBO.
        iwae_particles: Particles for IWAE and the log predictive density.
        iwae_points: Points on which these two are measured.
    """

    dataset: tuple[str, ...] = ("mnist", "fashion-mnist")
    widths: tuple[int, ...] = (1, 4, 16, 64, 256)
    depth: int = 1
    seeds: tuple[int, ...] = (0,)
    preset: Literal["quick", "paper"] = "quick"
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    gaussian_scale: Literal["fixed", "learned"] = "fixed"
    latent_dim: int = 16
    hidden: tuple[int, ...] = (64,)
    decoder: Literal["bayesian", "point"] = "bayesian"
    weight_prior: Literal["fan-in", "standard"] = "fan-in"
    init: Literal["common", "published"] = "common"
    epochs: int = 200
    batch_size: int = 250
    num_train: int = 10_000
    num_test: int = 2_000
    local_reparametrization: bool = True
    compile_step: Literal["auto", "replay", "inductor", "off"] = "replay"
    rates_amortized: tuple[float, ...] = (8e-3, 4e-3)
    rates_factorized: tuple[float, ...] = (8e-3, 0.2)
    rates_constant: tuple[float, ...] = (1.6e-2, 1.6e-2)
    tune: bool = False
    elbo_draws: int = 10
    iwae_particles: int = 50
    iwae_points: int = 1_000

    def __post_init__(self) -> None:
        different(self, ("dataset", "widths", "seeds"))
        stems = [Path(dataset).stem for dataset in self.dataset]
        if len(set(stems)) != len(stems):  # rows and figures are named by it
            raise SettingError(f"expected --dataset with files of different names, got {list(self.dataset)}")
        lowest = {"widths": 1, "hidden": 1, "seeds": 0}
        for name, least in lowest.items():
            if any(value < least for value in getattr(self, name)):
                raise SettingError(f"expected {flag(name)} of {least} or more, got {list(getattr(self, name))}")
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "depth" else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise SettingError(f"expected {flag(field.name)} of {least} or more, got {value}")
        for name in ("rates_amortized", "rates_factorized", "rates_constant"):
            rates = getattr(self, name)
            if len(rates) != 2 or not all(0 < rate < math.inf for rate in rates):
                raise SettingError(f"expected {flag(name)} with two learning rates above 0, got {list(rates)}")


PRESETS: dict[str, SweepConfig] = {
    "quick": SweepConfig(),
    "paper": SweepConfig(
        preset="paper",
        widths=(1, 64, 128, 256),
        depth=2,
        seeds=(0, 1, 2, 3, 4),
        likelihood="gaussian",
        latent_dim=64,
        hidden=(256, 256),
        weight_prior="standard",
        epochs=5_000,
        batch_size=1_000,
        num_test=10_000,
        local_reparametrization=False,
        rates_amortized=(1e-3, 1e-3),
        rates_factorized=(1e-3, 1e-3),
        rates_constant=(1e-3, 1e-3),
    ),
}
"""Settings by name. *quick*'s rates are winners of ``python run_experiments.py sweep --tune``, *paper*'s published."""


class Fit(NamedTuple):
    """One guide on one data set with one seed; ``k`` is ``None`` unless the guide is amortized."""

    dataset: str
    seed: int
    guide: str
    k: int | None = None

    @property
    def key(self) -> str:
        """Name of the fit, for files and for resuming."""
        width = "" if self.k is None else f"-k{self.k}"
        name = "".join(c if c.isascii() and c.isalnum() else "-" for c in Path(self.dataset).stem)[:60]
        if name != self.dataset and self.dataset.endswith((".npz", ".npy")):  # a file: other paths have other keys
            name = f"{name.strip('-') or 'data'}-{sha256(self.dataset.encode()).hexdigest()[:8]}"
        return f"{name}_seed{self.seed}_{self.guide}{width}"


def grid(config: SweepConfig) -> Iterator[Fit]:
    """All fits of a sweep in the order in which they run; F-VI from A-VI needs the amortized ones before it."""
    for dataset in config.dataset:
        for seed in config.seeds:
            yield Fit(dataset, seed, "constant")
            for width in config.widths:
                yield Fit(dataset, seed, "amortized", width)
            yield Fit(dataset, seed, "factorized")
            yield Fit(dataset, seed, "factorized-from-amortized")


def report_steps(num_steps: int, count: int = 28) -> list[int]:
    """Steps at which a fit is evaluated: evenly spaced on a log axis, from the first to the last."""
    ratio = num_steps ** (1 / (count - 1))
    return sorted({min(num_steps, round(ratio**i)) for i in range(count)})
