"""The verdict in words, and the reasons to give none.

A share of the inference gap needs log p(x). AIS may stand for it where the certificate on simulated points holds, IWAE
where k̂ is low; where the one that was chosen fails, the verdict abstains, and says only what needs no log p(x).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from amortized_bayes.evaluation.gaps import Gap
from amortized_bayes.evaluation.psis import khat_threshold

if TYPE_CHECKING:
    from amortized_bayes.diagnosis.report import Diagnosis

__all__ = ["Verdict", "give_verdict"]

MAX_DOUBTFUL = 0.1
"""Largest share of points with a k̂ above its threshold at which IWAE may stand for log p(x)."""

SMALL = 0.1
"""An inference gap below this, in nats, is nothing to mend."""

ADVICE = {
    "amortization": "widen the encoder",
    "approximation": "take a richer family than the guide's",
    "both": "widen the encoder and take a richer family",
    "nothing": "inference is close to exact; what is left to gain is in the model",
}


class Verdict(NamedTuple):
    """What is to blame.

    Args:
        words: one sentence.
        cause: ``"amortization"``, ``"approximation"``, ``"both"``, ``"nothing"``, or ``None`` where it abstains.
        reasons: why it abstains; empty where it does not.
    """

    words: str
    cause: str | None
    reasons: tuple[str, ...] = ()

    @property
    def abstains(self) -> bool:
        """Whether no cause is named."""
        return self.cause is None

    def __str__(self) -> str:
        return self.words


def give_verdict(found: Diagnosis) -> Verdict:
    """Name the cause of the inference gap, or abstain."""
    gaps = found.gaps()
    reasons = tuple(_reasons(found))
    if reasons:
        holds = f"; without log p(x) this holds: amortization {_say(gaps.amortization)}"
        unsettled = any(reason.startswith("q*") for reason in reasons)
        return Verdict(f"no verdict: {'; '.join(reasons)}{'' if unsettled else holds}", None, reasons)
    total, part = gaps.inference.mean, gaps.amortization
    if total < max(SMALL, 2 * gaps.inference.mean_error):
        return Verdict(f"inference gap {_say(gaps.inference)}: {ADVICE['nothing']}", "nothing")
    share = part.mean / total
    cause = "amortization" if share >= 0.55 else "approximation" if share <= 0.45 else "both"
    if cause == "both":
        words = f"amortization {_say(part)} and approximation {_say(gaps.approximation)}, about a half each"
        return Verdict(f"{words}: {ADVICE[cause]}", cause)
    gap = part if cause == "amortization" else gaps.approximation
    return Verdict(f"{cause} {_say(gap)}, {gap.mean / total:.0%} of the total: {ADVICE[cause]}", cause)


def _reasons(found: Diagnosis) -> list[str]:
    gaps = found.gaps()
    reasons = _evidence_fails(found, gaps.log_evidence.source)
    if gaps.approximation.suspicious:
        reasons.append(f"L[q*] lies above the estimate of log p(x): approximation {gaps.approximation}")
    residual = found.mean("residual")
    has_residual = found.settings.get("family", "gaussian") == "gaussian"  # the search for a flow reports none
    if has_residual and not residual <= max(0.05, 0.25 * abs(gaps.inference.mean)):
        reasons.append(f"q* is not settled (a Newton step would gain {residual:.2f} nats)")
    if not math.isfinite(gaps.inference.mean):
        reasons.append("the inference gap is not finite")
    return reasons


def _evidence_fails(found: Diagnosis, source: str) -> list[str]:
    """Why the estimate that stands for log p(x) cannot."""
    uncertified = _certificate_fails(found)
    if source == "ais":
        return uncertified
    doubtful, above = found.doubtful, found.mean("iwae") - found.mean("log_p_lower")
    if doubtful <= MAX_DOUBTFUL or (not uncertified and above <= found.target_gap):
        return []  # a certified AIS bound that is as high vouches for IWAE
    threshold = khat_threshold(found.num_particles)
    return [f"log p(x) rests on IWAE, and k̂ is above {threshold:.2f} at {doubtful:.0%} of the points"]


def _certificate_fails(found: Diagnosis) -> list[str]:
    """Why the certificate of the AIS bound does not hold."""
    certificate = found.certificate
    if certificate is None:
        return [f"the AIS bound has no certificate ({found.why_uncertified})"]
    gap, error = certificate.mean_gap, certificate.gap_error
    if not gap <= found.target_gap:
        return [f"the certificate fails: bounds on simulated points are {gap:.2f}±{error:.2f} nats apart"]
    if gap < -0.01 - 3 * error:
        return [f"the certificate fails: the upper bound lies below the lower one by {-gap:.2f}±{error:.2f} nats"]
    if certificate.easier:
        return ["the certificate does not carry over: simulated points are easier for the encoder than real ones"]
    return []


def _say(gap: Gap) -> str:
    digits = 1 if gap.mean_error >= 0.05 else 2
    return f"{gap.mean:.{digits}f}±{gap.mean_error:.{digits}f} nats"
