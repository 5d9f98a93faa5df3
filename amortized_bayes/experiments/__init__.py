"""Experiments, a file each: what is measured, and which tables and figures show it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["ALIASES", "EXPERIMENTS", "experiment"]

EXPERIMENTS = {
    "sweep": "sweep",
    "tune": "tune",
    "train": "train",
    "gaps": "gaps",
    "qstar": "qstar",
    "model-gaps": "model_gaps",
    "frozen-decoder": "frozen_decoder",
    "decoder-capacity": "decoder_capacity",
    "refit": "refit",
    "toy-posteriors": "toy_posteriors",
    "learning-dynamics": "learning_dynamics",
    "gradient-norms": "gradient_norms",
    "close-the-gap": "close_the_gap",
    "when-and-why": "when_and_why",
    "interpolate": "interpolate",
    "gmm": "gmm",
    "semantic-hashing": "semantic_hashing",
    "celeba": "celeba",
}
"""Commands, and the files of this folder that they run."""
ALIASES = {"test-set-gaps": "model-gaps"}
"""Old names that still work."""


def experiment(name: str) -> ModuleType:
    """The file of an experiment; :mod:`~amortized_bayes.experiments.spec` says what it holds.

    Raises:
        ValueError: no experiment of this name, or a file that lacks something; the file is named.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"expected an experiment ({', '.join(EXPERIMENTS)}), got {name!r}")
    where = EXPERIMENTS[name]
    module = import_module(where if "." in where else f"{__name__}.{where}")
    for part in ("Config", "PRESETS", "jobs", "TABLES", "FIGURES"):
        if not hasattr(module, part):
            raise ValueError(f"{module.__file__}: expected {part} in the file of an experiment, got none")
    if f"run_experiments.py {name}" not in (module.__doc__ or ""):
        raise ValueError(f"{module.__file__}: expected a docstring with the line `python run_experiments.py {name}`")
    if "quick" not in module.PRESETS:
        raise ValueError(f"{module.__file__}: expected a preset named quick, got {', '.join(module.PRESETS)}")
    return module
