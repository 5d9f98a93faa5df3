r"""Families of flows by name: :math:`z = f_K \circ \dots \circ f_1(z_0)` for all points, or with parameters for each.

A layer is a set of free numbers and the transform made of them. In a plain family the numbers are the same for all
points; in a contextual one a network gives them from the context, features of x that the encoder provides. Couplings
also read the half of z that they leave alone. All that a family has to say is how many numbers it needs, from where
they start, and which transform they make. Layers start at the identity (splines within 0.001 of it), but for the
couplings of auxiliary flows, which start near it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from pyro.distributions.transforms import AffineCoupling, Permute
from torch import Tensor, nn
from torch.distributions import Transform

from amortized_bayes.guides.transforms import (
    LARGEST_DIAGONAL,
    SplineCoupling,
    Sylvester,
    TamePlanar,
    softclip,
    spline_size,
)
from amortized_bayes.networks import start_at

__all__ = ["FAMILIES", "Conditioner", "Flow", "FlowSettings"]

MAX_REFLECTIONS = 8
"""Reflections that make the orthogonal matrix of a Sylvester layer, as van den Berg et al. (2018) chose."""
COUPLING_LOG_SCALE = 2.0
"""Bound of a coupling's log scales, in nats: on data far from the training data K layers stretch by e^(2K) at most."""


@dataclass(frozen=True)
class FlowSettings:
    """A family of flows by name and a few numbers.

    Args:
        family: one of ``FAMILIES``; the ``auxiliary`` ones are for
            :class:`~amortized_bayes.guides.auxiliary.AuxiliaryFlow`.
        num_flows: K, layers (of auxiliary flows: pairs of couplings, one of z and one of v).
        hidden: widths of the hidden layers of each network inside the flow.
        context: size of the context vector, of contextual families alone.
        num_bins: bins of a spline in each dimension.
        bound: half the side of the box in which splines act; the identity is outside.

    Raises:
        ValueError: an unknown family or a number out of its range.

    Example:
        >>> FlowSettings("planar-contextual", num_flows=8).context_dim
        32
        >>> FlowSettings("planar").context_dim
        0
    """

    family: str = "realnvp"
    num_flows: int = 4
    hidden: tuple[int, ...] = (100, 100)
    context: int = 32
    num_bins: int = 8
    bound: float = 5.0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"expected a family among {', '.join(FAMILIES)}, got {self.family!r}")
        for name, least in (("num_flows", 1), ("context", 1), ("num_bins", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} of {least} or more, got {getattr(self, name)}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"expected hidden widths of 1 or more, got {list(self.hidden)}")
        if self.num_bins > 500:  # Pyro keeps every bin above 0.001 of the box
            raise ValueError(f"expected num_bins of 500 or less, got {self.num_bins}")
        if not self.bound > 0:
            raise ValueError(f"expected a bound above 0, got {self.bound}")

    @property
    def layer(self) -> str:
        """Name of the family without ``-contextual``."""
        return self.family.removesuffix("-contextual")

    @property
    def num_layers(self) -> int:
        """Layers in all: none of a Gaussian, two for each pair of couplings."""
        return {"gaussian": 0, "auxiliary": 2}.get(self.layer, 1) * self.num_flows

    @property
    def context_dim(self) -> int:
        """Size of the context vector that the encoder has to give, 0 for plain families."""
        return self.context if self.family.endswith("-contextual") else 0


class Conditioner(nn.Module):
    """Numbers that a network gives from what it reads, or free numbers where there is nothing to read.

    Args:
        inputs: size of what is read; 0 makes the numbers parameters.
        hidden: widths of the hidden layers, with ELU after each.
        start: the numbers at the start, ``(M,)``.
        spread: share of its usual initial weights that the last layer gets: 0 makes the start a constant.

    Example:
        >>> Conditioner(0, (8,), torch.zeros(3))().shape
        torch.Size([3])
        >>> Conditioner(4, (8,), torch.zeros(3))(torch.ones(5, 2), torch.ones(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(self, inputs: int, hidden: Sequence[int], start: Tensor, spread: float = 0.0) -> None:
        super().__init__()
        if inputs == 0:
            self.free = nn.Parameter(start.clone())
            return
        sizes = [inputs, *hidden]
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ELU())]
        last = nn.Linear(sizes[-1], len(start))
        start_at(last, start, spread)
        self.network = nn.Sequential(*layers, last)

    def forward(self, *parts: Tensor | None) -> Tensor:
        """Numbers ``(..., M)`` from parts ``(..., size)``, those that are ``None`` left out."""
        if hasattr(self, "free"):
            return self.free
        read = [part for part in parts if part is not None]
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in read))
        return self.network(torch.cat([part.expand(*shape, part.shape[-1]) for part in read], -1))


class Flow(nn.Module):
    """A flow of K layers on R^D.

    Args:
        dim: D.
        settings: which flow.

    Raises:
        ValueError: a D below 1.

    Example:
        >>> flow = Flow(2, FlowSettings("realnvp", num_flows=2))
        >>> [type(transform).__name__ for transform in flow(None)]
        ['AffineCoupling', 'Permute', 'AffineCoupling', 'Permute']
    """

    flip: Tensor | None

    def __init__(self, dim: int, settings: FlowSettings) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"expected a dimension of 1 or more, got {dim}")
        self.layers = nn.ModuleList(_LAYERS[settings.layer](dim, settings) for _ in range(settings.num_layers))
        # Reversing the order changes the halves' places, also where D is odd, and twice it is the identity.
        self.register_buffer("flip", torch.arange(dim).flip(0) if settings.layer in _HALVES else None, persistent=False)

    def forward(self, context: Tensor | None) -> list[Transform]:
        """Transforms to apply one after the other to (..., D), for points with ``context`` (B, C).

        They are made anew, so that what each keeps of its last input belongs to these points alone.
        """
        transforms: list[Transform] = []
        for layer in self.layers:
            transforms.append(layer(context))
            if self.flip is not None:
                transforms.append(Permute(self.flip))
        if self.flip is not None and len(self.layers) % 2:
            transforms.append(Permute(self.flip))
        return transforms


class _Layer(nn.Module, ABC):
    """One layer: free numbers, or a network that gives them, and the transform made of them."""

    def __init__(self, dim: int, settings: FlowSettings) -> None:
        super().__init__()
        self.dim, self.settings = dim, settings

    def conditioner(self, start: Tensor, read: int = 0, spread: float = 0.0) -> Conditioner:
        """Source of numbers that start at ``start``, read off the context and ``read`` dimensions of z."""
        return Conditioner(read + self.settings.context_dim, self.settings.hidden, start, spread)

    @abstractmethod
    def forward(self, context: Tensor | None) -> Transform:
        """The transform of points with ``context`` (B, C)."""


class _Planar(_Layer):
    """Rezende & Mohamed (2015)."""

    def __init__(self, dim: int, settings: FlowSettings) -> None:
        super().__init__(dim, settings)
        direction = torch.randn(dim) / dim**0.5
        self.numbers = self.conditioner(torch.cat([torch.zeros(1 + dim), direction]))

    def forward(self, context: Tensor | None) -> Transform:
        bias, u, w = self.numbers(context).split([1, self.dim, self.dim], -1)
        return TamePlanar((bias, u, w))


class _Sylvester(_Layer):
    """Van den Berg et al. (2018): R starts at 0, which makes the identity, S and Q at random."""

    def __init__(self, dim: int, settings: FlowSettings) -> None:
        super().__init__(dim, settings)
        count = min(dim, MAX_REFLECTIONS)
        self.sizes = [count * dim, dim * dim, dim * dim, dim]
        reflections, s = torch.randn(count * dim), torch.randn(dim * dim) / dim**0.5
        self.numbers = self.conditioner(torch.cat([reflections, torch.zeros(dim * dim), s, torch.zeros(dim)]))

    def forward(self, context: Tensor | None) -> Transform:
        reflections, r, s, bias = self.numbers(context).split(self.sizes, -1)
        r, s = (self._triangular(m.unflatten(-1, (self.dim, self.dim))) for m in (r, s))
        return Sylvester(reflections.unflatten(-1, (-1, self.dim)), r, s, bias)

    def _triangular(self, matrix: Tensor) -> Tensor:
        diagonal = softclip(matrix.diagonal(dim1=-2, dim2=-1), LARGEST_DIAGONAL)
        return matrix.triu(1) + torch.diag_embed(diagonal)


class _AffineCoupling(_Layer):
    """RealNVP (Dinh, Sohl-Dickstein & Bengio, 2017)."""

    def __init__(self, dim: int, settings: FlowSettings) -> None:
        super().__init__(dim, settings)
        self.split = dim // 2
        # With auxiliary variables the identity is a saddle point: the reverse model gains nothing while v says nothing
        # of z, nor does z by listening to v while the reverse model is deaf. Fits have stayed there for 2,000 steps,
        # also from a tenth of the usual weights. The root keeps all layers together at one distance from the identity.
        spread = settings.num_layers**-0.5 if settings.layer == "auxiliary" else 0.0
        self.numbers = self.conditioner(torch.zeros(2 * (dim - self.split)), self.split, spread)

    def forward(self, context: Tensor | None) -> Transform:
        def shift_and_log_scale(first: Tensor) -> tuple[Tensor, Tensor]:
            shift, log_scale = self.numbers(first, context).expand(*first.shape[:-1], -1).chunk(2, -1)
            return shift, softclip(log_scale, COUPLING_LOG_SCALE)

        return AffineCoupling(self.split, shift_and_log_scale)


class _SplineCoupling(_Layer):
    """Neural spline flow (Durkan et al., 2019)."""

    def __init__(self, dim: int, settings: FlowSettings) -> None:
        super().__init__(dim, settings)
        self.split, size = dim // 2, spline_size(settings.num_bins)
        self.lower = self.conditioner(torch.zeros(self.split * size)) if self.split else None
        self.upper = self.conditioner(torch.zeros((dim - self.split) * size), self.split)

    def forward(self, context: Tensor | None) -> Transform:
        num_bins = self.settings.num_bins
        size = spline_size(num_bins)

        def upper(first: Tensor) -> Tensor:
            return self.upper(first, context).unflatten(-1, (-1, size))

        lower = next(self.parameters()).new_zeros(0) if self.lower is None else self.lower(context)
        return SplineCoupling(lower.unflatten(-1, (self.split, size)), upper, num_bins, self.settings.bound)


_LAYERS: dict[str, type[_Layer]] = {
    "planar": _Planar,
    "realnvp": _AffineCoupling,
    "sylvester": _Sylvester,
    "spline": _SplineCoupling,
    "auxiliary": _AffineCoupling,
}
_HALVES = ("realnvp", "spline", "auxiliary")
"""Layers that leave a half of z alone, so that halves have to change places."""

FAMILIES = ("gaussian", *_LAYERS, *(f"{name}-contextual" for name in _LAYERS))
"""Names of the families; those ``-contextual`` have parameters of the flow for each point."""
