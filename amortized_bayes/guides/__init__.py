"""Guides: where the q of each data point comes from, a Gaussian or a flow."""

from amortized_bayes.flows import FAMILIES, FlowSettings
from amortized_bayes.guides.amortized import Amortized
from amortized_bayes.guides.constant import Constant
from amortized_bayes.guides.factorized import Factorized
from amortized_bayes.guides.flow import FlowGuide
from amortized_bayes.guides.flow_layers import Flow
from amortized_bayes.guides.local import LocalGuide
from amortized_bayes.guides.mean_field import MeanField

__all__ = [
    "FAMILIES",
    "Amortized",
    "Constant",
    "Factorized",
    "Flow",
    "FlowGuide",
    "FlowSettings",
    "LocalGuide",
    "MeanField",
]
