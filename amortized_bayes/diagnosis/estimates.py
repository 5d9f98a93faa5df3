r"""What draws from the guide say of each point: ELBO, IWAE, k̂ and effective sample size, all from one set of weights.

.. math::
    L_b = \frac1S \sum_s \log w_{sb}, \qquad
    \text{IWAE}_b = \log \frac1S \sum_s w_{sb}, \qquad
    w_{sb} = \frac{p(x_b, z_{sb})}{q(z_{sb} \mid x_b)}
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amortized_bayes.evaluation.psis import ess, khat_threshold, psis_khat
from amortized_bayes.evaluation.streaming import weight_blocks
from amortized_bayes.joint import LogJoint, global_seed
from amortized_bayes.types import Guide

__all__ = ["Estimates", "guide_estimates", "guide_weights", "plain", "weighed"]

MAX_ROWS = 20_000
"""Particles times points that are evaluated at once."""
POINTS = 200
"""Points whose particles are drawn together."""

Estimates = dict[str, tuple[Tensor, Tensor]]
"""By name, values and standard errors of B points, ``(B,)`` each, float64 on the CPU; NaN where there is no error."""


def guide_estimates(joint: LogJoint, guide: Guide, num_particles: int, seed: int) -> Estimates:
    """ELBO and IWAE in nats, k̂ and ESS of each point, given the fixed latents of ``joint``."""
    return weighed(guide_weights(joint, guide, num_particles, seed).cpu())


def weighed(log_w: Tensor) -> Estimates:
    """ELBO and IWAE in nats, k̂ and ESS of each point, of log weights ``(S, B)``.

    Where k̂ is above its threshold IWAE has no error, NaN: the spread of such weights does not tell it. The error of k̂
    is (1 + k̂)/√M for a tail of M draws: that of the shape of a generalized Pareto fitted by maximum likelihood (Smith,
    *Estimating tails of probability distributions*, 1987), 0.17 near 0.7 at 1,000 draws.
    """
    num_particles = len(log_w)
    iwae = log_w.logsumexp(0) - math.log(num_particles)
    khat = psis_khat(log_w.T)
    error = (log_w - iwae).exp().std(0) / math.sqrt(num_particles)
    tail = min(0.2 * num_particles, 3 * math.sqrt(num_particles))
    return {
        "elbo": (log_w.mean(0), log_w.std(0) / math.sqrt(num_particles)),
        "iwae": (iwae, error.where(khat <= khat_threshold(num_particles), math.nan)),
        "k_hat": (khat, (1 + khat.clamp(min=-0.5)) / math.sqrt(tail)),
        "ess": (ess(log_w.T), torch.full_like(iwae, math.nan)),
    }


def guide_weights(joint: LogJoint, guide: Guide, num_particles: int, seed: int) -> Tensor:
    """Log weights of draws from the guide, ``(S, B)`` in nats, float64. The same seed gives the same draws."""
    columns = []
    for number, points in enumerate(torch.arange(joint.num_points).split(POINTS)):
        with global_seed(seed, "weights", number):
            columns.append(
                torch.cat(list(weight_blocks(joint.select(points), guide, num_particles, MAX_ROWS))).double()
            )
    return torch.cat(columns, -1)


def plain(found: Estimates) -> Estimates:
    """In float64, on the CPU."""
    return {name: (value.double().cpu(), error.double().cpu()) for name, (value, error) in found.items()}
