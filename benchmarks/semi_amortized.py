"""How much longer does a training step of semi-amortized VI take, with T per-point steps in it?

One step of `Training` on the VAE of `train` (784-200-200-50, ELU, Bernoulli pixels, batches of 250 binary images), all
parameters fitted: the plain amortized guide beside `SemiAmortized` with T steps, with gradients through the steps to
guide and model (all), to the guide alone, and without (straight). With `--frozen` the decoder is held fixed. All are
captured and replayed, or compiled. Sides take turns in blocks of steps; a ratio is the median over rounds of the ratio
within a round. Aim: at most 1 + 1.5 T. `--clock processor` counts the seconds that the processor works for this
process, which others' work touches less.

    python benchmarks/semi_amortized.py --json semi_amortized.json
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from _measure import (
    Side,
    find_device,
    show_table,
    side_by_side,
    surroundings,
    use_threads,
    wait_for,
    wide_console,
    write_json,
)
from torch import Tensor

from amortized_bayes.guides import Amortized
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.inference.semi_amortized import SemiAmortized
from amortized_bayes.inference.svi import Training
from amortized_bayes.models import DeepGenerative
from amortized_bayes.networks import MLP
from amortized_bayes.sites import latent_sites

NUM_DATA, PIXELS, LATENTS, WIDTH = 10_000, 784, 50, 200
PLAIN = "amortized"
WAYS = ["guide", "straight"]


@dataclass(frozen=True)
class Options:
    """Time training steps of semi-amortized VI.

    Args:
        steps: Per-point steps (T).
        samples: Draws of each q per step.
        batch_size: Points in a minibatch.
        frozen: Hold the decoder fixed.
        backend: How steps are captured.
        clock: Of the wall or of the processor.
        repeats: Rounds.
        block_seconds: Seconds of a block, about.
        threads: Threads of torch; 0 for all cores.
        device: Where to run.
        json: File for the figures.
        quick: A step of each, to see that everything runs.
    """

    steps: tuple[int, ...] = (1, 5)
    samples: int = 2
    batch_size: int = 250
    frozen: bool = False
    backend: Literal["replay", "inductor"] = "replay"
    clock: Literal["wall", "processor"] = "wall"
    repeats: int = 9
    block_seconds: float = 1.0
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    quick: bool = False


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.quick:
        options = replace(options, steps=(1,), repeats=1)
    threads, device = use_threads(options.threads), find_device(options.device)
    data = (torch.rand(NUM_DATA, PIXELS) < 0.2).to(torch.uint8).to(device)
    kinds = {PLAIN: (0, "all")}
    for steps in options.steps:
        kinds |= {f"T = {steps}, {way}": (steps, way) for way in (["all"] if not options.frozen else []) + WAYS}
    sides = [_side(name, *kind, data, options) for name, kind in kinds.items()]
    clock = time.process_time if options.clock == "processor" else time.perf_counter
    times = side_by_side(sides, options.repeats, options.block_seconds, one_step=options.quick, clock=clock)
    rows, figures = [], {}
    for name, (steps, _) in kinds.items():
        ratio, aim = times.ratio(name, PLAIN), 1 + 1.5 * steps
        rows.append((name, f"{times.median(name):.2f}", f"{ratio:.2f}", f"{aim:.1f}"))
        figures[name] = {"milliseconds": times.median(name), "ratio": ratio, "aim": aim}
    headings = ("guide", "milliseconds a step", "over amortized", "aim")
    show_table(f"{options.backend}, {threads} threads, {device}", headings, rows, wide_console())
    figures |= {"samples": options.samples, "clock": options.clock, "environment": surroundings(threads, device)}
    write_json(options.json, figures, times.against(kinds, [PLAIN]), quick=options.quick)


def _side(name: str, steps: int, gradients: str, data: Tensor, options: Options) -> Side:
    torch.manual_seed(0)
    model = DeepGenerative(PIXELS, LATENTS, (WIDTH, WIDTH), NUM_DATA, bayesian=False, activation="elu")
    model = model.to(data.device).requires_grad_(not options.frozen)
    sites = latent_sites(model, data[:2].float()).local
    encoder = MLP([PIXELS, WIDTH, WIDTH, 2 * LATENTS], None, "elu")
    guide = Amortized(sites, NUM_DATA, PIXELS, encoder=encoder).to(data.device)
    if steps:
        extra = {"num_samples": options.samples, "gradients": gradients}
        guide = SemiAmortized(model, guide, steps, **extra).to(data.device)
    training = Training(model, guide, data, FitOptions(batch_size=options.batch_size, capture=options.backend))
    training.prepare(10_000)
    if training.captured is None:
        raise RuntimeError(f"{name}: the step was not captured")

    def run(count: int) -> None:
        for _ in training.run(count):
            pass
        wait_for(data.device)

    return Side(name, run, training.capture_seconds)


if __name__ == "__main__":
    main()
