"""From values per data point to what is said of them: mean ± standard error, differences, whether they say anything.

The points are the sample: an error here says how far the mean would move with other data points. Where all values rest
on the same draws of latents that the points share, it says also how far it would move with other draws. Values are
tensors or arrays, ``(B,)`` in nats; sums are in float64. No torch is loaded for arrays.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ACTIVE_VARIANCE", "PerPoint", "PointValues", "is_vacuous", "mean_over_points", "paired_difference"]

ACTIVE_VARIANCE = 0.01
"""A latent is active if the variance over points of its mean exceeds this (Burda, Grosse & Salakhutdinov, 2016)."""


class PerPoint(Protocol):
    """Values per data point that may rest on common draws, as :class:`PointValues` or an ``Elbo``."""

    @property
    def value(self) -> Tensor | np.ndarray:
        """A value per data point, ``(B,)``."""
        ...

    @property
    def shared_error(self) -> float:
        """Standard error that the mean over points has from what they share."""
        ...


class PointValues(NamedTuple):
    """Values per data point, and the error of their mean that does not fall with the number of points.

    Args:
        value: ``(B,)``, in nats.
        shared_error: standard error of the mean from the draws of shared latents; nan where one draw leaves it
            unknown, 0 where nothing is shared.
    """

    value: Tensor | np.ndarray
    shared_error: float = 0.0


def mean_over_points(values: Tensor | np.ndarray | PerPoint) -> tuple[float, float]:
    """Mean of values per point and its standard error: over points, and over shared draws where values have some.

    The error is nan for a single point, and where that of the shared draws is.

    Example:
        >>> mean_over_points(np.array([1.0, 2.0, 3.0]))[0]
        2.0
        >>> mean_over_points(PointValues(np.array([1.0, 1.0]), shared_error=0.3))
        (1.0, 0.3)
    """
    exact, shared = _in_float64(values)
    if len(exact) < 2:
        return float(exact.mean()), math.nan
    with np.errstate(invalid="ignore"):  # infinite values have no spread
        spread = exact.std(ddof=1) if isinstance(exact, np.ndarray) else exact.std()
    return float(exact.mean()), math.hypot(float(spread) / math.sqrt(len(exact)), shared)


def paired_difference(a: Tensor | np.ndarray | PerPoint, b: Tensor | np.ndarray | PerPoint) -> tuple[float, float]:
    """Mean of ``a - b`` with its standard error over points, the points being paired, the shared draws independent.

    What differs between points and is common to both, far more than most gaps, drops out of the error. Values and the
    same values, of the same draws, differ by 0 without an error.

    Example:
        >>> paired_difference(np.array([1.0, 20.0]), np.array([0.5, 19.5]))
        (0.5, 0.0)
    """
    (first, shared_first), (second, shared_second) = _in_float64(a), _in_float64(b)
    shared = 0.0 if a is b else math.hypot(shared_first, shared_second)
    return mean_over_points(PointValues(first - second, shared))


def is_vacuous(active_units: float | None) -> bool:
    """Whether a fit is dead, having no active latent: its gaps and times then say nothing about inference.

    Example:
        >>> is_vacuous(0), is_vacuous(12), is_vacuous(None)
        (True, False, False)
    """
    return active_units is not None and active_units < 1


def _in_float64(values: Tensor | np.ndarray | PerPoint) -> tuple[Any, float]:
    """Values in float64, and the error that they share."""
    if hasattr(values, "shared_error"):
        rests = cast("PerPoint", values)
        return _in_float64(rests.value)[0], float(rests.shared_error)
    plain = cast("Tensor | np.ndarray", values)
    return (plain.astype(np.float64) if isinstance(plain, np.ndarray) else plain.double()), 0.0
