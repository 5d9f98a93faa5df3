"""From values per data point to what is said of them: mean ± standard error, differences, whether they say anything.

The points are the sample: an error here says how far the mean would move with other data points. Values are tensors or
arrays, ``(B,)`` in nats; sums are in float64. No torch is loaded for arrays.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["is_vacuous", "mean_over_points", "paired_difference"]


def mean_over_points(values: Tensor | np.ndarray) -> tuple[float, float]:
    """Mean of values per point and its standard error over points, nan for a single point.

    Example:
        >>> mean_over_points(np.array([1.0, 2.0, 3.0]))[0]
        2.0
    """
    exact = _in_float64(values)
    if len(exact) < 2:
        return float(exact.mean()), math.nan
    spread = exact.std(ddof=1) if isinstance(exact, np.ndarray) else exact.std()
    return float(exact.mean()), float(spread) / math.sqrt(len(exact))


def paired_difference(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> tuple[float, float]:
    """Mean of ``a - b`` with its standard error over points, the points being paired.

    What differs between points and is common to both, far more than most gaps, drops out of the error.

    Example:
        >>> paired_difference(np.array([1.0, 20.0]), np.array([0.5, 19.5]))
        (0.5, 0.0)
    """
    return mean_over_points(_in_float64(a) - _in_float64(b))


def is_vacuous(active_units: float | None) -> bool:
    """Whether a fit is dead: no latent is active, and its gaps and times say nothing about inference.

    Example:
        >>> is_vacuous(0), is_vacuous(12), is_vacuous(None)
        (True, False, False)
    """
    return active_units is not None and active_units < 1


def _in_float64(values: Tensor | np.ndarray) -> Any:
    return values.astype(np.float64) if isinstance(values, np.ndarray) else values.double()
