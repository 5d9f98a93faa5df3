r"""Flows as modules: :math:`z = f_K \circ \dots \circ f_1(z_0)`, defined once for guides and for single points.

A layer is a set of free numbers and the transform made of them. In a plain family the numbers are parameters; in a
contextual one a network computes them from the context, features of x that the encoder provides. Couplings also read
the half of z that they leave unchanged. A layer says how many numbers it needs, where they start, and which transform
they make. A guide has one :class:`Flow` for all points; the search for the best flow of each point puts parameters of
the point's own into the same module by ``functional_call``
(:class:`~amortized_bayes.inference.flow_points.PointFlows`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from pyro.distributions.transforms import AffineCoupling, Permute
from torch import Tensor, nn
from torch.distributions import Transform

from amortized_bayes.flows import FlowSettings
from amortized_bayes.guides.transforms import (
    LARGEST_DIAGONAL,
    SplineCoupling,
    Sylvester,
    TamePlanar,
    softclip,
    spline_size,
)
from amortized_bayes.memory import check_network
from amortized_bayes.networks import start_at

__all__ = ["AffineLayer", "Conditioner", "Flow", "FlowLayer", "PlanarLayer", "SplineLayer", "SylvesterLayer"]

MAX_REFLECTIONS = 8
"""Reflections that make the orthogonal matrix of a Sylvester layer, as van den Berg et al. (2018) chose."""
COUPLING_LOG_SCALE = 2.0
"""Bound of a coupling's log scales, in nats: on data far from the training data K layers stretch by e^(2K) at most."""
AUXILIARY_LOG_SCALE = 8.0
"""Bound of the log scales of the auxiliary variables v, in nats."""
AUXILIARY_GAIN = 0.35
"""How much of z_0 the mean of v_0 carries where a search starts, in scales of v."""


class Conditioner(nn.Module):
    """Numbers that a network computes from its inputs, or free parameters where there are no inputs.

    Args:
        inputs: size of the inputs; 0 makes the numbers parameters.
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
        check_network([*sizes, len(start)])
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ELU())]
        last = nn.Linear(sizes[-1], len(start))
        start_at(last, start, spread)
        self.network = nn.Sequential(*layers, last)

    def forward(self, *parts: Tensor | None) -> Tensor:
        """Numbers ``(..., M)`` from parts ``(..., size)``; parts that are ``None`` are left out."""
        if hasattr(self, "free"):
            return self.free
        read = [part for part in parts if part is not None]
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in read))
        return self.network(torch.cat([part.expand(*shape, part.shape[-1]) for part in read], -1))

    @torch.no_grad()
    def restart(self, loc: Tensor, scale: Tensor, draws: Tensor | None = None) -> None:
        """Let a network read its inputs in units of ``scale`` about ``loc``, ``(M,)`` each; free numbers stay.

        The last layer is zeroed, or, given draws of the inputs ``(S, M)``, the first half of the numbers becomes a
        random function of them of standard deviation ``AUXILIARY_GAIN``.
        """
        if hasattr(self, "free"):
            return
        first, last = self.network[0], self.network[-1]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        first.weight.copy_(first.weight / scale)
        first.bias.sub_(first.weight @ loc)
        last.weight.zero_()
        if draws is not None:
            half = len(last.weight) // 2
            last.weight[:half].normal_()
            values = self(draws)[:, :half]
            last.weight[:half] *= AUXILIARY_GAIN / values.std(0)[:, None]
            last.bias[:half] -= self(draws)[:, :half].mean(0)


class FlowLayer(nn.Module, ABC):
    """One layer on R^D: free numbers, or a network that computes them, and the transform made of them."""

    def __init__(self, dim: int, settings: FlowSettings, num_layers: int) -> None:
        super().__init__()
        self.dim, self.settings, self.num_layers = dim, settings, num_layers

    def conditioner(self, start: Tensor, read: int = 0, spread: float = 0.0) -> Conditioner:
        """Source of numbers that start at ``start``, from the context and ``read`` dimensions of z."""
        return Conditioner(read + self.settings.context_dim, self.settings.hidden, start, spread)

    @abstractmethod
    def forward(self, context: Tensor | None) -> Transform:
        """The transform of points with ``context`` (B, C)."""


class PlanarLayer(FlowLayer):
    """Rezende & Mohamed (2015); starts at the identity."""

    def __init__(self, dim: int, settings: FlowSettings, num_layers: int) -> None:
        super().__init__(dim, settings, num_layers)
        direction = torch.randn(dim) / dim**0.5
        self.numbers = self.conditioner(torch.cat([torch.zeros(1 + dim), direction]))

    def forward(self, context: Tensor | None) -> Transform:
        """The transform of points with ``context`` (B, C)."""
        bias, u, w = self.numbers(context).split([1, self.dim, self.dim], -1)
        return TamePlanar((bias, u, w))


class SylvesterLayer(FlowLayer):
    """Van den Berg et al. (2018): R starts at 0, which makes the identity, S and Q at random."""

    def __init__(self, dim: int, settings: FlowSettings, num_layers: int) -> None:
        super().__init__(dim, settings, num_layers)
        count = min(dim, MAX_REFLECTIONS)
        self.sizes = [count * dim, dim * dim, dim * dim, dim]
        reflections, s = torch.randn(count * dim), torch.randn(dim * dim) / dim**0.5
        self.numbers = self.conditioner(torch.cat([reflections, torch.zeros(dim * dim), s, torch.zeros(dim)]))

    def forward(self, context: Tensor | None) -> Transform:
        """The transform of points with ``context`` (B, C)."""
        reflections, r, s, bias = self.numbers(context).split(self.sizes, -1)
        r, s = (self._triangular(m.unflatten(-1, (self.dim, self.dim))) for m in (r, s))
        return Sylvester(reflections.unflatten(-1, (-1, self.dim)), r, s, bias)

    def _triangular(self, matrix: Tensor) -> Tensor:
        diagonal = softclip(matrix.diagonal(dim1=-2, dim2=-1), LARGEST_DIAGONAL)
        return matrix.triu(1) + torch.diag_embed(diagonal)


class AffineLayer(FlowLayer):
    """RealNVP (Dinh, Sohl-Dickstein & Bengio, 2017); starts at the identity, with auxiliary variables near it."""

    def __init__(self, dim: int, settings: FlowSettings, num_layers: int) -> None:
        super().__init__(dim, settings, num_layers)
        self.split = dim // 2
        # With auxiliary variables the identity is a saddle point: the reverse model gains nothing while v says nothing
        # of z, nor does z by listening to v while the reverse model is deaf. Fits have stayed there for 2,000 steps,
        # also from a tenth of the usual weights. The root keeps all layers together at one distance from the identity.
        spread = num_layers**-0.5 if settings.kind is not None and settings.kind.auxiliary else 0.0
        self.numbers = self.conditioner(torch.zeros(2 * (dim - self.split)), self.split, spread)

    def forward(self, context: Tensor | None) -> Transform:
        """The transform of points with ``context`` (B, C)."""

        def shift_and_log_scale(first: Tensor) -> tuple[Tensor, Tensor]:
            shift, log_scale = self.numbers(first, context).expand(*first.shape[:-1], -1).chunk(2, -1)
            return shift, softclip(log_scale, COUPLING_LOG_SCALE)

        return AffineCoupling(self.split, shift_and_log_scale)


class SplineLayer(FlowLayer):
    """Neural spline flow (Durkan et al., 2019); starts within 0.001 of the identity, Pyro's end slopes being 0.999."""

    def __init__(self, dim: int, settings: FlowSettings, num_layers: int) -> None:
        super().__init__(dim, settings, num_layers)
        self.split, size = dim // 2, spline_size(settings.num_bins)
        self.lower = self.conditioner(torch.zeros(self.split * size)) if self.split else None
        self.upper = self.conditioner(torch.zeros((dim - self.split) * size), self.split)

    def forward(self, context: Tensor | None) -> Transform:
        """The transform of points with ``context`` (B, C)."""
        num_bins = self.settings.num_bins
        size = spline_size(num_bins)

        def upper(first: Tensor) -> Tensor:
            return self.upper(first, context).unflatten(-1, (-1, size))

        lower = next(self.parameters()).new_zeros(0) if self.lower is None else self.lower(context)
        return SplineCoupling(lower.unflatten(-1, (self.split, size)), upper, num_bins, self.settings.bound)


LAYERS: dict[str, type[FlowLayer]] = {c.__name__: c for c in FlowLayer.__subclasses__()}
"""The layers by the names that :data:`amortized_bayes.flows.FLOWS` calls them by."""


class Flow(nn.Module):
    r"""A flow of z in R^D, or, with auxiliary variables, of the pair (v, z) in R^2D.

    An auxiliary flow also has two networks that give factorized Gaussians of v, :math:`q(v_0 \mid z_0)` and
    :math:`r(v_T \mid x, z_T)`, and its couplings move v and z, halves of one vector, in turn. They start at N(0, I).

    Args:
        dim: D.
        settings: which flow.
        observed: size P of what r(v|x, z) reads of x; 0 for a flow of one point, for which x is a constant.

    Raises:
        ValueError: a D below 1.

    Example:
        >>> flow = Flow(2, FlowSettings("realnvp", num_flows=2))
        >>> [type(transform).__name__ for transform in flow(None)]
        ['AffineCoupling', 'Permute', 'AffineCoupling', 'Permute']
        >>> Flow(2, FlowSettings("auxiliary"), observed=5).push(torch.zeros(3, 4))[1].shape
        torch.Size([3])
    """

    flip: Tensor | None

    def __init__(self, dim: int, settings: FlowSettings, observed: int = 0) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"expected a dimension of 1 or more, got {dim}")
        kind = settings.kind
        self.auxiliary = kind is not None and kind.auxiliary
        self.size = 2 * dim if self.auxiliary else dim
        count = 0 if kind is None else kind.layers_per_flow * settings.num_flows
        self.layers = nn.ModuleList(LAYERS[kind.layer](self.size, settings, count) for _ in range(count) if kind)
        # Reversing the order swaps the halves, also where the size is odd, and twice it is the identity.
        flips = kind is not None and kind.has_halves
        self.register_buffer("flip", torch.arange(self.size).flip(0) if flips else None, persistent=False)
        if self.auxiliary:
            start = torch.zeros(2 * dim)
            self.forward_model = Conditioner(dim, settings.hidden, start)
            self.reverse_model = Conditioner(observed + dim, settings.hidden, start)

    def forward(self, context: Tensor | None) -> list[Transform]:
        """Transforms to apply one after the other to (..., size), for points with ``context`` (B, C).

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

    def push(self, state: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move z, or (v, z), ``(..., size)``; the moved value and the log determinant ``(...,)``."""
        log_det = state.new_zeros(state.shape[:-1])
        for transform in self(context):
            moved = transform(state)
            log_det = log_det + transform.log_abs_det_jacobian(state, moved)
            state = moved
        return state, log_det

    def pull(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of :meth:`push`: what has moved to ``state``, and the log determinant of the move."""
        log_det = state.new_zeros(state.shape[:-1])
        for transform in reversed(self(None)):
            before = transform.inv(state)
            log_det = log_det + transform.log_abs_det_jacobian(before, state)
            state = before
        return state, log_det

    def draw_model(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log scale of q(v_0|z_0), ``(..., D)`` each."""
        return _bounded(self.forward_model(z))

    def score_model(self, z: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Location and log scale of r(v_T|x, z_T), ``(..., D)`` each; x is ``(..., P)``."""
        return _bounded(self.reverse_model(x, z))

    @torch.no_grad()
    def start_at(self, loc: Tensor, scale: Tensor) -> None:
        """Start a plain flow where it leaves the Gaussian of ``loc`` and ``scale``, ``(D,)`` each, as it is.

        Networks read z in units of that Gaussian. Auxiliary couplings are put at the identity and q(v|z) = r(v|z) at a
        density that depends on z. The terms of q and r cancel, so that the bound is that of the Gaussian. With v
        independent of z they would too, but at the best Gaussian each gradient would then be zero.
        """
        if self.auxiliary:
            self.forward_model.restart(loc, scale, loc + scale * torch.randn(100, len(loc), dtype=loc.dtype))
            self.reverse_model.load_state_dict(self.forward_model.state_dict())
            loc, scale = torch.cat([torch.zeros_like(loc), loc]), torch.cat([torch.ones_like(scale), scale])
        for layer in self.layers:
            for part in layer.children():
                assert isinstance(part, Conditioner)
                part.restart(loc[: len(loc) // 2], scale[: len(loc) // 2])
            loc, scale = loc.flip(0), scale.flip(0)


def _bounded(numbers: Tensor) -> tuple[Tensor, Tensor]:
    loc, log_scale = numbers.chunk(2, -1)
    return loc, softclip(log_scale, AUXILIARY_LOG_SCALE)
