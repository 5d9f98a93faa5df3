"""Models as Pyro programs: one latent variable per data point inside the plate ``data``."""

from amortized_bayes.models.deep_generative import DeepGenerative
from amortized_bayes.models.linear_gaussian import LinearGaussian

__all__ = ["DeepGenerative", "LinearGaussian"]
