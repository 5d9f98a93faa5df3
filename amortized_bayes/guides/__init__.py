"""Guides: where the parameters of each data point's Gaussian come from."""

from amortized_bayes.guides.amortized import Amortized
from amortized_bayes.guides.constant import Constant
from amortized_bayes.guides.factorized import Factorized
from amortized_bayes.guides.local import LocalGuide
from amortized_bayes.guides.mean_field import MeanField

__all__ = ["Amortized", "Constant", "Factorized", "LocalGuide", "MeanField"]
