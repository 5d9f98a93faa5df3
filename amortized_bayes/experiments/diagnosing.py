"""The report of the library's ``diagnose`` as rows."""

from __future__ import annotations

from collections.abc import Iterator

from amortized_bayes.diagnosis import Diagnosis
from amortized_bayes.experiments.spec import Measured, measured

__all__ = ["report_rows"]


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
