"""How long a sweep will take, from a few steps of its own fits."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import torch

from amortized_bayes.experiments.fitting import new_fit
from amortized_bayes.experiments.problem import load_problem
from amortized_bayes.experiments.sweep import Fit, SweepConfig

__all__ = ["estimate_seconds", "sizes"]

STEPS = 10
EVALUATION = 1.3
"""A fit with its evaluations takes about this times its steps."""


def estimate_seconds(config: SweepConfig, device: torch.device, data_dir: Path | None, num_fits: int) -> str:
    """One line that says how long ``num_fits`` fits and the continuations will take, here and on the other device.

    Raises:
        ValueError: data that cannot be had.
    """
    devices = [device]
    if device.type == "cuda":
        devices.append(torch.device("cpu"))
    lines = []
    for where in devices:
        problem = load_problem(config, config.dataset[0], config.seeds[0], data_dir, where)
        widest = Fit(config.dataset[0], config.seeds[0], "amortized", max(config.widths))
        training = new_fit(config, problem, widest).training
        num_steps = config.epochs * training.batches.per_epoch
        training.prepare(STEPS)
        for _ in training.run(STEPS):
            pass
        start = time.perf_counter()
        for _ in training.run(STEPS):
            pass
        step = (time.perf_counter() - start) / STEPS
        units = num_fits + 2 * len(config.dataset) * len(config.seeds)
        kind = "GPU" if where.type == "cuda" else "CPU"
        lines.append(f"about {_words(units * num_steps * step * EVALUATION)} on this {kind}")
    if device.type == "cpu":
        lines.append("a GPU has not been found; see docs/speed.md for how much one helps")
    return f"time: {'; '.join(lines)} (from {STEPS} steps with the widest encoder)"


def sizes(config: SweepConfig, observed: int, guide: str, k: int | None, num_data: int) -> tuple[int, int]:
    """Parameters that give local factors for ``num_data`` points, and bytes that fitting them holds, by arithmetic.

    Bytes are four floats a parameter (itself, two moments, an average) and a count a row.
    """
    outputs = 2 * config.latent_dim
    if guide == "constant":
        return outputs, 16 * outputs
    if guide == "amortized":
        layers = [observed, *[k or 1] * config.depth, outputs]
        parameters = sum(i * o + o for i, o in pairwise(layers))
        return parameters, 16 * parameters
    return num_data * outputs, num_data * (16 * outputs + 4)


def _words(seconds: float) -> str:
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
