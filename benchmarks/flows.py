"""What does capturing a step save for guides with flows, and what does a step of the search for the best flow cost?

A step of training a VAE (784-200-200-50, ELU, Bernoulli) with each family of q(z|x), captured and replayed against
Pyro's handlers running at every step, blocks of both taking turns. Then a step of the search for the best flow of each
of 100 points with its decoder, over a step of the same search without a flow: the `search_cost` of the forecast.

    python benchmarks/flows.py --json flows.json
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

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

from amortized_bayes.experiments.settings import Family, VAEConfig
from amortized_bayes.experiments.setup import ImageData, build_vae, flow_settings, vae_options
from amortized_bayes.flows import FLOWS
from amortized_bayes.inference.flow_search import FlowSearchSettings, optimize_flow
from amortized_bayes.inference.svi import Training
from amortized_bayes.joint import Gaussian
from amortized_bayes.types import Dataset, Images


@dataclass(frozen=True)
class Options:
    """Time steps of each family.

    Args:
        families: Which.
        batch: Points per step.
        repeats: Rounds.
        block: Seconds of a block.
        threads: Threads of torch; 0 for all cores.
        device: Where to run.
        json: File for the figures.
        quick: One step of each, of a small model, to see that everything runs.
    """

    families: tuple[Family, ...] = get_args(Family)
    batch: int = 250
    repeats: int = 5
    block: float = 1.0
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    quick: bool = False


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.quick:
        options = replace(options, batch=8, repeats=1)
    threads, device = use_threads(options.threads), find_device(options.device)
    figures: dict[str, Any] = {}
    rows, ratios = [], {}
    for family in options.families:
        sides = [_side(options, family, how, device) for how in ("replay", "off")]
        times = side_by_side(sides, options.repeats, options.block, one_step=options.quick)
        replayed, plain, ratio = times.median("replay"), times.median("off"), times.ratio("replay", "off")
        ratios |= times.against(["replay"], ["off"], family)
        figures[family] = {"replayed_ms": replayed, "uncaptured_ms": plain, "ratio": ratio}
        rows.append((family, f"{replayed:.2f}", f"{plain:.2f}", f"{ratio:.2f}"))
    title = f"ms per step of training, batch {options.batch}, {threads} threads, {device}"
    show_table(title, ("family", "replayed", "uncaptured", "ratio"), rows, wide_console())
    searches = _searches(options, device)
    rows = [(name, f"{found['ms']:.1f}", f"{found['cost']:.1f}") for name, found in searches.items()]
    title = f"ms per step of the search for the best flow, {_num_points(options)} points, {threads} threads, {device}"
    show_table(title, ("family", "ms", "over gaussian"), rows, wide_console())
    found = {"steps": figures, "searches": searches, "environment": surroundings(threads, device)}
    write_json(options.json, found, ratios, quick=options.quick)


def _config(options: Options, family: Family) -> VAEConfig:
    small = {"latent_dim": 6, "hidden": (8,)} if options.quick else {}
    return VAEConfig(family=family, batch_size=options.batch, **small)


def _data(options: Options, device: torch.device) -> ImageData:
    bits = torch.bernoulli(torch.full((4 * options.batch, 784), 0.2)).to(torch.uint8)
    nothing = Dataset("random", Images(bits.numpy(), None), Images(bits.numpy(), None), (1, 28, 28), 1, {}, "")
    return ImageData("random", bits.to(device), bits.to(device), None, (1, 28, 28), nothing)


def _side(options: Options, family: Family, how: str, device: torch.device) -> Side:
    config, data = _config(options, family), _data(options, device)
    training = Training(*build_vae(config, data), data.train, replace(vae_options(config), capture=how))
    training.prepare(1)

    def run(steps: int) -> None:
        for _ in training.run(steps):
            pass
        wait_for(device)

    return Side(how, run, 0.0)


def _num_points(options: Options) -> int:
    return 4 if options.quick else 100


def _searches(options: Options, device: torch.device) -> dict[str, dict[str, float]]:
    """Milliseconds of a step of each family's search, and how many times that of the Gaussian's; rounds take turns."""
    found: dict[str, list[float]] = {family: [] for family in ("gaussian", *FLOWS)}
    for _ in range(1 if options.quick else 3):
        for family, times in found.items():
            times.append(_search_ms(options, family, device))
    costs = {family: [a / b for a, b in zip(times, found["gaussian"], strict=True)] for family, times in found.items()}
    return {
        family: {"ms": statistics.median(times), "cost": statistics.median(costs[family])}
        for family, times in found.items()
    }


def _search_ms(options: Options, family: str, device: torch.device) -> float:
    """Median over the steps of one search; the first ones, which capture, are left out."""
    config, data = _config(options, "gaussian"), _data(options, device)
    model, _ = build_vae(config, data)
    x = data.train[: _num_points(options)].float()
    start = Gaussian(x.new_zeros(len(x), config.latent_dim), x.new_ones(len(x), config.latent_dim))
    clock: list[float] = []

    def tick(done: int, total: int) -> None:
        wait_for(device)
        clock.append(time.perf_counter())

    # Couplings have a kernel, in searches that are long enough to pay for its building.
    steps = 3 if options.quick else 300 if family == "realnvp" else 30
    search = FlowSearchSettings(num_samples=10, num_steps=steps, num_kept=2, num_score=2, memory_budget=4e9)
    optimize_flow(model, start, x, settings=flow_settings(config, family), search=search, progress=tick)
    steps = [1000 * (after - before) for before, after in pairwise(clock)]
    return statistics.median(steps[len(steps) // 3 :])


if __name__ == "__main__":
    main()
