"""How a diagnosis estimates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from amortized_bayes.evaluation.psis import MIN_DRAWS
from amortized_bayes.evaluation.settings import AISSettings, CertificateSettings
from amortized_bayes.flows import FlowSettings
from amortized_bayes.inference.settings import FlowSearchSettings, LocalSettings, NumBits
from amortized_bayes.limits import AtLeast, Count, limited

__all__ = ["DiagnosisSettings"]


@limited
@dataclass(frozen=True)
class DiagnosisSettings:
    """How :func:`~amortized_bayes.diagnosis.run.diagnose` estimates.

    Args:
        num_shared: T, draws of the latents outside the plate, where there are any.
        num_particles: S, draws from the guide for ELBO, IWAE and k̂.
        ais: settings of the chains, to begin with.
        certificate: how many points are simulated, and how closely both bounds must meet there: the number of
            temperatures is raised until they do.
        local: settings of the search for q*; with ``num_restarts`` of two or more, the gap of the best to the first is
            reported.
        flow: family of q*, by default that of the guide: ``guide.settings`` if it has them (our flows), else what
            its sites are (``family="own"`` of :func:`~amortized_bayes.inference.optimize.optimize_local`), or, where
            that is unknown, the factorized Gaussian, ``FlowSettings("gaussian")``, and no cause is named. The search
            for the best flow starts at the best Gaussian; it has neither residual nor restarts.
        flow_search: settings of that search.
        sum_up_to: bits of a point, where its latents are bits, up to which all 2^b codes are summed: evidence, ELBO, q*
            and gaps are exact then, without AIS and a certificate.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> from amortized_bayes import DiagnosisSettings
        >>> DiagnosisSettings(num_particles=500).num_shared
        3
    """

    num_shared: Count = 3
    num_particles: Annotated[int, AtLeast(MIN_DRAWS)] = 1000
    ais: AISSettings = field(default_factory=AISSettings)
    certificate: CertificateSettings = field(default_factory=lambda: CertificateSettings(100, 0.1, 1000))
    local: LocalSettings = field(default_factory=LocalSettings)
    flow: FlowSettings | None = None
    flow_search: FlowSearchSettings = field(default_factory=FlowSearchSettings)
    sum_up_to: NumBits = 16

    def __post_init__(self) -> None:
        if self.certificate.target_gap is None:
            raise ValueError("expected a certificate with a target_gap, got none")
