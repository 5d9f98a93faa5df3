"""What training does to the gaps: measured along it, on training and on test points, for five kinds of VAE.

After Cremer, Li & Duvenaud (*Inference Suboptimality in Variational Autoencoders*, ICML 2018), 5.5 and the appendix,
which has a training set of 1,000 images. The paper's validation points are test points here: they have no part in
training, which does not stop early. The *generalization gap* is the amortization gap on test points minus that on
training points.

``python run_experiments.py learning-dynamics`` runs preset *quick* on FashionMNIST and fixed binarized MNIST, with
1,000 training images: some 12 minutes on two cores. Expect an amortization gap that grows on test points while it
falls, or rises far less, on training points. *paper* has 50,000 images of FashionMNIST and the settings of 5.5 where
they are printed: days on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from amortized_bayes.configuration import AtLeast, SettingError, Settings
from amortized_bayes.experiments.bounds_settings import PAPER_BOUNDS, BoundsConfig
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.settings import image_substitutes as substitutes
from amortized_bayes.experiments.spec import GAPS, SEARCHED, Arrays, Job, Lines, Measured, Table, Work, measured
from amortized_bayes.experiments.variants import PAPER_VARIANTS, VariantsConfig, checkpoint_jobs
from amortized_bayes.flows import CONTEXTUAL

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab
    from amortized_bayes.experiments.trained import Trained

__all__ = ["FIGURES", "PRESETS", "TABLES", "Config", "jobs", "substitutes"]

SPLITS = ("train", "test")
FAMILIES = ("gaussian", "realnvp")


@dataclass(frozen=True)
class Config(Settings):
    """Follow the gaps on training and test points along the training of five kinds of VAE (Cremer et al. 2018, 5.5).

    Args:
        model: Which models, and how they are trained.
        points: Points of each split at which gaps are measured.
        curve_points: Points of each split at which KL and reconstruction are measured; all if there are fewer.
        bounds: How the bounds are estimated. A model's own family and the Gaussian alone are searched.
    """

    model: VariantsConfig = field(default_factory=VariantsConfig)
    points: Annotated[int, AtLeast(2)] = 100
    curve_points: Annotated[int, AtLeast(2)] = 1_000
    bounds: BoundsConfig = field(
        default_factory=lambda: BoundsConfig(
            FAMILIES,
            particles=100,
            local_steps=100,
            local_rounds=2,
            flow_steps=110,
            chains=4,
            temperatures=90,
            simulated=10,
            score=400,
        )
    )

    def check(self) -> None:
        """The families to search are those of the variants."""
        if self.bounds.best_families != FAMILIES:
            expected, got = " ".join(FAMILIES), " ".join(self.bounds.best_families)
            raise SettingError(f"expected --best-families {expected}, which the variants have, got {got}")


PRESETS = {
    "quick": Config(),
    "paper": Config(
        replace(PAPER_VARIANTS, dataset=("fashion-mnist",)),
        curve_points=10_000,
        bounds=replace(PAPER_BOUNDS, best_families=FAMILIES),
    ),
}
TABLES = (
    Table(("variant", "split"), ("log_p_lower", "elbo", *GAPS), "{dataset}: gaps at the end of training"),
    Table(("variant",), ("generalization_gap",), "{dataset}: amortization gap on test points minus on training points"),
    Table(
        ("variant", "split"),
        ("iwae", *SEARCHED, "certificate_gap", "kl", "reconstruction"),
        "{dataset}: more of it at the end of training",
        wide=True,
    ),
)


def _curves(title: str, first: str, second: str) -> tuple[Lines, Lines]:
    """Panels of curves along training, train and test by the kind of line."""
    left, right = (Lines("step", (metric,), hue="variant", style="split", log="x") for metric in (first, second))
    return replace(left, title=title), right


FIGURES = {
    "bounds_{dataset}": _curves("{dataset}: bounds along training", "log_p_lower", "elbo"),
    "gaps_{dataset}": _curves("{dataset}: gaps along training", "approximation_gap", "amortization_gap"),
    "generalization_gap": (
        Lines(
            "step",
            ("generalization_gap",),
            hue="variant",
            apart="dataset",
            log="x",
            title="What the encoder loses more on test points than on training points",
        ),
    ),
    "kl_and_reconstruction_{dataset}": _curves("{dataset}: parts of the ELBO along training", "kl", "reconstruction"),
}


def jobs(config: Config, lab: Lab) -> Iterator[Job]:
    """A job per model and checkpoint."""
    return checkpoint_jobs(
        config.model, partial(_measure, config, lab), partial(_work, config, lab), 32.0 * 20 * config.points, lab
    )


def _own_bounds(config: Config, family: str) -> BoundsConfig:
    """Searches for the Gaussian and the own family of a model."""
    return replace(config.bounds, best_families=tuple(dict.fromkeys(("gaussian", family.removesuffix(CONTEXTUAL)))))


def _work(config: Config, lab: Lab, model: VAEConfig) -> list[Work]:
    from amortized_bayes.experiments.bounds import CERTIFICATE, bounds_work

    parts = bounds_work(_own_bounds(config, model.family), model, config.points, lab)
    own = [part for part in parts if part.stage != CERTIFICATE]
    of_model = [part for part in parts if part.stage == CERTIFICATE]
    return [*(part._replace(stage=f"{split} {part.stage}") for split in SPLITS for part in own), *of_model]


def _measure(config: Config, lab: Lab, trained: Trained) -> Iterator[Measured | Arrays]:
    """Bounds and gaps of both splits, what is between them, KL and reconstruction."""
    from amortized_bayes.experiments.bounds import certificate, split_bounds
    from amortized_bayes.experiments.training import kl_and_reconstruction
    from amortized_bayes.per_point import mean_over_points

    wanted = _own_bounds(config, trained.config.family)
    arrays, gaps = {}, {}
    for split in SPLITS:
        own = replace(lab, report=lambda stage, *rest, split=split: lab.report(f"{split} {stage}", *rest))
        curves = kl_and_reconstruction(trained, split, config.curve_points)
        bounds = split_bounds(trained, split, config.points, wanted, own)
        for item in (*curves, *bounds):
            if isinstance(item, Measured):
                yield item._replace(factors={**item.factors, "split": split})
            else:
                arrays |= {f"{split}_{name}": value for name, value in item.arrays.items()}
        gaps[split] = mean_over_points(arrays[f"{split}_amortization_gap"])
    (train, train_error), (test, test_error) = (gaps[split] for split in SPLITS)
    found = certificate(trained, wanted, lab)  # of the model: one for both
    yield from (found._replace(factors={**found.factors, "split": split}) for split in SPLITS)
    yield measured("generalization_gap", (test - train, math.hypot(test_error, train_error)))  # of different points
    yield Arrays(arrays)
