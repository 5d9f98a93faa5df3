"""What does capturing a step save for guides with flows?

A step of training a VAE (784-200-200-50, ELU, Bernoulli) with each family of q(z|x), captured and replayed against
Pyro's handlers running at every step, blocks of both taking turns.

    python benchmarks/flows.py --json flows.json
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from amortized_bayes.experiments.setup import ImageData, build_vae, vae_options
from amortized_bayes.inference.svi import Training
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
    rows = []
    for family in options.families:
        sides = [_side(options, family, how, device) for how in ("replay", "off")]
        times = side_by_side(sides, options.repeats, options.block, one_step=options.quick)
        replayed, plain, ratio = times.median("replay"), times.median("off"), times.ratio("replay", "off")
        figures[family] = {"replayed_ms": replayed, "uncaptured_ms": plain, "ratio": ratio}
        rows.append((family, f"{replayed:.2f}", f"{plain:.2f}", f"{ratio:.2f}"))
    title = f"ms per step, batch {options.batch}, {threads} threads, {device}"
    show_table(title, ("family", "replayed", "uncaptured", "ratio"), rows, wide_console())
    write_json(options.json, {"steps": figures, "environment": surroundings(threads, device)})


def _side(options: Options, family: Family, how: str, device: torch.device) -> Side:
    config = VAEConfig(family=family, batch_size=options.batch, latent_dim=6, hidden=(8,)) if options.quick else None
    config = config or VAEConfig(family=family, batch_size=options.batch)
    bits = torch.bernoulli(torch.full((4 * options.batch, 784), 0.2)).to(torch.uint8)
    nothing = Dataset("random", Images(bits.numpy(), None), Images(bits.numpy(), None), (1, 28, 28), 1, {}, "")
    data = ImageData("random", bits.to(device), bits.to(device), None, (1, 28, 28), nothing)
    training = Training(*build_vae(config, data), data.train, replace(vae_options(config), capture=how))
    training.prepare(1)

    def run(steps: int) -> None:
        for _ in training.run(steps):
            pass
        wait_for(device)

    return Side(how, run, 0.0)


if __name__ == "__main__":
    main()
