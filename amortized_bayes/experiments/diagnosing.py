"""The library's ``diagnose`` for an experiment: its settings and costs from flags, its report as rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from amortized_bayes.configuration import SettingError
from amortized_bayes.diagnosis import Diagnosis, DiagnosisSettings
from amortized_bayes.evaluation.settings import CertificateSettings
from amortized_bayes.experiments.bounds import chains_of
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.spec import Measured, Work, measured
from amortized_bayes.inference.settings import LocalSettings
from amortized_bayes.per_point import mean_over_points

if TYPE_CHECKING:
    from torch import nn

    from amortized_bayes.experiments.trained import Trained

__all__ = [
    "JUDGEMENTS",
    "check_own_steps",
    "diagnosis_settings",
    "diagnosis_work",
    "guide_to_measure",
    "report_arrays",
    "report_rows",
]

JUDGEMENTS = ("certified", "converged")
"""What a report says of itself, as rows of 1 or 0."""


def diagnosis_settings(config: Any) -> DiagnosisSettings:
    """How to diagnose, from the flags of ``gaps``."""
    return DiagnosisSettings(
        num_shared=config.shared_draws,
        num_particles=config.particles,
        ais=chains_of(config),
        certificate=CertificateSettings(config.simulated, config.target_gap, config.max_temperatures),
        local=LocalSettings(max_steps=config.local_steps, num_restarts=config.restarts),
    )


def diagnosis_work(
    config: Any, model: VAEConfig, split: str, lab: Lab, *, points: int = 0, simulated: int = 0
) -> list[Work]:
    """Costs of so many points, and of the certificate on so many, whose first rounds are the largest unknown.

    In decoder evaluations with gradient.
    """
    draws = config.shared_draws if model.decoder == "bayesian" else 1
    gradients = config.chains * chains_of(config).num_gradients
    costs = {
        "bdmc": simulated * 4 * gradients,
        "q*": points * 10 * config.local_steps * config.restarts,
        "ais": points * 1.2 * gradients,
    }
    return [lab.evaluation_work(f"{split} {stage}", model, draws * cost) for stage, cost in costs.items() if cost]


def check_own_steps(config: Any, model: VAEConfig) -> None:
    """Refuse steps from answers of which none can be taken.

    Raises:
        SettingError: an encoder whose answers are no Gaussians, or that takes steps of its own.
    """
    if config.own_steps and model.family != "gaussian":
        raise SettingError(f"expected --own-steps 0 for a guide that is no Gaussian, got a model of {model.family!r}")
    if config.own_steps and model.semi_amortized_steps:
        raise SettingError(
            f"expected --own-steps 0 for a guide that takes {model.semi_amortized_steps} anyway, got {config.own_steps}"
        )


def guide_to_measure(config: Any, trained: Trained) -> nn.Module:
    """The trained guide, with per-point steps where they are asked for."""
    if not config.own_steps:
        return trained.guide
    from amortized_bayes.guides import LocalGuide
    from amortized_bayes.inference.semi_amortized import OWN_STEPS, SemiAmortized

    assert isinstance(trained.guide, LocalGuide)  # which `check_own_steps` sees to
    return SemiAmortized(trained.model, trained.guide, config.own_steps, seed=config.seed, **OWN_STEPS)


def report_arrays(report: Diagnosis) -> dict[str, np.ndarray]:
    """Everything that a diagnosis says of each real point."""
    frame = report.to_frame()
    frame = frame[frame["kind"] == "real"]
    names = [name for name in frame.columns if name not in ("kind", "point")]
    return {_name_of(name, report): frame[name].to_numpy() for name in names}


def _name_of(name: str, report: Diagnosis) -> str:
    """A sum over all codes of a point is no bound."""
    return "exact_log_p" if name == "log_p_lower" and report.exact else name


def report_rows(report: Diagnosis, family: str) -> Iterator[Measured]:
    """Everything that a diagnosis says of its points, overall; ``family`` is that of q*."""
    for name, row in report.summary().iterrows():
        mean, error = float(row["mean"]), float(row["standard_error"])
        note = report.verdict.words if name == "inference_gap" else ""
        if name == "log_p_lower" and report.exact:
            note = report.evidence()
        searched = {"searched": family} if name == "elbo_star" else {}
        yield measured(_name_of(str(name), report), (mean, error), **searched)._replace(note=note)
    if (certificate := report.certificate) is not None:
        gap = measured("certificate_gap", (certificate.mean_gap, certificate.gap_error))
        if not math.isfinite(certificate.mean_gap):
            gap = gap._replace(value=None, error=None, status="failed")
        yield gap._replace(note=report.evidence())
    arrays = report_arrays(report)
    yield measured("ess", mean_over_points(arrays["ess"]))
    khat = arrays["k_hat"]
    if len(khat := khat[np.isfinite(khat)]):  # weights that are equal have none
        yield measured("k_hat", mean_over_points(khat))
    yield Measured("doubtful", report.doubtful)
    for name in JUDGEMENTS:
        yield Measured(name, float(getattr(report, name)))
    if "acceptance" in report.values:  # sums over all codes have no chains
        yield Measured("acceptance", float(report.mean("acceptance")))
    residual = float(report.mean("residual"))
    if residual == residual:  # flows have none
        yield Measured("residual", residual)
