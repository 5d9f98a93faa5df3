"""How the chains of annealed importance sampling walk, and how they are certified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

__all__ = ["AISSettings", "CertificateSettings", "Progress"]

Progress = Callable[[int, int], None]
"""Called with transitions done and transitions in all."""


@dataclass(frozen=True)
class AISSettings:
    """How the chains walk.

    Args:
        num_chains: C.
        num_temperatures: T, steps from start to joint.
        num_leapfrog: gradients per temperature; an even number makes pairs, which keep the energy better.
        start: ``"guide"`` (its q as a Gaussian, widened) or ``"prior"``.
        mass: ``"guide"`` (1/scale² of the guide's q) or ``"unit"``.
        schedule: spacing of the temperatures: ``"adaptive"`` (equal steps of √Var log(f_1/f_0) dβ, seen by pilot
            chains), ``"linear"`` or ``"sigmoid"``.
        widen: factor on the scales of q in the start.
        target_acceptance: of the pilot chains. Pairs of steps are best short of the acceptance that velocity Verlet
            would like: their steps would turn round.
        num_pilot: temperatures that the pilot chains walk.
        num_fit: draws to fit a Gaussian to, where q is no factorized Gaussian.
        memory_budget: bytes that the chains of one chunk may take, by a rough count; 64 MB on a CPU (what a cache
            holds goes fastest), 8 GB on a GPU.

    Raises:
        ValueError: a number out of its range or an unknown word.

    Example:
        >>> from amortized_bayes import AISSettings
        >>> AISSettings(num_chains=8).num_chains
        8
    """

    num_chains: int = 16
    num_temperatures: int = 80
    num_leapfrog: int = 2
    start: Literal["guide", "prior"] = "guide"
    mass: Literal["guide", "unit"] = "guide"
    schedule: Literal["adaptive", "linear", "sigmoid"] = "adaptive"
    widen: float = 1.2
    target_acceptance: float = 0.9
    num_pilot: int = 20
    num_fit: int = 100
    memory_budget: float | None = None

    num_warm_up: ClassVar[int] = 4

    @property
    def num_gradients(self) -> int:
        """Gradients of a chain and its pilot."""
        transitions = self.num_temperatures - 1 + self.num_warm_up + self.num_pilot
        return 2 + self.num_leapfrog * transitions

    def __post_init__(self) -> None:
        least = {"num_chains": 2, "num_temperatures": 1, "num_leapfrog": 1, "num_pilot": 2, "num_fit": 10}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"expected {name} of {bound} or more, got {getattr(self, name)}")
        words = {"start": ("guide", "prior"), "mass": ("guide", "unit"), "schedule": ("adaptive", "linear", "sigmoid")}
        for name, choices in words.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"expected {name} among {choices}, got {getattr(self, name)!r}")
        if not (self.widen > 0 and 0 < self.target_acceptance < 1):
            raise ValueError(
                f"expected widen above 0 and target_acceptance in (0, 1), got {self.widen} and {self.target_acceptance}"
            )


@dataclass(frozen=True)
class CertificateSettings:
    """On which simulated points the chains are certified, and how closely.

    Args:
        num_points: B', points drawn from the model, at most as many as there are real ones.
        target_gap: raise the number of temperatures until the mean gap of a quarter as many other simulated points is
            at most this at its upper end, in nats; ``None`` certifies the chains as they are.
        max_temperatures: where to stop raising it.

    Raises:
        ValueError: a number out of its range.

    Example:
        >>> from amortized_bayes import CertificateSettings
        >>> CertificateSettings(target_gap=0.1).num_points
        200
    """

    num_points: int = 200
    target_gap: float | None = None
    max_temperatures: int = 2000

    def __post_init__(self) -> None:
        if self.num_points < 2 or (self.target_gap is not None and not self.target_gap > 0):
            raise ValueError(
                f"expected num_points of 2 or more and target_gap above 0, got {self.num_points} and {self.target_gap}"
            )
