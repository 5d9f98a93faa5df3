"""Whether points are inferred independently of each other, so that a network of its own data can do it."""

from amortized_bayes.amortizability.verdict import Amortizability, can_amortize

__all__ = ["Amortizability", "can_amortize"]
