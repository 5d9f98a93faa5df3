r"""Hamiltonian Monte Carlo for C chains of B points at once, along a path between two densities.

The target at inverse temperature :math:`\beta` is the geometric mean of a start f_0 and an end f_1,

.. math::
    \log f_\beta(z) = (1 - \beta) \log f_0(z) + \beta \log f_1(z), \qquad
    H(z, p) = -\log f_\beta(z) + \tfrac12 p^\top M^{-1} p .

A trajectory is kicks and drifts in turn, the same read from either end. That is what makes it reversible, and the
Metropolis rule exact (Neal, *MCMC using Hamiltonian dynamics*, 2011). An odd number of drifts is velocity Verlet, with
half a kick at both ends; an even number goes in pairs whose outer kicks are smaller, which keeps the energy at longer
steps (Blanes, Casas & Sanz-Serna, *Numerical integrators for the Hybrid Monte Carlo method*, 2014). The gradients at a
chain's place are kept for both ends, so a change of temperature costs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from amortized_bayes.divergence import CHECK_EVERY, Divergence
from amortized_bayes.keeping import kept

__all__ = [
    "ChainCheck",
    "ChainState",
    "Ladder",
    "PathDensity",
    "PathEnds",
    "PathGradients",
    "Transition",
    "TransitionInfo",
    "Walk",
    "anneal",
    "choose_chains",
    "hmc_transition",
    "leapfrog",
    "start_chains",
]


PAIRED = 0.21178
"""Share of a pair's whole step in its outer kicks (Blanes, Casas & Sanz-Serna, 2014, the two-stage integrator)."""


class PathEnds(NamedTuple):
    """Log densities of both ends of a path at z, ``(C, B)`` in nats, and their gradients, ``(C, B, D)``."""

    log_start: Tensor
    log_end: Tensor
    grad_start: Tensor
    grad_end: Tensor

    def log_density(self, beta: Tensor) -> Tensor:
        """Log of the geometric mean, ``(C, B)``; beta is ``()`` or ``(B,)``."""
        # An end of density 0 must not turn 0 · inf into NaN where the other end has all the weight.
        return torch.where(beta == 0, self.log_start, self.log_start + beta * (self.log_end - self.log_start))

    def grad(self, beta: Tensor) -> Tensor:
        """Gradient of :meth:`log_density`, ``(C, B, D)``."""
        return PathGradients(self.grad_start, self.grad_end).grad(beta)


class PathGradients(NamedTuple):
    """The gradients of both ends alone, ``(C, B, D)``: all that a trajectory needs on its way."""

    grad_start: Tensor
    grad_end: Tensor

    def grad(self, beta: Tensor) -> Tensor:
        """Gradient of the geometric mean, ``(C, B, D)``; beta is ``()`` or ``(B,)``."""
        return torch.lerp(self.grad_start, self.grad_end, beta[..., None].to(self.grad_end))


PathDensity = Callable[[Tensor], PathEnds]
"""From z, ``(C, B, D)``, to both ends of the path; every point and chain on its own.

One with a method ``gradients``, from z to :class:`PathGradients`, is asked for no density on a trajectory's way.
"""


class ChainState(NamedTuple):
    """Where the chains are: z, ``(C, B, D)``, and the densities and gradients there."""

    z: Tensor
    ends: PathEnds

    @classmethod
    def again(cls, found: Sequence[Any]) -> ChainState:
        """Chains from what a loop has kept of them."""
        z, ends = found
        return cls(z, PathEnds(*ends))


class TransitionInfo(NamedTuple):
    """What a transition did, each ``(C, B)``.

    Args:
        acceptance: probability of accepting the proposal.
        accepted: whether it was accepted.
        divergent: whether its energy was not finite, or rose by more than 1,000 nats; such a chain stays.
    """

    acceptance: Tensor
    accepted: Tensor
    divergent: Tensor


class Walk(NamedTuple):
    """What chains gathered: ``log_weights`` (C, B) in nats, float64; ``acceptance`` and ``divergences``, (B,)."""

    log_weights: Tensor
    acceptance: Tensor
    divergences: Tensor


class ChainCheck:
    """Refuses chains that stopped being numbers, and walks in which nothing moves any more.

    A chain may start where neither end of the path has a density: it has no weight, and is left alone.

    Args:
        state: the chains as they are now.
        log_weights: log weights of them, ``(C, B)``.
        gone: transitions that are behind them.
        divergences: transitions of each point that have diverged, ``(B,)``.
    """

    def __init__(self, state: ChainState, log_weights: Tensor, gone: int, divergences: Tensor) -> None:
        self.sound = ~_lost(state, log_weights)
        self.before = gone, divergences.clone()

    def __call__(self, state: ChainState, log_weights: Tensor, gone: int, divergences: Tensor) -> None:
        """Look at them again.

        Raises:
            Divergence: some are no numbers any more, or all have diverged in every transition for long.
        """
        lost = _lost(state, log_weights) & self.sound
        if lost.any():
            words = f"{int(lost.sum()):,} of {lost.numel():,} chains are not finite after transition {gone}"
            raise Divergence(gone, math.nan, words)
        before, known = self.before
        if gone - before >= CHECK_EVERY:
            if bool((divergences - known >= (gone - before) * len(lost)).all()):
                words = f"every chain diverged in every transition from {before + 1} to {gone}"
                raise Divergence(gone, math.nan, words)
            self.before = gone, divergences.clone()


def _lost(state: ChainState, log_weights: Tensor) -> Tensor:
    """Which chains are no numbers, ``(C, B)``."""
    rise = state.ends.log_end - state.ends.log_start
    return ~state.z.isfinite().all(-1) | rise.isnan() | log_weights.isnan()


def start_chains(density: PathDensity, z: Tensor) -> ChainState:
    """Chains at z, ``(C, B, D)``."""
    return ChainState(z, density(z))


def leapfrog(
    density: PathDensity,
    state: ChainState,
    momentum: Tensor,
    beta: Tensor,
    step_size: Tensor,
    inverse_mass: Tensor,
    num_steps: int,
) -> tuple[ChainState, Tensor]:
    """A trajectory from a state and momentum, both ``(C, B, D)``.

    Args:
        density: both ends of the path.
        state: chains.
        momentum: ``(C, B, D)``.
        beta: inverse temperature, ``()`` or ``(B,)``.
        step_size: ``()`` or ``(B,)``.
        inverse_mass: diagonal of the inverse mass matrix, ``(B, D)``.
        num_steps: drifts, and gradients taken.
    """
    kick = step_size[..., None]
    drift = kick * inverse_mass
    on_the_way = getattr(density, "gradients", density)
    shares = kick_shares(num_steps)
    z, ends = state
    momentum = momentum + shares[0] * kick * ends.grad(beta)
    for share in shares[1:-1]:
        z = z + drift * momentum
        momentum = momentum + share * kick * on_the_way(z).grad(beta)
    z = z + drift * momentum
    ends = density(z)
    return ChainState(z, ends), momentum + shares[-1] * kick * ends.grad(beta)


def kick_shares(num_steps: int) -> list[float]:
    """Kicks of a trajectory of so many drifts, in steps: the same read from either end, and ``num_steps`` in all.

    An even number goes in pairs: of all kicks between two equal drifts, those of Blanes et al. lose least energy.
    """
    if num_steps % 2:
        return [0.5, *[1.0] * (num_steps - 1), 0.5]
    outer = 2 * PAIRED
    return [outer, *[2 - 2 * outer, 2 * outer] * (num_steps // 2 - 1), 2 - 2 * outer, outer]


def hmc_transition(
    density: PathDensity,
    state: ChainState,
    beta: Tensor,
    step_size: Tensor,
    inverse_mass: Tensor,
    num_steps: int,
    generator: Generator | None = None,
) -> tuple[ChainState, TransitionInfo]:
    """One transition that leaves f_beta unchanged: fresh momentum, a trajectory, accept or stay.

    Arguments as in :func:`leapfrog`; ``generator`` draws the momentum and the uniforms.
    """
    noise = torch.empty_like(state.z).normal_(generator=generator)
    momentum = noise * inverse_mass.rsqrt()
    proposal, end_momentum = leapfrog(density, state, momentum, beta, step_size, inverse_mass, num_steps)
    kinetic = 0.5 * (end_momentum.square() * inverse_mass - noise.square()).sum(-1)
    log_ratio = proposal.ends.log_density(beta) - state.ends.log_density(beta) - kinetic
    # A chain where f_beta is 0 may go anywhere: its ratio is +inf. NaN and -inf are rejected.
    divergent = log_ratio.isnan() | (log_ratio < -1000)
    acceptance = log_ratio.clamp(max=0).exp().masked_fill(divergent, 0.0)
    accepted = torch.empty_like(acceptance).uniform_(generator=generator) < acceptance
    return choose_chains(accepted, proposal, state), TransitionInfo(acceptance, accepted, divergent)


Transition = Callable[..., tuple[ChainState, TransitionInfo]]
"""Moves chains and leaves f_beta unchanged; called as :func:`hmc_transition`, and reversible as that is."""


class Ladder(NamedTuple):
    """Frozen settings of an annealed walk.

    Args:
        betas: inverse temperatures from 0 to 1, ``(T + 1,)``.
        step_sizes: at ``betas[1:]``, ``(T, B)``.
        inverse_mass: ``(B, D)``.
        num_leapfrog: gradients a transition.
        transition: by which chains move.
    """

    betas: Tensor
    step_sizes: Tensor
    inverse_mass: Tensor
    num_leapfrog: int
    transition: Transition = hmc_transition


@torch.no_grad()
def anneal(
    density: PathDensity,
    state: ChainState,
    ladder: Ladder,
    generator: Generator,
    *,
    backwards: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> Walk:
    """Walk up the ladder from draws of f_0, or ``backwards`` down it from draws of f_1, and gather log weights.

    Forwards E[w] = Z_1 / Z_0, backwards E[1 / w] = Z_0 / Z_1, for normalizing constants Z. Both walks have the same
    T - 1 transitions, in reverse order. Memory does not depend on T.
    """
    num_steps, gone = len(ladder.betas) - 1, 0
    log_weights = torch.zeros(state.z.shape[:2], dtype=torch.float64, device=state.z.device)
    acceptance = torch.zeros_like(log_weights[0])
    divergences = torch.zeros_like(acceptance, dtype=torch.long)
    steps = range(num_steps)[::-1] if backwards else range(num_steps)

    def now() -> list[object]:
        return [gone, None if gone == num_steps else state, log_weights, acceptance, divergences]

    with kept("walk", now, generator) as loop:
        if loop.found is not None:
            gone, chains, log_weights, acceptance, divergences = loop.found
            state = state if chains is None else ChainState.again(chains)
            for _ in range(min(gone, num_steps - 1)):
                tick()
        check = ChainCheck(state, log_weights, gone, divergences)
        for step in steps[gone:]:
            rise = state.ends.log_end.double() - state.ends.log_start.double()
            log_weights += (ladder.betas[step + 1] - ladder.betas[step]).double() * rise
            place = step if backwards else step + 1
            if 0 < place < num_steps:
                beta, step_size = ladder.betas[place], ladder.step_sizes[place - 1]
                state, info = ladder.transition(
                    density, state, beta, step_size, ladder.inverse_mass, ladder.num_leapfrog, generator
                )
                acceptance += info.acceptance.double().mean(0) / (num_steps - 1)
                divergences += info.divergent.sum(0)
                tick()
            gone += 1
            if loop.due or gone % CHECK_EVERY == 0 or gone == num_steps:
                check(state, log_weights, gone, divergences)
            loop.offer()
    # NaN comes from a start that either end gives no density: no weight forwards, no bound backwards.
    return Walk(log_weights.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf), acceptance, divergences)


def choose_chains(accepted: Tensor, new: ChainState, old: ChainState) -> ChainState:
    """The chains that move, ``(C, B)``, at their new places and the others where they were."""
    ends = PathEnds(*(_choose(accepted, n, o) for n, o in zip(new.ends, old.ends, strict=True)))
    return ChainState(_choose(accepted, new.z, old.z), ends)


def _choose(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accepted if new.dim() == accepted.dim() else accepted[..., None], new, old)
