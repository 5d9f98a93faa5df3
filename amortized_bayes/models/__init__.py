"""Models as Pyro programs: one latent variable per data point inside the plate ``data``, or a series of them."""

from amortized_bayes.models.deep_generative import DeepGenerative, DeepGenerativeBits
from amortized_bayes.models.gaussian_joint import Answer, GaussianJoint, gaussian_joint
from amortized_bayes.models.linear_gaussian import LinearGaussian
from amortized_bayes.models.semantic_hashing import SemanticHashing
from amortized_bayes.models.series import (
    SERIES,
    GaussianProcess,
    Linear,
    Nonlinear,
    RandomWalk,
    Saw,
    SeriesModel,
    TwoLevels,
)
from amortized_bayes.models.two_bit_mixture import TwoBitMixture

__all__ = [
    "SERIES",
    "Answer",
    "DeepGenerative",
    "DeepGenerativeBits",
    "GaussianJoint",
    "GaussianProcess",
    "Linear",
    "LinearGaussian",
    "Nonlinear",
    "RandomWalk",
    "Saw",
    "SemanticHashing",
    "SeriesModel",
    "TwoBitMixture",
    "TwoLevels",
    "gaussian_joint",
]
