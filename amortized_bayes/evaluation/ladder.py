r"""Temperatures and step sizes of an annealed walk, learnt on pilot chains and then frozen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from amortized_bayes.divergence import CHECK_EVERY
from amortized_bayes.evaluation.hmc import ChainCheck, ChainState, Ladder, PathDensity, Transition, hmc_transition
from amortized_bayes.evaluation.settings import AISSettings
from amortized_bayes.keeping import kept

__all__ = ["growth", "tune"]

FIRST_STEP = 2.0
"""Times D^(-1/4): the step of the first pilot transition."""
GAIN, LEAST = 1.2, -0.5
"""By how much the log of a step follows the acceptance above its target, and the furthest it falls at once."""
SMALLEST, LARGEST = 1.25, 8.0
"""Bounds of a growth: rounds that are close would stop by luck, and a gap that is far off says little."""


@torch.no_grad()
def tune(
    density: PathDensity,
    state: ChainState,
    settings: AISSettings,
    inverse_mass: Tensor,
    generator: Generator,
    tick: Callable[[], None] = lambda: None,
    transition: Transition = hmc_transition,
) -> Ladder:
    """Walk pilot chains up a coarse ladder, learn step sizes and spacing there, and freeze them.

    The step size of a point rises and falls with the mean acceptance of its chains. The spacing is equal in
    √Var log(f_1/f_0) dβ, averaged over points: the length of the path in the metric of Fisher's information.
    """
    grid = _spaced("linear" if settings.schedule == "linear" else "sigmoid", settings.num_pilot).to(state.z)
    log_step = torch.full_like(inverse_mass[:, 0], math.log(FIRST_STEP * inverse_mass.shape[-1] ** -0.25))
    steps, spread = [], [_spread(state)]
    places = [1] * settings.num_warm_up + list(range(1, settings.num_pilot + 1))
    with kept("pilot", lambda: [None if len(steps) == len(places) else state, steps, spread], generator) as loop:
        if loop.found is not None:
            chains, steps, spread = loop.found
            state = state if chains is None else ChainState.again(chains)
            log_step = steps[-1]
            for _ in steps:
                tick()
        weights, divergences = torch.zeros_like(state.ends.log_end), torch.zeros_like(log_step)
        check = ChainCheck(state, weights, len(steps), divergences)
        for place in places[len(steps) :]:
            state, info = transition(
                density, state, grid[place], log_step.exp(), inverse_mass, settings.num_leapfrog, generator
            )
            log_step = log_step + (GAIN * (info.acceptance.mean(0) - settings.target_acceptance)).clamp(min=LEAST)
            steps.append(log_step)
            spread.append(_spread(state))
            divergences += info.divergent.sum(0)
            tick()
            if loop.due or len(steps) % CHECK_EVERY == 0 or len(steps) == len(places):
                check(state, weights, len(steps), divergences)
            loop.offer()
    steps, spread = steps[settings.num_warm_up :], torch.stack([spread[0], *spread[1 + settings.num_warm_up :]])
    smooth = torch.nn.functional.avg_pool1d(torch.stack(steps, -1)[:, None], 5, 1, 2, count_include_pad=False)[:, 0].T
    if settings.schedule == "adaptive":
        rate = (0.5 * (spread[1:] + spread[:-1])).clamp(min=0.02 * spread.max().item() + 1e-6)
        length = torch.cat([grid[:1], (rate * grid.diff()).cumsum(0)])
        betas = _interpolate(torch.linspace(0, 1, settings.num_temperatures + 1).to(grid) * length[-1], length, grid)
        betas[0], betas[-1] = 0.0, 1.0
    else:
        betas = _spaced(settings.schedule, settings.num_temperatures).to(grid)
    step_sizes = _interpolate(betas[1:], grid[1:], smooth).exp()
    return Ladder(betas, step_sizes, inverse_mass, settings.num_leapfrog, transition)


def growth(rounds: Sequence[tuple[int, float]], target_gap: float) -> float:
    """How many times the temperatures of the last round should bring the gap down to a target.

    A gap falls about as 1/T at first (Grosse, Maddison & Salakhutdinov, *Annealing between distributions by averaging
    moments*, 2013); the last two rounds say how fast this one does. A little more saves another round.

    Args:
        rounds: number of temperatures and gap in nats of each round so far; the last gap is above the target.
        target_gap: in nats.
    """
    (*before, (last, gap)) = rounds
    if not math.isfinite(gap):
        return LARGEST
    power, spare = 1.0, 1.2
    if before and math.isfinite(before[-1][1]):
        power = math.log(max(before[-1][1] / gap, 1.0)) / math.log(last / before[-1][0])
        power, spare = min(max(power, 0.5), 2.0), 1.1
    return min(max((spare * gap / target_gap) ** (1 / power), SMALLEST), LARGEST)


def _spaced(schedule: str, num_temperatures: int) -> Tensor:
    """Inverse temperatures 0 to 1, ``(T + 1,)``; "sigmoid" is dense at both ends."""
    t = torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64)
    if schedule == "linear":
        return t
    s = torch.sigmoid(4.0 * (2 * t - 1))
    return (s - s[0]) / (s[-1] - s[0])


def _spread(state: ChainState) -> Tensor:
    """Standard deviation over chains of log f_1/f_0, averaged over points, ``()``."""
    rise = state.ends.log_end - state.ends.log_start
    spread = rise.std(0)
    return spread[spread.isfinite()].mean().nan_to_num(nan=0.0)


def _interpolate(at: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear interpolation of ``values``, (P, ...), known at rising ``places``, (P,)."""
    right = torch.searchsorted(places, at).clamp(1, len(places) - 1)
    width = places[right] - places[right - 1]
    weight = ((at - places[right - 1]) / width).clamp(0, 1)
    weight = weight.reshape(-1, *(1 for _ in values.shape[1:]))
    return torch.lerp(values[right - 1], values[right], weight)
