"""How the chains of annealed importance sampling walk, and how they are certified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from amortized_bayes.limits import Above, AtLeast, Below, Count, Positive, limited

__all__ = ["AISSettings", "CertificateSettings", "Progress"]

Progress = Callable[[int, int], None]
"""Called with transitions done and transitions in all."""


@limited
@dataclass(frozen=True)
class AISSettings:
    """Settings of the AIS chains.

    Args:
        num_chains: C.
        num_temperatures: T, steps from start to joint.
        num_leapfrog: gradients per temperature; an even number makes pairs, which keep the energy better. Of bits:
            Metropolis steps, in each of which all bits are proposed to flip.
        start: ``"guide"`` (its q as a Gaussian, widened: an amortized proposal) or ``"prior"``.
        mass: ``"guide"`` (1/scale² of the guide's q) or ``"unit"``; the same for bits.
        schedule: spacing of the temperatures: ``"adaptive"`` (equal steps of √Var log(f_1/f_0) dβ, seen by pilot
            chains), ``"linear"`` or ``"sigmoid"``.
        widen: factor on the scales of q in the start; bits have log odds over its square.
        target_acceptance: acceptance rate of the pilot chains. Pairs of steps work best below the acceptance rate
            that suits velocity Verlet, at which their trajectories would turn back.
        num_pilot: temperatures of the pilot chains.
        num_fit: draws to fit a Gaussian to, where q is no factorized Gaussian.
        memory_budget: bytes that the chains of one chunk may take, roughly; by default 64 MB on a CPU (what fits a
            cache is fastest), 8 GB on a GPU.

    Raises:
        TypeError: an option that does not exist, or of another type.
        ValueError: a number out of range or an unknown word.

    Example:
        >>> from amortized_bayes import AISSettings
        >>> AISSettings(num_chains=8).num_chains
        8
    """

    num_chains: Annotated[int, AtLeast(2)] = 16
    num_temperatures: Count = 80
    num_leapfrog: Count = 2
    start: Literal["guide", "prior"] = "guide"
    mass: Literal["guide", "unit"] = "guide"
    schedule: Literal["adaptive", "linear", "sigmoid"] = "adaptive"
    widen: Positive = 1.2
    target_acceptance: Annotated[float, Above(0), Below(1)] = 0.9
    num_pilot: Annotated[int, AtLeast(2)] = 20
    num_fit: Annotated[int, AtLeast(10)] = 100
    memory_budget: Positive | None = None

    num_warm_up: ClassVar[int] = 4

    @property
    def num_gradients(self) -> int:
        """Gradients of a chain and its pilot."""
        transitions = self.num_temperatures - 1 + self.num_warm_up + self.num_pilot
        return 2 + self.num_leapfrog * transitions


@limited
@dataclass(frozen=True)
class CertificateSettings:
    """On which simulated points the chains are certified, and how closely.

    Args:
        num_points: B', points drawn from the model, at most as many as there are real ones.
        target_gap: raise the number of temperatures until the mean gap of a quarter as many other simulated points is
            at most this at its upper end, in nats; ``None`` certifies the chains as they are.
        max_temperatures: where to stop raising it.

    Raises:
        TypeError: an option that does not exist, or of another type.
        ValueError: a number out of range.

    Example:
        >>> from amortized_bayes import CertificateSettings
        >>> CertificateSettings(target_gap=0.1).num_points
        200
    """

    num_points: Annotated[int, AtLeast(2)] = 200
    target_gap: Positive | None = None
    max_temperatures: Count = 2000
