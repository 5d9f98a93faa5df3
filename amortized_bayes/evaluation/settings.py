"""How the chains of annealed importance sampling walk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

__all__ = ["AISSettings", "Progress"]

Progress = Callable[[int, int], None]
"""Called with transitions done and transitions in all."""


@dataclass(frozen=True)
class AISSettings:
    """How the chains walk.

    Args:
        num_chains: C.
        num_temperatures: T, steps from start to joint.
        num_leapfrog: gradients a temperature.
        start: ``"guide"`` (its q as a Gaussian, widened) or ``"prior"``.
        mass: ``"guide"`` (1/scale² of the guide's q) or ``"unit"``.
        schedule: spacing of the temperatures: ``"adaptive"`` (equal steps of √Var log(f_1/f_0) dβ, seen by pilot
            chains), ``"linear"`` or ``"sigmoid"``.
        widen: factor on the scales of q in the start.
        target_acceptance: of the pilot chains.
        num_pilot: temperatures that the pilot chains walk.
        num_fit: draws to fit a Gaussian to, where q is no factorized Gaussian.

    Raises:
        ValueError: a number out of its range or an unknown word.

    Example:
        >>> from amortized_bayes import AISSettings
        >>> AISSettings(num_chains=8).num_chains
        8
    """

    num_chains: int = 16
    num_temperatures: int = 120
    num_leapfrog: int = 2
    start: Literal["guide", "prior"] = "guide"
    mass: Literal["guide", "unit"] = "guide"
    schedule: Literal["adaptive", "linear", "sigmoid"] = "adaptive"
    widen: float = 1.2
    target_acceptance: float = 0.75
    num_pilot: int = 20
    num_fit: int = 100

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
