"""Computations whose numbers stopped being numbers: how often they look, and what they then raise."""

from __future__ import annotations

__all__ = ["CHECK_EVERY", "Divergence"]

CHECK_EVERY = 100
"""Long loops look at their numbers every so many steps, since each look makes a GPU wait, and before they keep them."""


class Divergence(ArithmeticError):
    """A loss stopped being a number, or ran far above its start, at ``step``; or what moves is no number after it.

    Example:
        >>> from amortized_bayes import Divergence
        >>> Divergence(step=12, value=float("nan")).step
        12
    """

    def __init__(self, step: int, value: float, words: str = "") -> None:
        super().__init__(words or f"loss of {value:.6g} nats per point at step {step}")
        self.step = step
        self.value = value
