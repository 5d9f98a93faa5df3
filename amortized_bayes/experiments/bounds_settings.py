"""Settings that several experiments share: how bounds are estimated at each point. No torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from amortized_bayes.configuration import AtLeast, Different, SettingError, Settings
from amortized_bayes.flows import FLOWS

__all__ = ["PAPER_BOUNDS", "BoundsConfig", "QFamily"]

if TYPE_CHECKING:
    QFamily = str
else:  # choices of flags
    QFamily = Literal[("gaussian", *FLOWS)]


@dataclass(frozen=True)
class BoundsConfig(Settings):
    """How the bounds at each point are estimated.

    Args:
        best_families: Families of which the best q of each point is searched for. The Gaussian comes first; searches
            for the others start there, with flows of the size that the model's own would have.
        particles: Number of IWAE particles.
        local_steps: Number of steps of the search for the best Gaussian.
        local_rounds: Most times that these steps are taken at a point where the search has not converged.
        flow_steps: Number of steps of the search for the best flow, from the best Gaussian; after 600 it is 0.1 to 0.3
            nats below what 3,000 steps find.
        chains: Number of AIS chains per point.
        temperatures: Number of AIS temperatures.
        leapfrog: Number of leapfrog steps per temperature.
        start: Where AIS chains start, at the guide's q, widened, or at the prior.
        mass: Masses of the AIS chains, from the scales of the guide's q (guide) or 1 (unit).
        simulated: Number of points drawn from each model for the certificate of AIS.
        score: Number of fresh draws that score the ELBO of each q.
    """

    best_families: Annotated[tuple[QFamily, ...], Different("gaussian")] = ("gaussian", "auxiliary", "realnvp")
    particles: Annotated[int, AtLeast(2)] = 5_000
    local_steps: Annotated[int, AtLeast(10)] = 300
    local_rounds: Annotated[int, AtLeast(1)] = 6
    flow_steps: Annotated[int, AtLeast(1)] = 600
    chains: Annotated[int, AtLeast(2)] = 16
    temperatures: Annotated[int, AtLeast(1)] = 200
    leapfrog: Annotated[int, AtLeast(1)] = 2
    start: Literal["guide", "prior"] = "guide"
    mass: Literal["guide", "unit"] = "guide"
    simulated: Annotated[int, AtLeast(2)] = 50
    score: Annotated[int, AtLeast(2)] = 1_000

    def require(self, families: Collection[str]) -> None:
        """Refuse families without a best q: held against another family's, their gaps would mean something else."""
        missing = [f for f in families if f.removesuffix("-contextual") not in self.best_families]
        if missing:
            among = ", ".join(self.best_families)
            raise SettingError(f"expected --families among those of --best-families ({among}), got {missing[0]!r}")


PAPER_BOUNDS = replace(
    BoundsConfig(),
    local_steps=3_000,
    flow_steps=10_000,
    chains=100,
    temperatures=10_000,
    leapfrog=10,
    start="prior",
    mass="unit",
)
"""The bounds of preset *paper*."""
