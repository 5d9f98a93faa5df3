r"""Metropolis steps on bits for C chains of B points at once, along a path between two densities.

All bits of a chain are proposed together, each to flip with log odds

.. math:: \tfrac12 (1 - 2 z_d)\, \partial_d \log f_\beta(z) - \frac{1}{2 \epsilon},

the gradient being that of log f continued between 0 and 1: to first order the difference that a flip makes, so that
bits flip where the density rises (Zhang, Liu & Liu, *A Langevin-like Sampler for Discrete Distributions*, ICML 2022;
with one bit at a time: Grathwohl, Swersky, Hashemi, Duvenaud & Maddison, *Oops I Took A Gradient*, ICML 2021). It only
proposes: the Metropolis rule is of the densities at 0 and 1, and exact for any gradient. Where a model has none, as one
that takes rows by its bits, flips are blind. Each step is reversible, and so are several with the same
:math:`\epsilon`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from amortized_bayes.evaluation.hmc import ChainState, PathDensity, TransitionInfo, choose_chains

__all__ = ["flip_transition"]

STEEPEST = 1e4
"""Largest difference in nats that a gradient is taken for."""


def flip_transition(
    density: PathDensity,
    state: ChainState,
    beta: Tensor,
    step_size: Tensor,
    inverse_mass: Tensor,
    num_steps: int,
    generator: Generator | None = None,
) -> tuple[ChainState, TransitionInfo]:
    """``num_steps`` Metropolis steps, each of which leaves f_beta unchanged.

    Args:
        density: both ends of the path.
        state: chains, z ``(C, B, D)`` of zeros and ones.
        beta: inverse temperature, ``()`` or ``(B,)``.
        step_size: epsilon, ``()`` or ``(B,)``.
        inverse_mass: factor on it for each bit, ``(B, D)``.
        num_steps: gradients taken.
        generator: random generator for the draws.
    """
    reluctance = 0.5 / (step_size[..., None] * inverse_mass)
    infos = []
    for _ in range(num_steps):
        odds = _flip_odds(state, beta, reluctance)
        moved = torch.empty_like(odds).uniform_(generator=generator) < odds.sigmoid()
        z = torch.where(moved, 1 - state.z, state.z)
        proposal = ChainState(z, density(z))
        back = _log_proposed(_flip_odds(proposal, beta, reluctance), moved)
        log_ratio = proposal.ends.log_density(beta) - state.ends.log_density(beta)
        log_ratio = log_ratio + back - _log_proposed(odds, moved)
        # A chain where f_beta is 0 may go anywhere: its ratio is +inf. NaN and -inf are rejected.
        acceptance = log_ratio.nan_to_num(nan=-torch.inf).clamp(max=0).exp()
        accepted = torch.empty_like(acceptance).uniform_(generator=generator) < acceptance
        state = choose_chains(accepted, proposal, state)
        infos.append(TransitionInfo(acceptance, accepted, log_ratio.isnan() & moved.any(-1)))
    acceptance, accepted, broken = (torch.stack(part) for part in zip(*infos, strict=True))
    return state, TransitionInfo(acceptance.mean(0), accepted.any(0), broken.all(0))


def _flip_odds(state: ChainState, beta: Tensor, reluctance: Tensor) -> Tensor:
    """Log odds of each flip, ``(C, B, D)``."""
    slope = state.ends.grad(beta).nan_to_num(nan=0.0).clamp(-STEEPEST, STEEPEST)
    return 0.5 * (1 - 2 * state.z) * slope - reluctance


def _log_proposed(odds: Tensor, moved: Tensor) -> Tensor:
    """Log probability of these flips, ``(C, B)``."""
    return torch.where(moved, F.logsigmoid(odds), F.logsigmoid(-odds)).sum(-1)
