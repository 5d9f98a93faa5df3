"""Computations whose numbers stopped being numbers: how often they look, and what they then raise."""

from __future__ import annotations

__all__ = ["CHECK_EVERY", "Divergence"]

CHECK_EVERY = 100
"""Long loops look at their numbers every so many steps, since each look makes a GPU wait, and before they keep them."""


class Divergence(ArithmeticError):
    """At ``step`` a loss stopped being finite or rose far above its start, or a parameter stopped being finite.

    Example:
        >>> from amortized_bayes import Divergence
        >>> Divergence(step=12, value=float("nan")).step
        12
    """

    def __init__(self, step: int, value: float, words: str = "") -> None:
        super().__init__(words or f"loss of {value:.6g} nats per point at step {step}")
        self.step = step
        self.value = value
