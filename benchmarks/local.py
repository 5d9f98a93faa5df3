"""How fast are q* and the best flow of each point, and how far is q* from a search of twenty times as many steps?

`optimize_local` with its default settings on 1,000 training points of the VAE of `train` (784-200-200-50, fixed
binarized MNIST), started from the encoder. Aim on two cores: 60 seconds, at most 5,000 decoder evaluations per point,
mean L[q*] within 0.05 nat of the long search, which runs on some of the points and is compared point by point.
`optimize_flow` then goes on from there with real-NVP flows, for which the aim is 120 seconds.

    python benchmarks/local.py --json local.json
    python benchmarks/local.py --only-flows --threads 2
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from _measure import find_device, show_table, surroundings, use_threads, wait_for, wide_console, write_json
from _vae import subject
from torch import Tensor

from amortized_bayes.flows import FlowSettings
from amortized_bayes.inference.flow_search import FlowOptimum, FlowSearchSettings, optimize_flow
from amortized_bayes.inference.optimize import LocalSettings, optimize_local
from amortized_bayes.joint import Gaussian
from amortized_bayes.types import Model


@dataclass(frozen=True)
class Options:
    """Time q* and the best flows, and measure what q* leaves.

    Args:
        points: Points to search for.
        long_points: The first so many of them are searched for again, with twenty times the steps.
        flow_points: The first so many of them get their best flow.
        flow_steps: Steps of each flow's search.
        flow_draws: Draws per step.
        threads: Threads of torch; 0 for all cores.
        device: Where to run.
        out: Folder with results, where the trained model is looked for or put.
        json: File for the figures.
        only_flows: The flows alone, from near the encoder's q: each point takes as many steps from there as from q*.
        quick: A small model and few steps, to see that everything runs.
    """

    points: int = 1_000
    long_points: int = 100
    flow_points: int = 1_000
    flow_steps: int = FlowSearchSettings().num_steps
    flow_draws: int = FlowSearchSettings().num_samples
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Path = Path("results")
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    only_flows: bool = False
    quick: bool = False


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.quick:
        options = replace(options, points=6, long_points=2, flow_points=3)
    threads, device = use_threads(options.threads), find_device(options.device)
    about = subject(options.points, device, options.out, quick=options.quick)
    trained, x = about.trained, about.x
    if options.only_flows:
        few, near = x[: options.flow_points], LocalSettings(max_steps=20, max_rounds=1)
        begin = optimize_local(trained.model, trained.guide, few, settings=near)
        found, *seconds = best_flows(options, trained.model, begin.q, few)
        ends = f"mean ELBO {found.elbo_star.mean():.4f}±{found.standard_error.square().mean().sqrt():.4f} at a point"
        print(f"{len(found.gain):,} flows: {seconds[0]:.1f} s, {seconds[1]:.1f} s of processors; {ends}")
        return
    settings = LocalSettings(max_steps=20) if options.quick else LocalSettings()
    start = time.perf_counter()
    found = optimize_local(trained.model, trained.guide, x, settings=settings)
    wait_for(device)
    seconds = time.perf_counter() - start
    long = replace(settings, max_steps=20 * settings.max_steps, max_rounds=1, tolerance=0.0, num_score=5_000)
    start = time.perf_counter()
    few = x[: options.long_points]
    best = optimize_local(trained.model, trained.guide, few, settings=long, seed=1)
    long_seconds = time.perf_counter() - start
    behind = (best.elbo_star - found.elbo_star[: len(few)]).double()
    flow, flow_seconds, processor_seconds = best_flows(options, trained.model, found.q, x)
    gain = flow.gain.double()
    figures = {
        "points": len(x),
        "seconds": seconds,
        "evaluations_mean": found.evaluations.double().mean().item(),
        "evaluations_most": int(found.evaluations.max()),
        "elbo_star_mean": found.elbo_star.mean().item(),
        "residual_mean": found.residual.mean().item(),
        "long_points": len(few),
        "long_seconds": long_seconds,
        "behind_mean": behind.mean().item(),
        "behind_error": (behind.std() / math.sqrt(len(behind))).item(),
        "flow_points": len(gain),
        "flow_seconds": flow_seconds,
        "flow_processor_seconds": processor_seconds,
        "flow_gain_mean": gain.mean().item(),
        "flow_gain_error": (gain.std() / math.sqrt(len(gain))).item(),
    }
    rows = [
        (f"seconds for {len(x):,} points", f"{seconds:.1f}"),
        (
            "decoder evaluations per point, mean and most",
            f"{figures['evaluations_mean']:,.0f}, {figures['evaluations_most']:,}",
        ),
        ("mean residual (nats)", f"{figures['residual_mean']:.4f}"),
        (
            f"behind a search twenty times as long, {len(few)} points (nats)",
            f"{figures['behind_mean']:.4f}±{figures['behind_error']:.4f}",
        ),
        (
            f"seconds for the flows of {len(gain):,} points, and of processors",
            f"{flow_seconds:.1f}, {processor_seconds:.1f}",
        ),
        ("what a flow gains (nats)", f"{figures['flow_gain_mean']:.4f}±{figures['flow_gain_error']:.4f}"),
    ]
    show_table(f"q* on {about.described['dataset']}, {threads} threads, {device}", ("", "figure"), rows, wide_console())
    write_json(
        options.json,
        {**figures, "model": about.described, "environment": surroundings(threads, device)},
        quick=options.quick,
    )


def best_flows(options: Options, model: Model, start: Gaussian, x: Tensor) -> tuple[FlowOptimum, float, float]:
    """The best flows of the first points, the seconds that took, and the seconds of all processors."""
    count = options.flow_points
    steps = 3 if options.quick else options.flow_steps
    search = FlowSearchSettings(num_samples=options.flow_draws, num_steps=steps)
    start = Gaussian(start.loc[:count], start.scale[:count])
    before, processors = time.perf_counter(), time.process_time()
    found = optimize_flow(model, start, x[:count], settings=FlowSettings("realnvp"), search=search)
    wait_for(x.device)
    return found, time.perf_counter() - before, time.process_time() - processors


if __name__ == "__main__":
    main()
