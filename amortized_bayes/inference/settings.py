"""How the best q of each point is found: a factorized Gaussian, or a member of a flow family."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["FlowSearchSettings", "LocalSettings"]


@dataclass(frozen=True)
class LocalSettings:
    """How to find q*; a round of the default takes at most 4,100 decoder evaluations per point, and most take one.

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
        memory_budget: bytes that one chunk of points may take, about; by default 64 MB, on a GPU 8 GB.

    Raises:
        ValueError: a number out of its range.

    Example:
        >>> from amortized_bayes import LocalSettings
        >>> LocalSettings(num_samples=20).num_samples
        20
    """

    num_samples: int = 10
    max_steps: int = 300
    max_rounds: int = 6
    learning_rate: float = 1e-2
    num_windows: int = 10
    num_kept: int = 40
    tolerance: float = 0.01
    num_score: int = 500
    num_residual: int = 100
    num_fit: int = 100
    num_restarts: int = 1
    restart_spread: float = 1.0
    memory_budget: float | None = None

    def __post_init__(self) -> None:
        least = {"num_samples": 4, "num_windows": 1, "num_kept": 1, "num_score": 2, "num_residual": 2, "num_fit": 10}
        least |= {"max_steps": self.num_windows, "max_rounds": 1, "num_restarts": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"expected {name} of {bound} or more, got {getattr(self, name)}")
        if self.num_samples % 2:
            raise ValueError(f"expected an even num_samples, got {self.num_samples}")
        if not (self.learning_rate > 0 and self.tolerance >= 0):
            raise ValueError(
                f"expected learning_rate above 0 and tolerance of 0 or more, got {self.learning_rate} and "
                f"{self.tolerance}"
            )
        if not self.restart_spread >= 0:
            raise ValueError(f"expected restart_spread of 0 or more, got {self.restart_spread}")


@dataclass(frozen=True)
class FlowSearchSettings:
    """How the best flow of each point is searched; the default takes 12,400 decoder evaluations per point.

    Args:
        num_samples: S, draws of each q per step; those of z_0 come in pairs, so an even number.
        num_steps: steps of Adam.
        learning_rate: its highest step size, reached after a tenth of the steps; it then falls to 0 as a cosine.
        max_growth: a gradient this many times longer than usual at its point is cut to that length.
        num_kept: draws that decide between flow and start.
        num_score: fresh draws for the final ELBOs.
        memory_budget: bytes that one chunk of points may take, about; by default 512 MB, on a GPU 8 GB.

    Raises:
        ValueError: a number out of its range.

    Example:
        >>> from amortized_bayes import FlowSearchSettings
        >>> FlowSearchSettings(num_steps=200).num_steps
        200
    """

    num_samples: int = 10
    num_steps: int = 1000
    learning_rate: float = 5e-3
    max_growth: float = 10.0
    num_kept: int = 200
    num_score: int = 1000
    memory_budget: float | None = None

    def __post_init__(self) -> None:
        least = {"num_samples": 2, "num_steps": 1, "num_kept": 2, "num_score": 2}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"expected {name} of {bound} or more, got {getattr(self, name)}")
        if self.num_samples % 2:
            raise ValueError(f"expected an even num_samples, got {self.num_samples}")
        if not (0 < self.learning_rate < math.inf and self.max_growth >= 1):
            raise ValueError(
                f"expected learning_rate above 0 and max_growth of 1 or more, got {self.learning_rate} and "
                f"{self.max_growth}"
            )
