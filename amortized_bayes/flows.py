"""The flow families by name: the one registry that guides, searches, flags, tables and figures read. No torch here.

A family is an entry of :data:`FLOWS` and the layer that the entry names in :mod:`~amortized_bayes.guides.flow_layers`.
Its plain form has one set of parameters for all data points; in its contextual form, ``<name>-contextual``, the
parameters depend on the data point through a context from the encoder. ``gaussian`` is the family without a flow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

from amortized_bayes.limits import Among, AtLeast, Count, Positive, limited

__all__ = ["CONTEXTUAL", "FAMILIES", "FLOWS", "FlowKind", "FlowSettings"]

CONTEXTUAL = "-contextual"


class FlowKind(NamedTuple):
    """One family of flows.

    Args:
        summary: the family in a line, for help and tables.
        layer: its class in :mod:`amortized_bayes.guides.flow_layers`.
        search_cost: a step of the search for the best flow of each point over one without a flow, for the forecast;
            measured by ``benchmarks/flows.py``.
        layers_per_flow: layers that ``num_flows`` counts as one.
        has_halves: whether a layer leaves half of its input unchanged, so that the halves have to swap.
        invertible: whether a layer has a closed inverse that a captured step can use.
        auxiliary: whether the flow moves auxiliary variables v together with z.
    """

    summary: str
    layer: str
    search_cost: float
    layers_per_flow: int = 1
    has_halves: bool = False
    invertible: bool = False
    auxiliary: bool = False


FLOWS: dict[str, FlowKind] = {
    "planar": FlowKind("z + u tanh(w·z + b) (Rezende & Mohamed, 2015)", "PlanarLayer", 1.2),
    "realnvp": FlowKind(
        "affine couplings (Dinh, Sohl-Dickstein & Bengio, 2017)", "AffineLayer", 1.8, has_halves=True, invertible=True
    ),
    "sylvester": FlowKind("z + Q R tanh(S Q'z + b) (van den Berg et al., 2018)", "SylvesterLayer", 2.8),
    "spline": FlowKind(
        "rational quadratic spline couplings (Durkan et al., 2019)", "SplineLayer", 15.0, has_halves=True
    ),
    "auxiliary": FlowKind(
        "affine couplings of z and auxiliary variables (Cremer, Li & Duvenaud, 2018)",
        "AffineLayer",
        12.0,
        layers_per_flow=2,
        has_halves=True,
        invertible=True,
        auxiliary=True,
    ),
}

FAMILIES = ("gaussian", *FLOWS, *(name + CONTEXTUAL for name in FLOWS))
"""Every name that :class:`FlowSettings` takes."""


@limited
@dataclass(frozen=True)
class FlowSettings:
    """A family of flows by name, and its size: the same for a guide and for the best flow of each point.

    Args:
        family: one of :data:`FAMILIES`.
        num_flows: K, layers (for ``auxiliary``: pairs of couplings, one of z and one of v).
        hidden: widths of the hidden layers of each network inside the flow.
        context: size of the context vector; contextual families only.
        num_bins: bins of a spline in each dimension.
        bound: half the side of the box in which splines act; outside they are the identity.

    Raises:
        TypeError: an option that does not exist, or of another type.
        ValueError: an unknown family or a number out of range.

    Example:
        >>> FlowSettings("planar-contextual", num_flows=8).context_dim
        32
        >>> FlowSettings("planar-contextual", num_flows=8).plain
        FlowSettings(family='planar', num_flows=8, hidden=(100, 100), context=32, num_bins=8, bound=5.0)
    """

    family: Annotated[str, Among(FAMILIES)] = "realnvp"
    num_flows: Annotated[int, AtLeast(1, 1_000)] = 4
    hidden: Annotated[tuple[int, ...], AtLeast(1, math.inf)] = (100, 100)
    context: Count = 32
    num_bins: Annotated[int, AtLeast(2, 500)] = 8  # Pyro keeps every bin above 0.001 of the box
    bound: Positive = 5.0

    def __post_init__(self) -> None:
        if not self.hidden:
            raise ValueError("expected hidden widths of 1 or more, got none")

    @property
    def plain(self) -> FlowSettings:
        """The same flow without a context."""
        return replace(self, family=self.family.removesuffix(CONTEXTUAL))

    @property
    def kind(self) -> FlowKind | None:
        """Entry of the registry; ``None`` for ``gaussian``."""
        return FLOWS.get(self.plain.family)

    @property
    def context_dim(self) -> int:
        """Size of the context vector that the encoder has to give: 0 for plain families."""
        return self.context if self.family.endswith(CONTEXTUAL) else 0
