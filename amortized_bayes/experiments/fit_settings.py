"""Settings that ``sweep`` and ``tune`` share: which guides are fitted to which data, and how."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import tyro

from amortized_bayes.configuration import AtLeast, Different, SettingError, Settings
from amortized_bayes.experiments.settings import DATASET_HELP, LikelihoodName, check_names, objective_factors
from amortized_bayes.guides.registry import GUIDES, Rates
from amortized_bayes.likelihoods import with_scale
from amortized_bayes.limits import Depth, Natural
from amortized_bayes.types import Factor

__all__ = ["PAPER", "FitSettings", "factors", "rates_field", "rates_of", "substitutes"]

Config = TypeVar("Config", bound="FitSettings")
CHOICES = tuple(name for name, entry in GUIDES.items() if not entry.starts_from)
GUIDES_HELP = f"Guides to compare: {', '.join(CHOICES)}. F-VI started at the best A-VI solution comes with these two."


@dataclass(frozen=True)
class FitSettings(Settings):
    """Which guides are fitted to which data, and how.

    Args:
        dataset: Data sets by name, or paths of .npz or .npy files.
        guides: Guides to compare, by their names in ``GUIDES``.
        widths: Encoder widths k.
        own_steps: Gradient steps per point from the encoder's answer, in the guides semi-amortized (trained with these
            steps: Kim et al. 2018) and refined (trained without them: Krishnan et al. 2018).
        depth: Hidden layers of the encoder, each of width k; 0 makes it linear.
        likelihood: Likelihood of the pixels; bernoulli binarizes them once, by seed, and binomial takes grey values as
            counts, of 255 for bytes.
        gaussian_scale: Standard deviation of the gaussian likelihood, fixed at 1 or learned.
        latent_dim: D, latents per image.
        hidden: Widths of the decoder's hidden layers.
        decoder: Bayesian (a mean-field Gaussian over its weights) or point-estimated.
        weight_prior: Variance of the decoder weights' priors, 1 / inputs or 1.
        init: Common starts for all guides, or the published ones, which differ.
        epochs: Passes over the training images with the largest budget.
        rungs: Number of smaller budgets, each half of the next, with which every guide is fitted too.
        batch_size: Images per step.
        num_train: Number of training images, after a seeded shuffle; all if there are fewer.
        num_test: Number of test images, likewise.
        objective: What fits climb, the ELBO (elbo), the importance-weighted bound (iwae), or that bound for the decoder
            and the wake phase of reweighted wake-sleep for the guide (rws). The last two take plain draws, without
            local reparametrization, quadrature and warm-up. All fits are compared by their ELBOs.
        num_particles: Draws of each image per step, with iwae and rws.
        local_reparametrization: Draw the decoder's outputs instead of its weights while fitting.
        quadrature_nodes: Nodes over the noise of the pixels' logits or means instead of draws; 0 draws them.
        row_steps: Steps of F-VI's rows at each visit.
        warm_up: Share of a fit over which the KL terms of z and of the weights rise to their full size.
        decay: Let all rates fall to 0 and report the last iterate, or keep them and report an average.
        center: Subtract the mean image from what encoders see.
        compile_step: Replay the captured step, compile it too, do so where it pays (auto), or do neither.
    """

    dataset: Annotated[tuple[str, ...], Different(), tyro.conf.arg(help=DATASET_HELP)] = ("mnist", "fashion-mnist")
    guides: Annotated[tuple[str, ...], Different(), tyro.conf.arg(help=GUIDES_HELP)] = (
        "constant",
        "amortized",
        "factorized",
    )
    widths: Annotated[tuple[int, ...], Different(), AtLeast(1, math.inf)] = (1, 4, 16, 64, 256)
    own_steps: Annotated[int, AtLeast(1, 1_000)] = 1
    depth: Depth = 1
    likelihood: LikelihoodName = "bernoulli"
    gaussian_scale: Literal["fixed", "learned"] = "fixed"
    latent_dim: Natural = 16
    hidden: Annotated[tuple[int, ...], AtLeast(1, math.inf)] = (64,)
    decoder: Literal["bayesian", "point"] = "bayesian"
    weight_prior: Literal["fan-in", "standard"] = "fan-in"
    init: Literal["common", "published"] = "common"
    epochs: Annotated[int, AtLeast(2)] = 160
    rungs: Annotated[int, AtLeast(1, 60)] = 5
    batch_size: Annotated[int, AtLeast(1)] = 250
    num_train: Annotated[int, AtLeast(1)] = 10_000
    num_test: Annotated[int, AtLeast(1)] = 1_000
    objective: Literal["elbo", "iwae", "rws"] = "elbo"
    num_particles: Annotated[int, AtLeast(2)] = 8
    local_reparametrization: bool = True
    quadrature_nodes: Annotated[int, AtLeast(0, 100)] = 3
    row_steps: Annotated[int, AtLeast(1)] = 2
    warm_up: Annotated[float, AtLeast(0)] = 0.2
    decay: bool = True
    center: bool = True
    compile_step: Literal["auto", "replay", "inductor", "off"] = "auto"

    def check(self) -> None:
        """Refuse guides that are not there, and data sets that rows could not tell apart."""
        check_names(self.dataset)
        if self.warm_up >= 1:
            raise SettingError(f"expected --warm-up of 0 or more and below 1, got {self.warm_up:g}")
        if self.objective == "rws" and self.decoder == "bayesian":
            raise SettingError(
                "expected --decoder point with --objective rws, since weights that all images share have no particles, "
                "got 'bayesian'"
            )
        known = [name for name, entry in GUIDES.items() if not entry.starts_from]
        if unknown := [guide for guide in self.guides if guide not in known]:
            raise SettingError(f"expected --guides among {', '.join(known)}, got {unknown[0]}")


PAPER: Mapping[str, Any] = {
    "widths": (1, 64, 128, 256),
    "depth": 2,
    "likelihood": "gaussian",
    "latent_dim": 64,
    "hidden": (256, 256),
    "weight_prior": "standard",
    "epochs": 5_000,
    "rungs": 1,
    "batch_size": 1_000,
    "num_test": 10_000,
    "local_reparametrization": False,
    "quadrature_nodes": 0,
    "row_steps": 1,
    "warm_up": 0.0,
    "decay": False,
    "center": False,
}
"""The setting of Margossian & Blei (UAI 2024), with its known bugs fixed."""


DIGITS: Mapping[str, Any] = {"likelihood": "binomial", "widths": (1, 4, 16, 64), "epochs": 640}
"""What the embedded digits need: as bits they carry 4 nats, as counts of 16 grey levels 24 (docs/maths.md has why)."""


def factors(config: FitSettings) -> dict[str, Factor]:
    """What all rows of a run share."""
    likelihood = with_scale(config.likelihood, config.gaussian_scale)
    steps = any(GUIDES[guide].own_steps != "never" for guide in config.guides)
    own = {"own_steps": config.own_steps} if steps else {}
    return {"likelihood": likelihood, "decoder": config.decoder, **objective_factors(config), **own}


def substitutes(config: Config, given: Collection[str]) -> list[tuple[Config, str]]:
    """Settings to use with other data than the default ones, each with a note for where those are unavailable.

    Digits get those of ``DIGITS``; ``given`` settings stay.
    """
    changes = {name: value for name, value in DIGITS.items() if name not in given}
    note = "using scikit-learn's embedded digits (8x8) instead of MNIST and FashionMNIST, which are unavailable"
    note += ", as binomial counts of grey levels, since bits carry only 4 nats" if "likelihood" in changes else ""
    return [(replace(config, dataset=("digits",), **changes), note)]


def rates_of(config: Any, guide: str) -> Rates:
    """Learning rates of a guide: its own setting, or that in ``rates_others``, or those of its entry."""
    others = {other: rates for other, *rates in getattr(config, "rates_others", ())}
    name = guide if guide in others else GUIDES[guide].like or guide
    own = getattr(config, rates_field(name), None)
    return Rates(*(own or others.get(name) or GUIDES[name].rates))


def rates_field(guide: str) -> str:
    """Name of the setting that holds a guide's learning rates, where it has one of its own."""
    return f"rates_{guide.replace('-', '_')}"
