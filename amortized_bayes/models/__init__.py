"""Models as Pyro programs: one latent variable a data point inside the plate ``data``."""

from amortized_bayes.models.deep_generative import DeepGenerative, Likelihood
from amortized_bayes.models.linear_gaussian import LinearGaussian

__all__ = ["DeepGenerative", "Likelihood", "LinearGaussian"]
