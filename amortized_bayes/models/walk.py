"""A Gaussian random walk as one draw, in time and memory linear in its length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Walk"]


class Walk(dist.TorchDistribution):
    """z_n ~ N(z_(n-1) + drift_n, 1) from z_0 = 0, event shape (N,).

    Args:
        drift: (N,), or (..., N).

    Example:
        >>> Walk(torch.zeros(4)).log_prob(torch.zeros(4))
        tensor(-3.6758)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {  # type: ignore[override] -- read of classes too
        "drift": constraints.real_vector
    }
    has_rsample = True

    def __init__(self, drift: Tensor, validate_args: bool | None = None) -> None:
        self.drift = drift
        super().__init__(drift.shape[:-1], drift.shape[-1:], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override] -- torch has an attribute
        """All walks."""
        return constraints.real_vector

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draw walks, ``(*sample_shape, ..., N)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return (self.drift + torch.randn(shape, dtype=self.drift.dtype, device=self.drift.device)).cumsum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of walks, (...)."""
        steps = torch.diff(value, prepend=torch.zeros_like(value[..., :1])) - self.drift
        return dist.Normal(0.0, 1.0).log_prob(steps).sum(-1)

    def expand(self, batch_shape: Iterable[int], _instance: Walk | None = None) -> Walk:
        """The same of another batch shape."""
        return Walk(self.drift.expand((*batch_shape, *self.event_shape)), validate_args=False)
