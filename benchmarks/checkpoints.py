"""What do checkpoints cost? A training of the VAE of `train` with and without them, in pairs.

Both are whole runs, into folders that are removed afterwards: rows, models and all. One keeps its state every 15
seconds, as every command does, written beside, synced and renamed, in two generations; the other never. Pairs take
turns in who goes first. Aim: at most 1% of the time.

Seconds of the processor are compared, in one thread those that a quiet machine would take; waiting for the disk is
beside them. So the seconds on the wall spent in keeping are told too, as a share of the run's.

    python benchmarks/checkpoints.py --threads 1 --json checkpoints.json
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from unittest.mock import patch

import torch
import tyro
from _measure import find_device, show_table, surroundings, use_threads, wide_console, write_json
from _vae import SMALL

from amortized_bayes.commands.reporting import Reporting
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.plans import new_plan
from amortized_bayes.experiments.running import run
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.keeping import Keeper
from amortized_bayes.results import environment
from amortized_bayes.stopping import EVERY

AIM = 0.01
"""Largest share of a run that checkpoints are meant to take."""
WITH, WITHOUT = "with checkpoints", "without"


@dataclass(frozen=True)
class Options:
    """Time a training with and without checkpoints, in pairs.

    Args:
        epochs: Epochs of each training.
        rounds: Pairs.
        every: Seconds between two checkpoints.
        threads: Threads of torch; 0 for all cores.
        device: Where to run.
        json: File for the figures.
        quick: One pair of a small model, to see that everything runs; the times mean nothing.
    """

    epochs: int = 20
    rounds: int = 5
    every: float = EVERY
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    quick: bool = False


class Spent(NamedTuple):
    """A run: seconds of the processor and on the wall, those on the wall in keeping, and how often it kept."""

    processor: float
    wall: float
    keeping: float
    kept: int


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    config = replace(VAEConfig(), epochs=options.epochs, early_stopping=False)
    if options.quick:
        options, config = replace(options, rounds=1, every=0.0), SMALL
    threads, device = use_threads(options.threads), find_device(options.device)
    spent: dict[str, list[Spent]] = {WITH: [], WITHOUT: []}
    once(replace(config, epochs=1), math.inf, device)  # caches are cold
    for number in range(options.rounds):
        for side in (WITH, WITHOUT) if number % 2 else (WITHOUT, WITH):
            spent[side].append(once(config, options.every if side == WITH else math.inf, device))
    ratios = [a.processor / b.processor for a, b in zip(spent[WITH], spent[WITHOUT], strict=True)]
    share = sum(one.keeping for one in spent[WITH]) / sum(one.wall for one in spent[WITH])
    figures = {
        "ratio": statistics.median(ratios),
        "share_keeping": share,
        "kept": [one.kept for one in spent[WITH]],
        **{f"processor_seconds_{side.split()[0]}": [one.processor for one in spent[side]] for side in spent},
    }
    rows = [
        (f"seconds of the processor {side}, median", f"{statistics.median(one.processor for one in found):.1f}")
        for side, found in spent.items()
    ]
    rows += [
        ("their ratio, median of pairs", f"{figures['ratio']:.4f}"),
        ("lowest and highest ratio", f"{min(ratios):.4f}, {max(ratios):.4f}"),
        ("checkpoints of a run", ", ".join(map(str, figures["kept"]))),
        (f"share of the wall's seconds in keeping (aim: {AIM:.0%})", f"{share:.2%}"),
    ]
    title = f"checkpoints every {options.every:g} s, training of {config.epochs} epochs, {threads} threads, {device}"
    show_table(title, ("", "figure"), rows, wide_console())
    found = {**figures, "clock": "processor", "every": options.every, "environment": surroundings(threads, device)}
    write_json(options.json, found, {f"{WITH} / {WITHOUT}": ratios}, quick=options.quick)


def once(config: VAEConfig, every: float, device: torch.device) -> Spent:
    """Train a model in a folder of its own, keeping its state every so many seconds."""
    with tempfile.TemporaryDirectory() as scratch, timed_keeping() as keeping:
        lab = Lab(Path(scratch), device, keep_every=every)
        plan = new_plan("train", config, lab, ["config"], environment(torch.get_num_threads()))
        assert plan.forecast.seconds >= 0  # measured beforehand
        start = time.process_time(), time.perf_counter()
        with Reporting() as reporting:
            run(plan, reporting)
        return Spent(time.process_time() - start[0], time.perf_counter() - start[1], sum(keeping), len(keeping))


@contextmanager
def timed_keeping() -> Iterator[list[float]]:
    """Collect the seconds of every checkpoint meanwhile."""
    plain, seconds = Keeper.keep, list[float]()

    def keep(self: Keeper) -> None:
        start = time.perf_counter()
        plain(self)
        seconds.append(time.perf_counter() - start)

    with patch.object(Keeper, "keep", keep):
        yield seconds


if __name__ == "__main__":
    main()
