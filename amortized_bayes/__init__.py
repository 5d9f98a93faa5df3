"""What does it cost to share the inference? Amortized against factorized and constant VI, for any Pyro model.

Names are imported when they are first used, so that ``import amortized_bayes`` needs no torch (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amortized_bayes.capture import CaptureError, capture
    from amortized_bayes.data import load_dataset
    from amortized_bayes.diagnosis import Comparison, compare
    from amortized_bayes.evaluation.bounds import elbo, iwae, log_predictive
    from amortized_bayes.evaluation.errors import active_units, mean_prediction, mean_squared_error
    from amortized_bayes.guides import Amortized, Constant, Factorized, LocalGuide, MeanField
    from amortized_bayes.inference.svi import Divergence, FitOptions, Training, fit
    from amortized_bayes.models import DeepGenerative, LinearGaussian
    from amortized_bayes.sites import latent_sites
    from amortized_bayes.weights import LogWeights, log_weights

_WHERE = {
    "capture": ("CaptureError", "capture"),
    "data": ("load_dataset",),
    "diagnosis": ("Comparison", "compare"),
    "evaluation.bounds": ("elbo", "iwae", "log_predictive"),
    "evaluation.errors": ("active_units", "mean_prediction", "mean_squared_error"),
    "guides": ("Amortized", "Constant", "Factorized", "LocalGuide", "MeanField"),
    "inference.svi": ("Divergence", "FitOptions", "Training", "fit"),
    "models": ("DeepGenerative", "LinearGaussian"),
    "sites": ("latent_sites",),
    "weights": ("LogWeights", "log_weights"),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "Amortized",
    "CaptureError",
    "Comparison",
    "Constant",
    "DeepGenerative",
    "Divergence",
    "Factorized",
    "FitOptions",
    "LinearGaussian",
    "LocalGuide",
    "LogWeights",
    "MeanField",
    "Training",
    "active_units",
    "capture",
    "compare",
    "elbo",
    "fit",
    "iwae",
    "latent_sites",
    "load_dataset",
    "log_predictive",
    "log_weights",
    "mean_prediction",
    "mean_squared_error",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'amortized_bayes' has no attribute {name!r}")
    value = getattr(import_module(f"amortized_bayes.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # a submodule of the same name, such as capture, must not hide the function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
