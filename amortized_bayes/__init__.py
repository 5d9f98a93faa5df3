"""What does it cost to share the inference? Amortized against factorized and constant VI, for any Pyro model.

Names are imported when they are first used, so that ``import amortized_bayes`` needs no torch (PEP 562).
"""

# ruff: noqa: F401 (the imports for type checkers; ``__all__`` is made from ``_WHERE``)

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amortized_bayes.amortizability import Amortizability, can_amortize
    from amortized_bayes.comparing.any_model import ComparisonSettings, compare
    from amortized_bayes.comparing.comparison import Comparison
    from amortized_bayes.data import load_dataset
    from amortized_bayes.diagnosis import Diagnosis, DiagnosisSettings, diagnose
    from amortized_bayes.divergence import Divergence
    from amortized_bayes.evaluation.ais import ais
    from amortized_bayes.evaluation.bdmc import bdmc
    from amortized_bayes.evaluation.bounds import elbo, iwae, log_predictive
    from amortized_bayes.evaluation.errors import active_units, mean_prediction, mean_squared_error
    from amortized_bayes.evaluation.gaps import gaps
    from amortized_bayes.evaluation.psis import psis_khat
    from amortized_bayes.evaluation.settings import AISSettings, CertificateSettings
    from amortized_bayes.flows import FlowSettings
    from amortized_bayes.guides import (
        Amortized,
        Constant,
        Factorized,
        FlowGuide,
        LocalGuide,
        MeanField,
        per_point_guide,
    )
    from amortized_bayes.inference.bernoulli_elbo import BernoulliELBO
    from amortized_bayes.inference.fit import FitResult, fit, fit_steps
    from amortized_bayes.inference.flow_search import optimize_flow
    from amortized_bayes.inference.optimize import optimize_local
    from amortized_bayes.inference.options import FitOptions
    from amortized_bayes.inference.refine import RefineSettings, refine
    from amortized_bayes.inference.semi_amortized import SemiAmortized
    from amortized_bayes.inference.settings import FlowSearchSettings, LocalSettings
    from amortized_bayes.inference.svi import Training
    from amortized_bayes.joint import draw_shared, log_joint
    from amortized_bayes.models import DeepGenerative, LinearGaussian
    from amortized_bayes.plain_vae import VAE, vae
    from amortized_bayes.sites import latent_sites
    from amortized_bayes.weights import LogWeights, log_weights

__version__ = "0.1.0"
_WHERE = {
    "amortizability": ("Amortizability", "can_amortize"),
    "comparing.any_model": ("ComparisonSettings", "compare"),
    "comparing.comparison": ("Comparison",),
    "data": ("load_dataset",),
    "diagnosis": ("Diagnosis", "DiagnosisSettings", "diagnose"),
    "divergence": ("Divergence",),
    "evaluation.ais": ("ais",),
    "evaluation.bdmc": ("bdmc",),
    "evaluation.bounds": ("elbo", "iwae", "log_predictive"),
    "evaluation.errors": ("active_units", "mean_prediction", "mean_squared_error"),
    "evaluation.gaps": ("gaps",),
    "evaluation.psis": ("psis_khat",),
    "evaluation.settings": ("AISSettings", "CertificateSettings"),
    "flows": ("FlowSettings",),
    "guides": (
        "Amortized",
        "Constant",
        "Factorized",
        "FlowGuide",
        "LocalGuide",
        "MeanField",
        "per_point_guide",
    ),
    "inference.bernoulli_elbo": ("BernoulliELBO",),
    "inference.fit": ("FitResult", "fit", "fit_steps"),
    "inference.flow_search": ("optimize_flow",),
    "inference.optimize": ("optimize_local",),
    "inference.options": ("FitOptions",),
    "inference.refine": ("RefineSettings", "refine"),
    "inference.semi_amortized": ("SemiAmortized",),
    "inference.settings": ("FlowSearchSettings", "LocalSettings"),
    "inference.svi": ("Training",),
    "joint": ("draw_shared", "log_joint"),
    "models": ("DeepGenerative", "LinearGaussian"),
    "plain_vae": ("VAE", "vae"),
    "sites": ("latent_sites",),
    "weights": ("LogWeights", "log_weights"),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'amortized_bayes' has no attribute {name!r}")
    value = getattr(import_module(f"amortized_bayes.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
