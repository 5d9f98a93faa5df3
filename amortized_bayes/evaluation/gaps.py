r"""Where the nats go, per data point: arithmetic on estimates that were made elsewhere.

.. math::
    \underbrace{\log \hat p(x_b) - L[q^*_b]}_{\text{approximation}} +
    \underbrace{L[q^*_b] - L[q_\phi]}_{\text{amortization}} =
    \underbrace{\log \hat p(x_b) - L[q_\phi]}_{\text{inference}}

(Cremer, Li & Duvenaud, *Inference Suboptimality in VAEs*, ICML 2018). All gaps are paired: both terms of each
difference belong to one point, so that the spread over points, far larger than a gap, drops out. A negative gap is
reported with its z-score and never clipped. :math:`\log \hat p` is whichever of AIS and IWAE has the higher **mean**:
both are lower bounds, and the larger of two noisy ones taken per point would be biased upwards.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from amortized_bayes.limits import Above, Below, limited
from amortized_bayes.per_point import mean_over_points

__all__ = ["Estimate", "Gap", "Gaps", "LogEvidence", "gaps", "log_evidence", "paired_gap"]


class Estimate(NamedTuple):
    """Values per data point, ``(B,)`` in nats, with their Monte Carlo standard errors, ``(B,)``, where known."""

    value: Tensor
    standard_error: Tensor | None = None


class Gap(NamedTuple):
    """One gap: per point, and over points.

    Args:
        value: per point, ``(B,)`` in nats, negative ones as they came.
        standard_error: Monte Carlo error of each point's value, ``(B,)``; ``None`` where no error was given.
        z_score: value over error, ``(B,)``; ``None`` where no error was given.
        mean: mean over points.
        mean_error: standard error of the mean, over points.
        interval: confidence interval of the mean.
        mean_z: mean over its error.
        num_negative: points below zero.
        num_flagged: points below zero by more than two of their errors; ``None`` where no error was given.
    """

    value: Tensor
    standard_error: Tensor | None
    z_score: Tensor | None
    mean: float
    mean_error: float
    interval: tuple[float, float]
    mean_z: float
    num_negative: int
    num_flagged: int | None

    @property
    def suspicious(self) -> bool:
        """Whether the mean is below zero by more than two standard errors, which no optimum allows."""
        return self.mean_z < -2

    def without_error(self) -> Gap:
        """The same where the error of the mean is unknown."""
        return self._replace(mean_error=math.nan, interval=(math.nan, math.nan), mean_z=math.nan)

    def __str__(self) -> str:
        """Mean and error; the z-score too where the mean is negative."""
        text = f"{self.mean:.3f}±{self.mean_error:.3f} nats"
        if math.isnan(self.mean_error):
            return f"{self.mean:.3f} nats, of unknown error"
        return f"{text} (negative, z = {self.mean_z:.1f})" if self.mean < 0 else text


class LogEvidence(NamedTuple):
    """log p̂(x): the chosen estimate, and both means with their standard errors over points, in nats.

    ``source`` is ``"ais"``, ``"iwae"`` or ``"exact"``. Means of an estimate that was not made are NaN.
    """

    chosen: Estimate
    source: str
    ais_mean: float
    ais_error: float
    iwae_mean: float
    iwae_error: float


class Gaps(NamedTuple):
    """The decomposition. ``optimization`` is the best q found in restarts against one run, where there were any."""

    approximation: Gap
    amortization: Gap
    inference: Gap
    log_evidence: LogEvidence
    optimization: Gap | None = None


@limited
def gaps(
    elbo: Estimate,
    elbo_star: Estimate,
    *,
    ais: Estimate | None = None,
    iwae: Estimate | None = None,
    exact: Estimate | None = None,
    elbo_best: Estimate | None = None,
    confidence: Annotated[float, Above(0), Below(1)] = 0.95,
) -> Gaps:
    """Decompose the inference gap of each point.

    Args:
        elbo: L[q_phi], from the amortized guide.
        elbo_star: L[q*], from the best member of the family for each point.
        ais: lower bound on log p(x) by AIS.
        iwae: lower bound on log p(x) by importance weighting.
        exact: log p(x) itself, where it is known; its errors are those of rounding.
        elbo_best: L of the best q* found in several restarts.
        confidence: confidence level of the intervals.

    Raises:
        ValueError: no estimate of log p(x), estimates of different points, or a confidence outside (0, 1).

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> from amortized_bayes.evaluation.gaps import Estimate
        >>> elbo, best, log_p = (Estimate(torch.full((5,), v), torch.zeros(5)) for v in (-3.0, -2.0, -1.5))
        >>> ab.gaps(elbo, best, ais=log_p).amortization.mean
        1.0
    """
    evidence = log_evidence(ais, iwae, exact)
    return Gaps(
        approximation=paired_gap(evidence.chosen, elbo_star, confidence),
        amortization=paired_gap(elbo_star, elbo, confidence),
        inference=paired_gap(evidence.chosen, elbo, confidence),
        log_evidence=evidence,
        optimization=paired_gap(elbo_best, elbo_star, confidence) if elbo_best is not None else None,
    )


def paired_gap(upper: Estimate, lower: Estimate, confidence: float = 0.95) -> Gap:
    """``upper - lower`` of each point, and its mean with error and interval.

    The errors of two estimates of one point are taken to be independent, as those of different runs are.

    Raises:
        ValueError: estimates that are not both ``(B,)``, or a confidence outside (0, 1).
    """
    if upper.value.dim() != 1 or upper.value.shape != lower.value.shape:
        raise ValueError(
            f"expected two estimates of the same points, (B,) each, got {tuple(upper.value.shape)} and "
            f"{tuple(lower.value.shape)}"
        )
    for one in (upper, lower):
        if one.standard_error is not None and one.standard_error.shape != one.value.shape:
            raise ValueError(
                f"expected a standard error of each of {len(one.value)} points, got {tuple(one.standard_error.shape)}"
            )
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, got {confidence}")
    value = upper.value.double() - lower.value.double()
    error = _combine(upper, lower)
    z_score = value / error if error is not None else None
    mean, mean_error = mean_over_points(value)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * mean_error
    return Gap(
        value=value,
        standard_error=error,
        z_score=z_score,
        mean=mean,
        mean_error=mean_error,
        interval=(mean - half, mean + half),
        mean_z=_z_score(mean, mean_error),
        num_negative=int((value < 0).sum()),
        num_flagged=int((z_score < -2).sum()) if z_score is not None else None,
    )


def log_evidence(ais: Estimate | None, iwae: Estimate | None, exact: Estimate | None = None) -> LogEvidence:
    """Choose what is exact, or the estimate of log p(x) with the higher mean over points.

    Raises:
        ValueError: none was given, or AIS and IWAE are of different points.
    """
    if exact is not None:
        of_iwae = mean_over_points(iwae.value) if iwae is not None else (math.nan, math.nan)
        return LogEvidence(exact, "exact", math.nan, math.nan, *of_iwae)
    if ais is None and iwae is None:
        raise ValueError("expected an AIS or an IWAE estimate of log p(x), got neither")
    if ais is not None and iwae is not None and ais.value.shape != iwae.value.shape:
        raise ValueError(
            f"expected AIS and IWAE of the same points, got {tuple(ais.value.shape)} and {tuple(iwae.value.shape)}"
        )
    ais_mean, ais_error = mean_over_points(ais.value) if ais is not None else (math.nan, math.nan)
    iwae_mean, iwae_error = mean_over_points(iwae.value) if iwae is not None else (math.nan, math.nan)
    if ais is not None and not (iwae is not None and (iwae_mean > ais_mean or math.isnan(ais_mean))):
        return LogEvidence(ais, "ais", ais_mean, ais_error, iwae_mean, iwae_error)
    assert iwae is not None
    return LogEvidence(iwae, "iwae", ais_mean, ais_error, iwae_mean, iwae_error)


def _z_score(mean: float, error: float) -> float:
    """A mean over its error; infinite where there is no error, and nan where either is unknown."""
    if math.isnan(mean) or math.isnan(error):
        return math.nan
    if error > 0:
        return mean / error
    return math.copysign(math.inf, mean) if mean else 0.0


def _combine(a: Estimate, b: Estimate) -> Tensor | None:
    errors = [e.standard_error.double() for e in (a, b) if e.standard_error is not None]
    return torch.stack(errors).square().sum(0).sqrt() if errors else None
