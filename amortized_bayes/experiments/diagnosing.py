"""The library's ``diagnose`` for an experiment: its settings from flags, its report as rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from amortized_bayes.diagnosis import Diagnosis, DiagnosisSettings
from amortized_bayes.evaluation.settings import AISSettings, CertificateSettings
from amortized_bayes.experiments.spec import Measured, measured
from amortized_bayes.inference.settings import LocalSettings

__all__ = ["diagnosis_settings", "report_rows"]


def diagnosis_settings(config: Any) -> DiagnosisSettings:
    """How to diagnose, from the flags of ``gaps``."""
    return DiagnosisSettings(
        num_shared=config.shared_draws,
        num_particles=config.particles,
        ais=AISSettings(config.chains, config.temperatures, config.leapfrog, config.start, config.mass),
        certificate=CertificateSettings(config.simulated, config.target_gap, config.max_temperatures),
        local=LocalSettings(max_steps=config.local_steps, num_restarts=config.restarts),
    )


def report_rows(report: Diagnosis) -> Iterator[Measured]:
    """Everything that a diagnosis says of its points, overall."""
    for name, row in report.summary().iterrows():
        mean, error = float(row["mean"]), float(row["standard_error"])
        note = report.verdict.words if name == "inference_gap" else ""
        yield measured(str(name), (mean, error))._replace(note=note)
    if (certificate := report.certificate) is not None:
        gap = (certificate.mean_gap, certificate.gap_error)
        yield measured("certificate_gap", gap)._replace(note=report.evidence())
    yield Measured("doubtful", report.doubtful)
    yield Measured("acceptance", float(report.mean("acceptance")))
    residual = float(report.mean("residual"))
    if residual == residual:  # flows have none
        yield Measured("residual", residual)
