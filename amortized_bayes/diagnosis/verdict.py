"""The verdict in words, and the reasons to give none.

A share of the inference gap needs log p(x). AIS is used for it where the certificate on simulated points holds, IWAE
where k̂ is low; where the one that was chosen fails, the verdict abstains, and says only what needs no log p(x).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from amortized_bayes.evaluation.bdmc import UPPER_END
from amortized_bayes.evaluation.gaps import Gap, Gaps
from amortized_bayes.evaluation.psis import khat_threshold

__all__ = [
    "BITS",
    "CONTAINS",
    "OWN",
    "RELATIONS",
    "UNKNOWN",
    "Certificate",
    "Reliability",
    "Verdict",
    "errors_hold",
    "give_verdict",
    "is_certified",
    "is_converged",
    "join_certificate",
    "split_certificate",
]

MAX_DOUBTFUL = 0.1
"""Largest share of points with a k̂ above its threshold at which IWAE is used for log p(x)."""

MOST = 0.5
"""Share of points with a k̂ above its threshold beyond which no certificate of simulated points is believed.

Chains that start at the guide find the modes around it. Where the guide is poor at most real points, a mode that only
they have can be missed by both, and simulated points say nothing of it.
"""

SMALL = 0.1
"""An inference gap below this, in nats, needs no fix."""

SMALLER = 0.45
"""Largest share of the inference gap that a part may have which is not its cause."""

NEGLIGIBLE = 0.01
"""What a search for q* leaves open, in nats: a gap this far below zero contradicts nothing."""

OWN, CONTAINS, UNKNOWN = "own", "contains", "unknown"
"""What the family of q* is to the guide: its own, one that contains it, or another, since the guide's has no name."""

RELATIONS = {
    OWN: "as of the guide",
    CONTAINS: "which contains that of the guide",
    UNKNOWN: "where that of the guide is unknown",
}

FIT = {
    "encoder": "widen the encoder",
    "rows": "fit the points' own factors longer",
    "constant": "give each point a q of its own",
    "other": "fit the guide better",
}
"""How the amortization gap is closed, by what the guide gets its q from."""
ADVICE = {
    "amortization": "{fit}",
    "approximation": "take a richer family than {than}",
    "both": "{fit} and take a richer family",
    "nothing": "inference is close to exact; what is left to gain is in the model",
}

BITS = "independent bits"
"""The family of q* where latents are bits: products of Bernoullis."""
THAN_OWN, THAN = "the guide's", {BITS: "independent bits"}
"""What a family has to be richer than, by family."""
BEST = {BITS: "product of independent bits"}
"""What q* is of a guide without a family, by family."""


class Certificate(NamedTuple):
    """Bounds on log p(x) of B' simulated points from both sides, under the settings used for real ones.

    Args:
        lower, upper: bounds, ``(T, B')`` in nats, for T draws of the shared latents.
        lower_error, upper_error: their standard errors over chains.
        mean_gap: worst mean gap over the T draws, in nats.
        gap_error: its standard error over points.
        easier: whether simulated points are easier for the encoder than real ones, which the gap then does not cover.
        words: what may be said of real points.
    """

    lower: Tensor
    upper: Tensor
    lower_error: Tensor
    upper_error: Tensor
    mean_gap: float
    gap_error: float
    easier: bool
    words: str


def split_certificate(certificate: Certificate | None) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Its tensors and the rest, each by name, as files hold them."""
    found = {} if certificate is None else certificate._asdict()
    bounds = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    return bounds, {name: value for name, value in found.items() if name not in bounds} or None


def join_certificate(bounds: Mapping[str, Tensor], plain: Mapping[str, Any] | None) -> Certificate | None:
    """What :func:`split_certificate` took apart."""
    return None if plain is None else Certificate(**bounds, **plain)


class Reliability(NamedTuple):
    """How far the estimates of log p(x) can be trusted.

    Args:
        certificate: certificate of the AIS bound, or ``None``.
        why_uncertified: the reason then.
        target_gap: largest mean gap of a certificate that holds, in nats.
        num_particles: S of IWAE.
        doubtful: share of points whose k̂ is above its threshold, or not known.
        iwae_above_ais: mean of IWAE minus the AIS bound, in nats.
        exact: whether log p(x) is no estimate.
    """

    certificate: Certificate | None
    why_uncertified: str
    target_gap: float
    num_particles: int
    doubtful: float
    iwae_above_ais: float
    exact: bool = False


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


def give_verdict(
    gaps: Gaps,
    reliability: Reliability,
    residual: float | None,
    relation: str = OWN,
    source: str = "other",
    family: str = "gaussian",
) -> Verdict:
    """Name the cause of the inference gap, or abstain.

    Args:
        gaps: gaps of all points.
        reliability: reliability of the estimates of log p(x).
        residual: what a Newton step from q* would gain, mean over points, its upper end; ``None`` where it is unknown.
        relation: relation of the family of q* to the guide's, ``"own"``, ``"contains"`` or ``"unknown"``.
        source: what the guide gets its q from, a key of ``FIT``.
        family: family of q*.
    """
    of_evidence = _evidence_fails(reliability, gaps.log_evidence.source)
    of_gaps = list(_gaps_fail(gaps, residual, relation, family))
    reasons = (*of_evidence, *of_gaps)
    if reasons:
        at_most = "at most " if relation == CONTAINS else ""
        holds = "" if of_gaps else f"; without log p(x) this holds: amortization {at_most}{_say(gaps.amortization)}"
        return Verdict(f"no verdict: {'; '.join(reasons)}{holds}", None, reasons)
    total, part = gaps.inference.mean, gaps.amortization
    if total < SMALL:
        return Verdict(f"inference gap {_say(gaps.inference)}: {ADVICE['nothing']}", "nothing")
    share = part.mean / total
    cause = "amortization" if share >= 1 - SMALLER else "approximation" if share <= SMALLER else "both"
    advice = ADVICE[cause].format(fit=FIT[source], than=THAN.get(family, THAN_OWN))
    if cause == "both":
        words = f"amortization {_say(part)} and approximation {_say(gaps.approximation)}, about a half each"
        return Verdict(f"{words}: {advice}", cause)
    gap = part if cause == "amortization" else gaps.approximation
    least = "at least " if relation == CONTAINS else ""
    return Verdict(f"{cause} {least}{_say(gap)}, {gap.mean / total:.0%} of the total: {advice}", cause)


def is_certified(reliability: Reliability) -> bool:
    """Whether the certificate of the AIS bound holds, and says something of the real points."""
    return reliability.exact or (not _certificate_fails(reliability) and reliability.doubtful <= MOST)


def errors_hold(reliability: Reliability, source: str) -> bool:
    """Whether what rests on an estimate of log p(x) has an error over points: not on IWAE by weights without variance.

    A certified AIS bound that is as high vouches for IWAE.
    """
    vouched = reliability.iwae_above_ais <= reliability.target_gap and is_certified(reliability)
    return source in ("ais", "exact") or reliability.doubtful <= MAX_DOUBTFUL or vouched


def is_converged(gaps: Gaps, residual: float | None) -> bool:
    """Whether what q* would still gain is small beside each gap; without a residual nothing is known against it."""
    return residual is None or not list(_unfinished(gaps, residual))


def _gaps_fail(gaps: Gaps, residual: float | None, relation: str, family: str) -> Iterator[str]:
    """Why no cause can be named, whatever log p(x) is."""
    if relation == UNKNOWN:
        best = BEST.get(family, "factorized Gaussian")
        yield f"the family of this guide is unknown, so that q* is but the best {best} of each point"
    elif _is_negative(gaps.amortization):
        yield f"the guide is better than q*, which is to be the best of its family: amortization {gaps.amortization}"
    elif relation == CONTAINS and gaps.amortization.mean > SMALLER * gaps.inference.mean >= SMALLER * SMALL:
        yield (
            f"q* is of a family that contains the guide's, so that amortization is at most {_say(gaps.amortization)} "
            f"and approximation at least {_say(gaps.approximation)}"
        )
    if _is_negative(gaps.approximation):
        yield f"L[q*] lies above the estimate of log p(x): approximation {gaps.approximation}"
    if residual is not None:
        yield from _unfinished(gaps, residual)
    if not math.isfinite(gaps.inference.mean):
        yield "the inference gap is not finite"
    elif max(SMALL, gaps.inference.mean) < 2 * gaps.inference.mean_error:
        yield f"the inference gap {_say(gaps.inference)} is below two of its errors: more points are needed"


def _unfinished(gaps: Gaps, residual: float) -> Iterator[str]:
    """What q* still gains is taken from approximation and given to amortization: it has to be small beside each."""
    parts = {"approximation": gaps.approximation, "amortization": gaps.amortization}
    moved = [f"{name} {_say(gap)}" for name, gap in parts.items() if not residual <= max(0.05, 0.25 * abs(gap.mean))]
    if moved:
        words = f"a Newton step would gain up to {residual:.2f} nats and move {' and '.join(moved)} by as much"
        yield f"q* has not converged: {words}"


def _is_negative(gap: Gap) -> bool:
    return (gap.suspicious or math.isnan(gap.mean_error)) and gap.mean < -NEGLIGIBLE


def _evidence_fails(reliability: Reliability, source: str) -> list[str]:
    """Why the estimate used for log p(x) cannot be."""
    if source == "exact":
        return []
    uncertified, doubtful = _certificate_fails(reliability), reliability.doubtful
    share = f"k̂ is above {khat_threshold(reliability.num_particles):.2f} at {doubtful:.0%} of the points"
    if doubtful > MOST:
        real = f"{share}, and simulated ones do not show what is missed at real ones: fit the guide better first"
        return [*(uncertified if source == "ais" else []), real]
    if source == "ais":
        return uncertified
    return [] if errors_hold(reliability, source) else [f"log p(x) rests on IWAE, and {share}"]


def _certificate_fails(reliability: Reliability) -> list[str]:
    """Why the certificate of the AIS bound does not hold."""
    certificate = reliability.certificate
    if certificate is None:
        return [f"the AIS bound has no certificate ({reliability.why_uncertified})"]
    gap, error = certificate.mean_gap, certificate.gap_error
    if not gap + UPPER_END * error <= reliability.target_gap:
        size = f"{gap:.2f}±{error:.2f} nats apart, and may be more than {reliability.target_gap:g}"
        return [f"the certificate fails: bounds on simulated points are {size}"]
    if gap < -0.01 - 3 * error:
        return [f"the certificate fails: the upper bound lies below the lower one by {-gap:.2f}±{error:.2f} nats"]
    if certificate.easier:
        return ["the certificate does not carry over: simulated points are easier for the encoder than real ones"]
    return []


def _say(gap: Gap) -> str:
    digits = 1 if gap.mean_error >= 0.05 else 2
    if math.isnan(gap.mean_error):
        return f"{gap.mean:.{digits}f} nats, of unknown error"
    return f"{gap.mean:.{digits}f}±{gap.mean_error:.{digits}f} nats"
