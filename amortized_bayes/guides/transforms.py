r"""Transforms beside those of Pyro: bounded, right, or without indexing by a mask, where Pyro's own is not.

- :class:`TamePlanar`, Pyro's planar transform with an offset that stays bounded whatever its parameters are;
- :class:`Sylvester`, :math:`y = z + Q R \tanh(S Q^T z + b)`, whose Pyro namesake multiplies row vectors by the matrices
  meant for columns, so that its triangular formula for the determinant does not hold (off by tenths of a nat at
  parameters of order 1);
- :class:`BoxSpline`, Pyro's rational spline free of shapes that depend on data, so that a step can be captured;
- :class:`SplineCoupling`, which puts two of them together.

All are elements of a flow, z -> y on (..., D), and log determinants are in nats. A transform is made anew for each
batch and keeps one pair (z, y), so that a draw is scored without being inverted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.distributions.transforms.spline import ConditionedSpline
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.overrides import TorchFunctionMode

__all__ = [
    "LARGEST_DIAGONAL",
    "BoxSpline",
    "SplineCoupling",
    "Sylvester",
    "TamePlanar",
    "reflect_all",
    "softclip",
    "spline_parameters",
    "spline_size",
]

LARGEST_DIAGONAL = 0.99
"""Bound on the diagonals of Sylvester's triangular matrices: no direction is squeezed below 1 - 0.99^2, 0.02."""
UNIT_SOFTPLUS = 0.5413248546129181
"""softplus(0.5413...) = 1."""


def softclip(values: Tensor, bound: float) -> Tensor:
    """Squeeze values smoothly into (-bound, bound); near 0 they stay as they are.

    A hard clip has no gradient outside, so that what has left its range would never come back.

    Example:
        >>> softclip(torch.tensor([0.0, 0.1, 1e6]), 5.0)
        tensor([0.0000, 0.1000, 5.0000])
    """
    return bound * torch.tanh(values / bound)


class TamePlanar(ConditionedPlanar):
    r"""Planar transform :math:`y = z + \hat u \tanh(w^T z + b)` (Rezende & Mohamed, 2015).

    It is invertible where :math:`w^T \hat u > -1`. The usual offset along w that sees to this grows without bound as w
    goes to 0. Here the offset vanishes with :math:`w^T u`, so that :math:`|\hat u| \le 2 |u|`, and u = 0 is the
    identity. There is no closed inverse: only its own draws can be scored.

    Args:
        params: b (..., 1), u (..., D) and w (..., D), for each point or for all.

    Example:
        >>> b, u, w = torch.zeros(1), torch.zeros(2), torch.ones(2)
        >>> TamePlanar((b, u, w))(torch.ones(3, 2)).tolist()
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """

    def u_hat(self, u: Tensor, w: Tensor) -> Tensor:
        """Change u along w such that 1 + w^T u_hat, the least value of the determinant, is above 0.01."""
        along = (u * w).sum(-1, keepdim=True)
        wanted = F.softplus(softclip(along, 5.0) + UNIT_SOFTPLUS) - 1  # between 0 and `along`; softplus(-4.46) = 0.0115
        square = w.square().sum(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
        return u + (wanted - along) * w / square


class _ScoredTransform(Transform, ABC):
    """A transform of vectors that computes value and log determinant in one pass, and keeps both for its last input."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)
        self._log_det: Tensor | None = None

    @abstractmethod
    def move(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value (..., D) and log determinant (...,)."""

    def back(self, y: Tensor) -> Tensor:
        """The z of a value (..., D)."""
        raise NotImplementedError(f"{type(self).__name__} has no closed inverse: only its own draws can be scored")

    def _call(self, x: Tensor) -> Tensor:
        y, self._log_det = self.move(x)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        self._log_det = None  # that of an earlier pair, which this one takes the place of
        return self.back(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log determinant, (...,)."""
        x_old, y_old = self._cached_x_y
        if self._log_det is None or x is not x_old or y is not y_old:
            return self.move(x)[1]
        return self._log_det


class Sylvester(_ScoredTransform):
    r"""Sylvester transform :math:`y = z + Q R \tanh(S Q^T z + b)` (van den Berg et al., 2018), z a column.

    Q is a product of Householder reflections (:func:`reflect_all`); R and S are upper triangular, so that with
    :math:`a = S Q^T z + b`

    .. math:: \det = \prod_i (1 + \tanh'(a_i) R_{ii} S_{ii}).

    There is no closed inverse: only its own draws can be scored.

    Args:
        reflections: normals of the reflections, (..., H, D), not normalized.
        r: R, (..., D, D), diagonal within (-1, 1).
        s: S, likewise.
        bias: b, (..., D).

    Example:
        >>> flow = Sylvester(torch.ones(1, 2), torch.zeros(2, 2), torch.eye(2), torch.zeros(2))
        >>> flow(torch.ones(3, 2)).tolist()
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(self, reflections: Tensor, r: Tensor, s: Tensor, bias: Tensor) -> None:
        super().__init__()
        q = reflect_all(reflections)
        self.q_r, self.s_q, self.bias = q @ r, s @ q.mT, bias
        self.diagonals = r.diagonal(dim1=-2, dim2=-1) * s.diagonal(dim1=-2, dim2=-1)

    def move(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value (..., D) and log determinant (...,)."""
        bent = torch.tanh(_times(self.s_q, x) + self.bias)
        return x + _times(self.q_r, bent), torch.log1p((1 - bent.square()) * self.diagonals).sum(-1)


def reflect_all(normals: Tensor) -> Tensor:
    r"""The orthogonal matrix :math:`H_1 \cdots H_k`, (..., D, D), of reflections along ``normals``, (..., k, D).

    With the unit normals as columns of V it is :math:`I - V T V^T`, where :math:`T^{-1}` is ½ on the diagonal and
    :math:`V^T V` above it (Joffrain et al., *Accumulating Householder transformations, revisited*, 2006): a few
    operations whatever k is, where one reflection after the other takes a dozen for each.

    Example:
        >>> reflect_all(torch.tensor([[1.0, 0.0]])).tolist()
        [[-1.0, 0.0], [0.0, 1.0]]
    """
    rows = F.normalize(normals, dim=-1)  # V^T
    count, dim = rows.shape[-2:]
    inverse = (rows @ rows.mT).triu(1) + 0.5 * torch.eye(count, dtype=rows.dtype, device=rows.device)
    turned = torch.linalg.solve_triangular(inverse, rows, upper=True)
    return torch.eye(dim, dtype=rows.dtype, device=rows.device) - rows.mT @ turned


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix (..., D, D) times column (..., D)."""
    return vector @ matrix.T if matrix.dim() == 2 else (matrix @ vector.unsqueeze(-1)).squeeze(-1)


class BoxSpline(ConditionedSpline):
    """Pyro's rational quadratic spline on [-bound, bound], the identity outside (Durkan et al., 2019).

    Pyro copies what lies outside by a mask, whose number of entries depends on the data, and such a step cannot be
    captured. Here the spline gets clamped values, and those outside are put back by ``torch.where``.

    Args:
        params: bin widths and heights (..., D, K) and slopes at the inner knots (..., D, K - 1), see
            :func:`spline_parameters`.
        bound: half the side of the box.

    Example:
        >>> flow = BoxSpline(spline_parameters(torch.zeros(2, spline_size(4)), 4), 3.0)
        >>> flow(torch.tensor([[0.0, 7.0]])).tolist()
        [[0.0, 7.0]]
    """

    def __init__(self, params: tuple[Tensor, Tensor, Tensor], bound: float) -> None:
        super().__init__((*params, None), bound=bound, order="quadratic")

    def spline_op(self, x: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Values and log slopes, (..., D) each, of the spline, or of its inverse with ``inverse=True``."""
        inside = (x >= -self.bound) & (x <= self.bound)
        with _NothingOutside():
            y, log_slope = super().spline_op(x.clamp(-self.bound, self.bound), **kwargs)
        return torch.where(inside, y, x), torch.where(inside, log_slope, torch.zeros_like(log_slope))


class _NothingOutside(TorchFunctionMode):
    """Leaves out all assignments in Pyro's spline, which change nothing for clamped values but by rounding.

    They copy what lies outside, and set the end knots to what they are already.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__setitem__:
            return None
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return args[0]  # the right side of such an assignment
        return func(*args, **(kwargs or {}))


def spline_size(num_bins: int) -> int:
    """Free numbers of a spline of K bins in one dimension: K widths, K heights, K - 1 slopes.

    Example:
        >>> spline_size(8)
        23
    """
    return 3 * num_bins - 1


def spline_parameters(free: Tensor, num_bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Widths, heights and slopes of splines from free numbers (..., D, 3 K - 1).

    Zeros give equal bins and slopes of 1: the identity, but for the ends, where Pyro's slope is 0.999.

    Example:
        >>> [tuple(p.shape) for p in spline_parameters(torch.zeros(5, 2, spline_size(8)), 8)]
        [(5, 2, 8), (5, 2, 8), (5, 2, 7)]
    """
    widths, heights, slopes = free.split([num_bins, num_bins, num_bins - 1], -1)
    # A network that reads values far from its training data gives far outputs: slopes end at 20.
    slopes = F.softplus(softclip(slopes, 20.0) + UNIT_SOFTPLUS)
    return widths.softmax(-1), heights.softmax(-1), slopes


class SplineCoupling(_ScoredTransform):
    """Neural spline coupling (Durkan et al., 2019): a spline for each half, the second's made from the first half.

    Args:
        lower: free numbers of the first half's splines, (..., split, 3 K - 1), see :func:`spline_parameters`.
        upper: gives those of the second half, (..., D - split, 3 K - 1), from the first half (..., split).
        num_bins: K.
        bound: half the side of the box.

    Example:
        >>> free = torch.zeros(1, spline_size(4))
        >>> SplineCoupling(free, lambda first: free, 4, 3.0)(torch.zeros(1, 2)).tolist()
        [[0.0, 0.0]]
    """

    def __init__(self, lower: Tensor, upper: Callable[[Tensor], Tensor], num_bins: int, bound: float) -> None:
        super().__init__()
        self.lower, self.upper, self.num_bins, self.bound = lower, upper, num_bins, bound
        self.split = lower.shape[-2]

    def move(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value (..., D) and log determinant (...,)."""
        upper = self.upper(x[..., : self.split])
        batch = torch.broadcast_shapes(self.lower.shape[:-2], upper.shape[:-2])
        parts = [part.expand(*batch, *part.shape[-2:]) for part in (self.lower, upper)]
        y, log_slope = self._spline(torch.cat(parts, -2)).spline_op(x)  # one spline for both halves is twice as quick
        return y, log_slope.sum(-1)

    def back(self, y: Tensor) -> Tensor:
        """The z of a value (..., D)."""
        first = self._spline(self.lower).spline_op(y[..., : self.split], inverse=True)[0]
        second = self._spline(self.upper(first)).spline_op(y[..., self.split :], inverse=True)[0]
        return torch.cat([first, second], -1)

    def _spline(self, free: Tensor) -> BoxSpline:
        return BoxSpline(spline_parameters(free, self.num_bins), self.bound)
