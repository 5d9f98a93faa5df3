"""How fast are importance-weighted bounds with very many particles?

IWAE with 5,000 particles of 1,000 training points of the VAE of `train` (784-200-200-50, fixed binarized MNIST), in
blocks of bounded memory. Aim on two cores: 35 seconds. The matrix products of the decoder alone, at the rate of this
machine for blocks of the same size, are timed beside it, and so is the plain seam, which runs the encoder for each
particle.

    python benchmarks/iwae.py --json iwae.json
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from _measure import find_device, show_table, surroundings, use_threads, wait_for, wide_console, write_json
from _vae import subject

from amortized_bayes.evaluation.bounds import iwae
from amortized_bayes.evaluation.streaming import ROWS_AT_ONCE
from amortized_bayes.weights import log_weights


@dataclass(frozen=True)
class Options:
    """Time IWAE.

    Args:
        points: Points.
        particles: Number of particles per point.
        threads: Threads of torch; 0 for all cores.
        device: Where to run.
        out: Folder with results, where the trained model is looked for or put.
        json: File for the figures.
        quick: A small model and few particles, to see that everything runs.
    """

    points: int = 1_000
    particles: int = 5_000
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Path = Path("results")
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    quick: bool = False


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.quick:
        options = replace(options, points=4, particles=1_001)
    threads, device = use_threads(options.threads), find_device(options.device)
    about = subject(options.points, device, options.out, quick=options.quick)
    trained, x = about.trained, about.x
    iwae(trained.model, trained.guide, x[:2], num_particles=1_001)  # what is loaded and built once
    start = time.perf_counter()
    bound = iwae(trained.model, trained.guide, x, num_particles=options.particles)
    wait_for(device)
    seconds = time.perf_counter() - start
    evaluations = len(x) * options.particles
    products = evaluations / ROWS_AT_ONCE * _products(trained.model, device)
    some = max(1, 20_000 // len(x))
    start = time.perf_counter()
    with torch.no_grad():
        log_weights(trained.model, trained.guide, x, num_particles=some)
    wait_for(device)
    seam = (time.perf_counter() - start) * options.particles / some
    mean, error = bound.mean()
    figures = {
        "points": len(x),
        "particles": options.particles,
        "seconds": seconds,
        "over_products": seconds / products,
        "over_seam": seconds / seam,
        "mean": mean,
        "standard_error": error,
    }
    rows = [
        (f"seconds, {len(x):,} points, {options.particles:,} particles", f"{seconds:.1f}"),
        ("over the decoder's matrix products alone", f"{figures['over_products']:.2f}"),
        ("over the plain seam, extrapolated from one block", f"{figures['over_seam']:.2f}"),
        ("mean bound (nats)", f"{mean:.2f}±{error:.2f}"),
    ]
    show_table(
        f"IWAE on {about.described['dataset']}, {threads} threads, {device}", ("", "figure"), rows, wide_console()
    )
    found = {**figures, "model": about.described, "environment": surroundings(threads, device)}
    ratios = {f"IWAE / {name}": [figures[f"over_{name}"]] for name in ("products", "seam")}
    write_json(options.json, found, ratios, quick=options.quick)


def _products(model: torch.nn.Module, device: torch.device, repeats: int = 20) -> float:
    """Seconds that the matrix products of one block take, the least over repeats."""
    weights = [p for p in model.parameters() if p.dim() == 2]
    inputs = [torch.randn(ROWS_AT_ONCE, w.shape[1], device=device) for w in weights]
    least = math.inf
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            for row, weight in zip(inputs, weights, strict=True):
                row @ weight.T
            wait_for(device)
            least = min(least, time.perf_counter() - start)
    return least


if __name__ == "__main__":
    main()
