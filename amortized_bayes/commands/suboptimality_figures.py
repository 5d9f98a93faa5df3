"""The figures of the experiments of *Inference Suboptimality*, drawn from a run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from amortized_bayes.configuration import load_config
from amortized_bayes.experiments.suboptimality import FrozenDecoderConfig, ToyConfig
from amortized_bayes.experiments.vae import family_name
from amortized_bayes.plotting import Cloud, dataset_label, encoder_gap_figure, model_gap_figure, toy_figure
from amortized_bayes.results import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_frozen_decoder", "draw_set_gaps", "draw_toy"]


def draw_set_gaps(folder: RunFolder, frame: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Gaps of all models."""
    del folder
    if (frame["metric"] == "approximation_gap").any():
        yield "test_set_gaps", model_gap_figure(frame, _names(frame))


def draw_frozen_decoder(folder: RunFolder, frame: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Amortization gaps against the encoder."""
    config = load_config(FrozenDecoderConfig, folder.path / "config.yaml")
    if (frame["metric"] == "amortization_gap").any():
        heading = f"One decoder on {dataset_label(config.dataset)}: what encoders of each family lose"
        yield "frozen_decoder", encoder_gap_figure(frame, _names(frame), config.encoders, heading)


def draw_toy(folder: RunFolder, frame: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Posteriors of the first points."""
    config = load_config(ToyConfig, folder.path / "config.yaml")
    done = folder.done()
    if "posterior" not in done:
        return
    truth = folder.load_arrays("posterior")
    densities = list(zip(truth["axes"], truth["density"], strict=True))
    clouds: list[list[Cloud]] = [[] for _ in densities]
    for family in config.families:
        for way in ("amortized", "best"):
            if not (folder.path / "arrays" / f"{way}_{family}.npz").exists():
                continue
            arrays = folder.load_arrays(f"{way}_{family}")
            for point, own in enumerate(clouds):
                gap = float(truth["log_p"][point] - arrays["elbo"][point])
                own.append(Cloud(f"{family_name(family)}, {way}", np.asarray(arrays["draws"][:, point]), gap))
    if clouds[0]:
        heading = f"Posteriors of a model with two latents on {dataset_label(config.dataset)}"
        yield "toy_posteriors", toy_figure(densities, clouds, heading)


def _names(frame: pd.DataFrame) -> dict[str, str]:
    return {str(family): family_name(str(family)) for family in frame["guide"].unique()}
