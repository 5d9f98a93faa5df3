"""How the best q of each point is found: a factorized Gaussian, or a member of a flow family."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from amortized_bayes.limits import AtLeast, Count, Even, NotNegative, Positive, limited

__all__ = ["FlowSearchSettings", "LocalSettings", "NumBits"]

NumBits = Annotated[int, AtLeast(0, 24)]
"""Bits of a point up to which its codes are summed: 2^24 of them take 128 MB."""


PAIRS = Even("since draws come in pairs")


@limited
@dataclass(frozen=True)
class LocalSettings:
    """How to find q*. One round of the default takes at most 4,100 decoder evaluations per point; most points need one.

    Args:
        num_samples: S, draws of each q per step, in pairs: an even number.
        max_steps: steps of a point in a round, where it does not stop early.
        max_rounds: rounds of a point whose residual is above the tolerance, after the first by more than two errors; 1
            makes ``max_steps`` the steps in all.
        learning_rate: first step of Adam, in units of each latent's spread over draws and points (1 for a latent that
            follows a standard normal prior on the whole).
        num_windows: evaluations of the gain.
        num_kept: draws kept for those evaluations, the same at each; rounded up to a multiple of ``num_samples``.
        tolerance: gain in nats over a window below which a point's remaining time is halved, and residual below which
            it has converged.
        num_score: fresh samples for the final ELBO.
        num_residual: samples for the gradient at the end.
        num_fit: draws of the guide that a Gaussian is fitted to, where its q is none.
        num_restarts: runs per point; all but the first start from means moved at random.
        restart_spread: by how many scales of q those means are moved.
        memory_budget: approximate bytes that one chunk of points may take; by default 64 MB, on a GPU 8 GB.

    Raises:
        TypeError: an option that does not exist, or of another type.
        ValueError: a number out of range.

    Example:
        >>> from amortized_bayes import LocalSettings
        >>> LocalSettings(num_samples=20).num_samples
        20
    """

    num_samples: Annotated[int, AtLeast(4), PAIRS] = 10
    max_steps: Count = 300
    max_rounds: Count = 6
    learning_rate: Positive = 1e-2
    num_windows: Count = 10
    num_kept: Count = 40
    tolerance: NotNegative = 0.01
    num_score: Annotated[int, AtLeast(2)] = 500
    num_residual: Annotated[int, AtLeast(2)] = 100
    num_fit: Annotated[int, AtLeast(10)] = 100
    num_restarts: Count = 1
    restart_spread: NotNegative = 1.0
    memory_budget: Positive | None = None

    def __post_init__(self) -> None:
        if self.max_steps < self.num_windows:
            raise ValueError(f"expected max_steps of {self.num_windows} or more, got {self.max_steps}")


@limited
@dataclass(frozen=True)
class FlowSearchSettings:
    """How to find the best flow of each point; the default takes 12,400 decoder evaluations per point.

    Args:
        num_samples: S, draws of each q per step; those of z_0 come in pairs, so an even number. What half as many lose
            takes twice the steps to win back, and each step moves all parameters.
        num_steps: steps of Adam.
        learning_rate: its highest step size, reached after a tenth of the steps; it then falls to 0 as a cosine.
        max_growth: a gradient this many times longer than usual at its point is cut to that length.
        num_kept: draws that decide between flow and start.
        num_score: fresh draws for the final ELBOs.
        memory_budget: approximate bytes that one chunk of points may take; by default 512 MB, on a GPU 8 GB.

    Raises:
        TypeError: an option that does not exist, or of another type.
        ValueError: a number out of range.

    Example:
        >>> from amortized_bayes import FlowSearchSettings
        >>> FlowSearchSettings(num_steps=200).num_steps
        200
    """

    num_samples: Annotated[int, AtLeast(2), PAIRS] = 20
    num_steps: Count = 500
    learning_rate: Positive = 5e-3
    max_growth: Annotated[float, AtLeast(1, math.inf)] = 10.0
    num_kept: Annotated[int, AtLeast(2)] = 200
    num_score: Annotated[int, AtLeast(2)] = 1000
    memory_budget: Positive | None = None
