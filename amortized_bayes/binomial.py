"""The binomial distribution on the grey scale: pixels that are counts out of so many levels, divided by them."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import binary_cross_entropy_with_logits

__all__ = ["BinomialProportion"]


class _Proportions(constraints.Constraint):
    """Multiples of ``1 / levels`` in [0, 1], up to rounding."""

    is_discrete = True

    def __init__(self, levels: int) -> None:
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        counts = value * self.levels
        # single precision leaves a multiple off by levels * 1e-7
        return (value >= 0) & (value <= 1) & ((counts - counts.round()).abs() < 1e-3)


class BinomialProportion(dist.TorchDistribution):
    """x = c / n with c ~ Binomial(n, sigmoid(logits)), each entry on its own: values are in [0, 1], like grey pixels.

    ``log_prob`` is that of the count c, a probability and no density. It sums over c to 1.

    Args:
        levels: n.
        logits: logits of the probability of one count, any shape.

    Raises:
        ValueError: fewer than 1 level; with validation, logits that are NaN, or values that are no multiples of 1 / n.

    Example:
        >>> import torch
        >>> pixels = BinomialProportion(2, torch.zeros(3))
        >>> pixels.log_prob(torch.tensor([0.0, 0.5, 1.0])).exp()
        tensor([0.2500, 0.5000, 0.2500])
        >>> pixels.mean
        tensor([0.5000, 0.5000, 0.5000])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {  # type: ignore[override] -- read of classes too
        "logits": constraints.real
    }

    def __init__(self, levels: int, logits: Tensor, validate_args: bool | None = None) -> None:
        if levels < 1:
            raise ValueError(f"expected 1 level or more, got {levels}")
        self.levels, self.logits = levels, logits
        super().__init__(logits.shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override] -- torch has an attribute
        """Multiples of ``1 / levels`` in [0, 1]."""
        return _Proportions(self.levels)

    @property
    def mean(self) -> Tensor:
        """Probability of one count: the expected grey value."""
        return self.logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        """That of a count, divided by n²: p (1 - p) / n."""
        return self.mean * (1 - self.mean) / self.levels

    def expand(self, batch_shape: Any, _instance: Any = None) -> BinomialProportion:
        """The same for more entries, as for every distribution of Pyro."""
        found = BinomialProportion(self.levels, self.logits.expand(batch_shape), validate_args=False)
        found._validate_args = self._validate_args
        return found

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008 - an empty tuple
        """Draws, ``sample_shape + batch_shape``; they have no gradient."""
        with torch.no_grad():
            chance = self.mean.expand(self._extended_shape(sample_shape))
            return torch.binomial(torch.full_like(chance, self.levels), chance) / self.levels

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of the counts ``levels * value``, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        logits, grey = broadcast_all(self.logits, value)
        one_count = -binary_cross_entropy_with_logits(logits, grey, reduction="none")  # no cancellation near 0 and 1
        try:
            return self.levels * one_count + self._log_coefficients()[(self.levels * value).round().long()]
        except IndexError:
            low, high = value.min().item(), value.max().item()
            raise ValueError(
                f"expected grey values in [0, 1], counts divided by their {self.levels} levels, got values "
                f"from {low:g} to {high:g}"
            ) from None

    def _log_coefficients(self) -> Tensor:
        """Log binomial coefficients of all counts, ``(n + 1,)``, looked up: fewer log gammas than one per pixel."""
        count = torch.arange(self.levels + 1, dtype=torch.float64, device=self.logits.device)
        log_factorial = torch.lgamma(count + 1)  # in double precision: in single, log 255! is off by 1e-4
        return (log_factorial[-1] - log_factorial - log_factorial.flip(0)).to(self.logits.dtype)
