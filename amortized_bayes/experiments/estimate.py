"""How long a sweep will take, from a few steps of its own fits."""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import torch

from amortized_bayes.data import load_dataset
from amortized_bayes.experiments.fitting import new_fit
from amortized_bayes.experiments.problem import load_sweep_images
from amortized_bayes.experiments.sweep import Fit, SweepConfig
from amortized_bayes.inference.options import Divergence

__all__ = ["estimate_seconds", "sizes"]

STEPS = 10
EVALUATION = 1.3
"""A fit with its evaluations takes about this times its steps."""
GPU_OPERATION = 4e-6
GPU_STEP = 5e-4
"""Seconds that a GPU takes for an operation of a small step in a CUDA graph, and for the Python around it: an order
of magnitude to plan with, not a measurement."""


def estimate_seconds(config: SweepConfig, device: torch.device, data_dir: Path | None, num_fits: int) -> str:
    """One line that says how long ``num_fits`` fits and the continuations take, here and on the other kind of device.

    Raises:
        ValueError: data that cannot be had.
    """
    units = num_fits + 2 * len(config.dataset) * len(config.seeds)
    step, operations, per_epoch = _time_a_step(config, device, data_dir)
    total = EVALUATION * units * config.epochs * per_epoch
    here, there = ("GPU", "CPU") if device.type == "cuda" else ("CPU", "GPU")
    line = f"time: about {_words(total * step)} on this {here}, from {STEPS} steps with the widest encoder; "
    if device.type == "cuda":
        on_cpu, _, _ = _time_a_step(config, torch.device("cpu"), data_dir)
        return line + f"about {_words(total * on_cpu)} on this machine's {there}, likewise"
    by_arithmetic = operations * GPU_OPERATION + GPU_STEP
    return line + f"about {_words(total * by_arithmetic)} on a {there}, by arithmetic ({operations} operations a step)"


def _time_a_step(config: SweepConfig, device: torch.device, data_dir: Path | None) -> tuple[float, int, int]:
    """Seconds a step, tensor operations a step (0 uncaptured), and steps an epoch."""
    source = load_dataset(config.dataset[0], data_dir=data_dir, seed=config.seeds[0])
    problem = load_sweep_images(config, source, config.seeds[0], device)
    widest = Fit(config.dataset[0], config.seeds[0], "amortized", max(config.widths))
    training = new_fit(config, problem, widest).training
    start = time.perf_counter()
    with suppress(Divergence):  # its fit will record that
        for _ in training.run(STEPS):  # the first run captures
            pass
        start = time.perf_counter()
        for _ in training.run(STEPS):
            pass
    seconds = (time.perf_counter() - start) / STEPS
    captured = training.captured
    return seconds, captured.num_operations if captured else 0, training.batches.per_epoch


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
