"""Guides: where the q of each data point comes from, a Gaussian or a flow.

Names are imported when they are first used, so that names of guides (``registry``) need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amortized_bayes.guides.amortized import Amortized
    from amortized_bayes.guides.amortized_bits import AmortizedBits
    from amortized_bayes.guides.autoguides import per_point_guide
    from amortized_bayes.guides.constant import Constant
    from amortized_bayes.guides.document_encoder import DocumentEncoder
    from amortized_bayes.guides.factorized import Factorized
    from amortized_bayes.guides.factorized_bits import FactorizedBits
    from amortized_bayes.guides.flow import FlowGuide
    from amortized_bayes.guides.flow_layers import Flow
    from amortized_bayes.guides.local import LocalGuide
    from amortized_bayes.guides.mean_field import MeanField

__all__ = [
    "Amortized",
    "AmortizedBits",
    "Constant",
    "DocumentEncoder",
    "Factorized",
    "FactorizedBits",
    "Flow",
    "FlowGuide",
    "LocalGuide",
    "MeanField",
    "per_point_guide",
]

_MODULE_OF = {
    "Amortized": "amortized",
    "AmortizedBits": "amortized_bits",
    "Constant": "constant",
    "DocumentEncoder": "document_encoder",
    "Factorized": "factorized",
    "FactorizedBits": "factorized_bits",
    "Flow": "flow_layers",
    "FlowGuide": "flow",
    "LocalGuide": "local",
    "MeanField": "mean_field",
    "per_point_guide": "autoguides",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'amortized_bayes.guides' has no attribute {name!r}")
    return getattr(import_module(f"amortized_bayes.guides.{_MODULE_OF[name]}"), name)
