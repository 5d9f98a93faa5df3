"""A trained model diagnosed on points of one split: the library's ``diagnose``, and its report as rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from amortized_bayes.diagnosis.report import Diagnosis
from amortized_bayes.diagnosis.run import diagnose
from amortized_bayes.evaluation.settings import AISSettings
from amortized_bayes.experiments.bounds import at, choose
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.spec import GAPS, Measured, measured
from amortized_bayes.experiments.trained import Trained
from amortized_bayes.inference.optimize import LocalSettings

if TYPE_CHECKING:
    from amortized_bayes.experiments.gaps import Config

__all__ = ["diagnose_split", "report_rows"]


def diagnose_split(config: Config, trained: Trained, split: str, lab: Lab) -> tuple[Diagnosis, np.ndarray]:
    """The diagnosis of points of a split, and their places.

    Raises:
        ValueError: as :func:`~amortized_bayes.diagnosis.run.diagnose`.
    """
    images = trained.data.train if split == "train" else trained.data.test
    places = choose(images, config.points, config.seed, "gaps", split)
    settings = AISSettings(
        num_chains=config.chains,
        num_temperatures=config.temperatures,
        num_leapfrog=config.leapfrog,
        start=config.start,
        mass=config.mass,
    )
    report = diagnose(
        trained.model,
        trained.guide,
        at(images, places),
        num_shared=config.shared_draws,
        num_particles=config.particles,
        num_simulated=config.simulated,
        target_gap=config.target_gap,
        max_temperatures=config.max_temperatures,
        ais_settings=settings,
        local_settings=LocalSettings(max_steps=config.local_steps),
        num_restarts=config.restarts,
        seed=config.seed,
        progress=lambda stage, done, total: lab.watch(f"{split} {stage}", done, total),
    )
    return report, places


def report_rows(report: Diagnosis) -> Iterator[Measured]:
    """Everything that a diagnosis says of its points, overall."""
    for name, row in report.summary().iterrows():
        mean, error = float(row["mean"]), float(row["standard_error"])
        below = f"negative, z = {mean / error:.1f}" if str(name) in GAPS and mean < 0 else ""
        note = report.verdict.words if name == "inference_gap" else below
        yield measured(str(name), (mean, error))._replace(note=note)
    if (certificate := report.certificate) is not None:
        gap = (certificate.mean_gap, certificate.gap_error)
        yield measured("certificate_gap", gap)._replace(note=report.evidence())
    yield Measured("doubtful", report.doubtful)
    yield Measured("acceptance", float(report.mean("acceptance")))
    residual = float(report.mean("residual"))
    if residual == residual:  # flows have none
        yield Measured("residual", residual)
