"""The trained model that the benchmarks of estimators share: a VAE 784-200-200-50 on fixed binarized MNIST."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amortized_bayes.commands.reporting import Reporting
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.plans import new_plan
from amortized_bayes.experiments.running import run
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.experiments.trained import Trained
from amortized_bayes.results import RunFolder, environment

SMALL = VAEConfig(dataset="digits", epochs=2, latent_dim=5, hidden=(16,), encoder="small", num_test=50)
"""Only to see that everything runs."""


class Subject(NamedTuple):
    """A trained model, some of its training points, and where it came from."""

    trained: Trained
    x: Tensor
    described: dict[str, object]


def subject(num_points: int, device: torch.device, out: Path, *, quick: bool) -> Subject:
    """Load the model of `train` (preset quick) from ``out``, or train it first, which takes about four minutes."""
    config = SMALL if quick else VAEConfig()
    with tempfile.TemporaryDirectory() as scratch:
        lab = Lab(Path(scratch) if quick else out, device)
        folder = trained_run(config, lab)
        trained, rows = lab.trained(config), folder.rows()
    places = np.sort(np.random.default_rng(0).permutation(len(trained.data.train))[:num_points])
    final = rows[rows["metric"] == "final_elbo"]["value"].iloc[0]
    described = {"dataset": config.dataset, "epochs": config.epochs, "final_elbo": float(final)}
    return Subject(trained, trained.data.train[torch.from_numpy(places).to(device)].float(), described)


def trained_run(config: VAEConfig, lab: Lab) -> RunFolder:
    """The run that trained this model, which is trained first where there is none."""
    folder = lab.find(config)
    if folder is not None:
        return folder
    plan = new_plan("train", config, lab, ["config"], environment(torch.get_num_threads()))
    with Reporting() as reporting:
        return run(plan, reporting)
