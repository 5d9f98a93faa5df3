"""Where a trained model loses its nats: the decomposition on training and test points, overall and by class.

``python run_experiments.py gaps CHECKPOINT`` runs preset *quick*: 300 points of each split, in about four minutes on
two cores for the model of ``train``. Preset *paper* has the settings of Cremer, Li & Duvenaud (ICML 2018): 1,000
points, 100 chains from the prior over 10,000 temperatures with 10 leapfrog steps each, IWAE with 5,000 particles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from amortized_bayes.experiments.checking import SettingError, at_least, different
from amortized_bayes.types import Row

if TYPE_CHECKING:
    import pandas as pd

    from amortized_bayes.diagnosis.report import Diagnosis
    from amortized_bayes.experiments.trained import Trained
    from amortized_bayes.results import RunFolder

__all__ = ["GAPS", "GAPS_PRESETS", "GapsConfig", "class_rows", "run_gaps"]

GAPS = ("approximation_gap", "amortization_gap", "inference_gap")

Watch = Callable[[str, int, int], None]
"""Called with a stage, what is done of it and all of it."""


@dataclass(frozen=True)
class GapsConfig:
    """Measure where a trained model loses nats.

    Args:
        preset: The setting that all other flags start from.
        checkpoint: Run of `train` to look at: its path, its name, or latest.
        splits: Points to look at.
        points: Of each split, after a seeded shuffle; all if there are fewer.
        particles: Draws from the guide for ELBO, IWAE, k-hat and effective sample size.
        restarts: Runs of the search for the best q of a point; from two on, what restarts gain is reported too.
        local_steps: Steps of each of these.
        chains: AIS chains a point.
        temperatures: To begin with; raised until the certificate reaches the target.
        leapfrog: Gradients a temperature.
        start: Where chains start, the guide's q widened or the prior.
        mass: Of the chains, from the scales of the guide's q or 1.
        target_gap: Mean gap between both bounds on simulated points to reach, in nats.
        max_temperatures: Where to stop raising their number for it.
        simulated: Points drawn from the model for the certificate.
        shared_draws: Draws of a Bayesian decoder's weights, each held fixed.
        seed: Of all draws.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")] = "latest"
    preset: Literal["quick", "paper"] = "quick"
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    points: int = 300
    particles: int = 1_000
    restarts: int = 2
    local_steps: int = 300
    chains: int = 16
    temperatures: int = 120
    leapfrog: int = 2
    start: Literal["guide", "prior"] = "guide"
    mass: Literal["guide", "unit"] = "guide"
    target_gap: float = 0.1
    max_temperatures: int = 1_000
    simulated: int = 100
    shared_draws: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"points": 2, "particles": 25, "restarts": 1, "local_steps": 10, "chains": 2, "temperatures": 1}
        least |= {"leapfrog": 1, "max_temperatures": 1, "simulated": 2, "shared_draws": 1, "seed": 0}
        at_least(self, least)
        if self.temperatures > self.max_temperatures:
            raise SettingError(f"expected --temperatures of at most {self.max_temperatures}, got {self.temperatures}")
        if not self.target_gap > 0:
            raise SettingError(f"expected --target-gap above 0, got {self.target_gap}")
        different(self, ("splits",))


GAPS_PRESETS: dict[str, GapsConfig] = {
    "quick": GapsConfig(),
    "paper": GapsConfig(
        preset="paper",
        points=1_000,
        particles=5_000,
        restarts=5,
        local_steps=3_000,
        chains=100,
        temperatures=10_000,
        max_temperatures=10_000,
        leapfrog=10,
        start="prior",
        mass="unit",
        simulated=200,
    ),
}
"""Settings by name."""


def run_gaps(
    config: GapsConfig,
    trained: Trained,
    folder: RunFolder,
    *,
    data_dir: Path | None = None,
    watch: Watch = lambda *_: None,
) -> Iterator[Row]:
    """Diagnose each split that an open, writable run does not hold yet, keep it there, and yield its rows.

    Each split leaves rows, ``diagnosis_<split>.safetensors`` (for :meth:`Diagnosis.load`) and ``arrays/<split>.npz``.

    Raises:
        ValueError: as :func:`~amortized_bayes.diagnosis.run.diagnose`.
    """
    folder.drop_unfinished_rows()
    for split in config.splits:
        if split in folder.done():
            continue
        report, places = _diagnose(config, trained, split, watch)
        report.save(folder.path / f"diagnosis_{split}.safetensors")
        frame = report.to_frame()
        frame = frame[frame["kind"] == "real"]
        arrays = {name: frame[name].to_numpy() for name in frame.columns if name not in ("kind", "point")}
        labels = _labels(trained, split, places, data_dir)
        folder.save_arrays(split, places=places, **arrays, **({} if labels is None else {"labels": labels}))
        for row in _rows(config, trained, split, report, class_rows(arrays, labels)):
            folder.append(row, split)
            yield row
        folder.mark_done(split)


def class_rows(arrays: dict[str, np.ndarray], labels: np.ndarray | None) -> dict[int, dict[str, tuple[float, float]]]:
    """Mean of each gap and its standard error over points, by class of two points or more; nothing without labels."""
    found: dict[int, dict[str, tuple[float, float]]] = {}
    for label in np.unique(labels) if labels is not None else []:
        values = {name: arrays[name][labels == label] for name in GAPS}
        if len(values[GAPS[0]]) > 1:
            found[int(label)] = {n: (float(v.mean()), float(v.std(ddof=1) / len(v) ** 0.5)) for n, v in values.items()}
    return found


def _diagnose(config: GapsConfig, trained: Trained, split: str, watch: Watch) -> tuple[Diagnosis, np.ndarray]:
    from amortized_bayes.diagnosis.run import diagnose
    from amortized_bayes.evaluation.settings import AISSettings
    from amortized_bayes.experiments.point_bounds import at, choose
    from amortized_bayes.inference.optimize import LocalSettings

    images = trained.data.train if split == "train" else trained.data.test
    places = choose(images, config.points, config.seed, "gaps", split)
    x = at(images, places)
    report = diagnose(
        trained.model,
        trained.guide,
        x,
        num_shared=config.shared_draws,
        num_particles=config.particles,
        num_simulated=config.simulated,
        target_gap=config.target_gap,
        max_temperatures=config.max_temperatures,
        ais_settings=AISSettings(
            num_chains=config.chains,
            num_temperatures=config.temperatures,
            num_leapfrog=config.leapfrog,
            start=config.start,
            mass=config.mass,
        ),
        local_settings=LocalSettings(max_steps=config.local_steps),
        num_restarts=config.restarts,
        seed=config.seed,
        progress=lambda stage, done, total: watch(f"{split} {stage}", done, total),
    )
    return report, places


def _labels(trained: Trained, split: str, places: np.ndarray, data_dir: Path | None) -> np.ndarray | None:
    from amortized_bayes.experiments.vae_problem import find_labels

    return find_labels(trained.data, split, places, data_dir)


def _rows(
    config: GapsConfig,
    trained: Trained,
    split: str,
    report: Diagnosis,
    classes: dict[int, dict[str, tuple[float, float]]],
) -> Iterator[Row]:
    start = ("gaps", trained.data.name, trained.config.name, "amortized", None, trained.config.seed, 0, 0.0)
    summary: pd.DataFrame = report.summary()
    for name, row in summary.iterrows():
        below = (
            f"negative, z = {row['mean'] / row['standard_error']:.1f}" if str(name) in GAPS and row["mean"] < 0 else ""
        )
        note = report.verdict.words if name == "inference_gap" else below
        yield Row(*start, f"{split}_{name}", float(row["mean"]), float(row["standard_error"]), "points", note=note)
    certificate = report.certificate
    if certificate is not None:
        gap = (certificate.mean_gap, certificate.gap_error, "points")
        yield Row(*start, f"{split}_certificate_gap", *gap, note=report.evidence())
    yield Row(*start, f"{split}_doubtful", report.doubtful)
    yield Row(*start, f"{split}_acceptance", float(report.mean("acceptance")))
    if trained.config.family == "gaussian":
        yield Row(*start, f"{split}_residual", float(report.mean("residual")))
    for label, gaps in classes.items():
        for name, (mean, error) in gaps.items():
            yield Row(*start, f"{split}_class{label}_{name}", mean, error, "points")
