"""How many nats do a few per-point steps win back at test time, and how fast?

`refine` on 1,000 test points of the VAE of `train` (784-200-200-50, fixed binarized MNIST), from the encoder's answer:
natural gradients and Adam, beside q*, the search that goes on until it has converged (`optimize_local`). Seconds are of
all points together, without compilation and scoring, which those of q* contain.

    python benchmarks/refine.py --json refine.json
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from _measure import find_device, show_table, surroundings, use_threads, wait_for, wide_console, write_json
from _vae import subject

from amortized_bayes.inference.optimize import optimize_local
from amortized_bayes.inference.refine import RefineSettings, refine
from amortized_bayes.inference.settings import LocalSettings
from amortized_bayes.per_point import mean_over_points

RATES = {"natural": 0.7, "adam": 0.1}
"""Of the first step. Adam's first step has the length of its rate in each coordinate, whatever the gradient."""


@dataclass(frozen=True)
class Options:
    """Measure what refinement wins.

    Args:
        points: Test points.
        threads: Threads of torch; 0 for all cores.
        device: Where to run.
        out: Folder with results, where the trained model is looked for or put.
        json: File for the figures.
        quick: A small model and few points, to see that everything runs.
    """

    points: int = 1_000
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Path = Path("results")
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    quick: bool = False


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.quick:
        options = replace(options, points=6)
    threads, device = use_threads(options.threads), find_device(options.device)
    about = subject(options.points, device, options.out, quick=options.quick)
    model, guide = about.trained.model, about.trained.guide
    x = about.trained.data.test[: options.points].float()
    start = time.perf_counter()
    best = optimize_local(model, guide, x, settings=LocalSettings(max_steps=20) if options.quick else None)
    wait_for(device)
    best_seconds = time.perf_counter() - start
    rows, figures = [], {"points": len(x), "best_seconds": best_seconds}
    for optimizer in ("natural", "adam"):
        found = refine(model, guide, x, settings=RefineSettings(optimizer=optimizer, learning_rate=RATES[optimizer]))
        gap = mean_over_points(best.elbo_star.double() - found.elbo[0])[0]
        for number, steps in enumerate(found.steps):
            gain, error = mean_over_points(found.gain[number])
            seconds = float(found.seconds[number])
            rows.append((optimizer, f"{steps}", f"{gain:.3f}±{error:.3f}", f"{gain / gap:.1%}", f"{seconds:.2f}"))
            figures |= {
                f"{optimizer}_{steps}_{key}": v for key, v in dict(gain=gain, error=error, seconds=seconds).items()
            }
        figures["gap"] = gap  # that of q*, the same for both
        rows.append(("q*", "", f"{gap:.3f}", "100%", f"{best_seconds:.2f}"))
    headings = ("steps of", "number", "nats won", "of what q* wins", "seconds")
    show_table(f"refinement of {len(x):,} test points, {threads} threads, {device}", headings, rows, wide_console())
    write_json(
        options.json,
        {**figures, "model": about.described, "environment": surroundings(threads, device)},
        quick=options.quick,
    )


if __name__ == "__main__":
    main()
