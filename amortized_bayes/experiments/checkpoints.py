"""Experiments on the model of one run of ``train``: which run is meant, and what it was trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.results import RunFolder, find_run

if TYPE_CHECKING:
    from amortized_bayes.experiments.lab import Lab

__all__ = ["CheckpointName", "checkpoint_config", "datasets", "prepare"]

CheckpointName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
"""The run of ``train`` that is meant, on the command line."""


def prepare(config: Any, lab: Lab) -> Any:
    """The configuration with the run that is meant, relative to the folder of results where it lies there.

    Raises:
        ValueError: no such run, one that is not finished or failed, or one of another kind.
    """
    path = find_run(lab.out, config.checkpoint, "train", ("finished",)).resolve()
    try:
        lab.checkpoint(path)  # refuses what cannot be loaded
    except ArithmeticError as error:
        raise ValueError(f"expected a trained model: {error}") from error
    out = lab.out.resolve()
    return replace(config, checkpoint=str(path.relative_to(out) if path.is_relative_to(out) else path))


def checkpoint_config(checkpoint: str, lab: Lab) -> VAEConfig:
    """The configuration of a run of ``train``, by its path, which may be relative to the folder of results."""
    return RunFolder.open(lab.run_named(checkpoint)).config(VAEConfig)


def datasets(config: Any, lab: Lab) -> tuple[str, ...]:
    """The data set of the model."""
    return (checkpoint_config(config.checkpoint, lab).dataset,)
