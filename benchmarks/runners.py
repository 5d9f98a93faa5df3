"""What do two workers gain over one, on blocks of `gaps`, one thread each? Aim: 1.8 times the pace on two cores.

The points are of the VAE of `train` (784-200-200-50, fixed binarized MNIST).

One worker and two take turns, round by round. A run's seconds on the wall include the start of processes, which import
torch, and the certificate, for which all blocks wait, and whatever else the machine does. So the seconds of the
processor are told too, those of the blocks as each of them measures its own: one worker needs all of them, two need
half of theirs and of what the process needs that hands out the jobs. The ratio of both is what two cores would show on
which nothing else runs.

    python benchmarks/runners.py --json runners.json
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import tyro
from _measure import show_table, surroundings, use_threads, wide_console, write_json
from _vae import SMALL, trained_run

from amortized_bayes.experiments.gaps import Config
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.plans import new_plan
from amortized_bayes.experiments.running import run
from amortized_bayes.experiments.settings import VAEConfig
from amortized_bayes.results import RunFolder

CPU = torch.device("cpu")
QUICK = replace(Config(), splits=("test",), particles=25, restarts=1, local_steps=10, chains=2, temperatures=2)
QUICK = replace(QUICK, max_temperatures=2, leapfrog=1, simulated=2, block_size=10)
"""Jobs of a moment."""


@dataclass(frozen=True)
class Options:
    """Time blocks of `gaps` on one worker and on two.

    Args:
        points: Test points, of which each takes some tenths of a second.
        block_size: Points per block.
        rounds: Rounds of one worker and two.
        dataset: Data set of the model.
        epochs: Epochs of its training.
        threads: Threads per job.
        out: Folder with results, where the trained model is looked for or put.
        json: File for the figures.
        quick: A small model and few steps, to see that everything runs.
    """

    points: int = 160
    block_size: int = 20
    rounds: int = 3
    dataset: str = "binarized-mnist"
    epochs: int = 60
    threads: int = 1
    out: Path = Path("results")
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    quick: bool = False


class Spent(NamedTuple):
    """A run: seconds on the wall, of the processor in its blocks and in the process that gives them out."""

    wall: float
    processor: float
    giving: float


class Stamps:
    """A reporter that adds up the seconds of the processor that blocks took."""

    def __init__(self) -> None:
        self.processor = 0.0

    def started(self, *_: Any) -> None:
        """A run has started."""

    def show(self, *_: Any) -> None:
        """A stage of a job is so far."""

    def say(self, line: str) -> None:
        """Something is worth a line."""
        print(line, flush=True)

    def row(self, row: Any) -> None:
        """A row was written."""

    def shown(self, job: str, shown: Any) -> None:
        """A job has ended, and left its arrays."""
        if job.startswith("estimates"):
            self.processor += float(shown.images["seconds"])


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    threads = use_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) if options.quick else options.out
        wanted = VAEConfig(dataset=options.dataset, epochs=options.epochs)
        model = trained_run(SMALL if options.quick else wanted, Lab(out, CPU))
        found = side_by_side(options, model)
    show_table(
        f"blocks of gaps, {threads} thread{'s' * (threads > 1)} per job",
        ("", "figure"),
        worker_rows(found),
        wide_console(),
    )
    ratios = {"two workers / one": [two / one for one, two in zip(found["wall_1"], found["wall_2"], strict=True)]}
    write_json(options.json, {**found, "environment": surroundings(threads, CPU)}, ratios, quick=options.quick)


def side_by_side(options: Options, model: RunFolder) -> dict[str, Any]:
    """Blocks on one worker and on two, in turns."""
    config = replace(Config(), splits=("test",), points=options.points, block_size=options.block_size)
    config = replace(config, simulated=10, max_temperatures=config.temperatures)  # the certificate is not timed
    if options.quick:
        config = replace(QUICK, points=40)
    found: dict[int, list[Spent]] = {1: [], 2: []}
    for number in range(1 if options.quick else options.rounds):
        for workers in sorted(found, reverse=bool(number % 2)):
            found[workers].append(spent(config, model, workers))
    pairs = list(zip(found[1], found[2], strict=True))
    return {
        "points": config.points,
        "block_size": config.block_size,
        **{f"{name}_{workers}": [getattr(s, name) for s in found[workers]] for workers in found for name in NAMES},
        "ratio_wall": statistics.median(one.wall / two.wall for one, two in pairs),
        "ratio_processor": statistics.median(2 * one.processor / (two.processor + two.giving) for one, two in pairs),
    }


NAMES = ("wall", "processor", "giving")


def worker_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is printed of one worker and two."""
    words = ("seconds on the wall, the whole run", "seconds of the processor, all blocks", "giving them out")
    rows = []
    for name, said in zip(NAMES, words, strict=True):
        one, two = (statistics.median(found[f"{name}_{workers}"]) for workers in (1, 2))
        rows += [(f"{said}: one worker, two", f"{one:.2f}, {two:.2f}")]
    each = 1000 * statistics.median(found["processor_1"]) / found["points"]
    return [
        *rows,
        ("milliseconds of the processor per point", f"{each:.0f}"),
        ("two workers over one, the whole run on the wall", f"{found['ratio_wall']:.2f}"),
        ("by seconds of the processor, blocks alone (aim: 1.8)", f"{found['ratio_processor']:.2f}"),
    ]


def spent(config: Config, model: RunFolder, workers: int) -> Spent:
    """Run `gaps` in blocks into a folder of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        lab = Lab(Path(scratch), CPU)
        config = replace(config, checkpoint=str(model.path.resolve()))
        plan = new_plan("gaps", config, lab, ["config"], {}, workers)
        plan = replace(plan, about={**plan.about, "threads": torch.get_num_threads()}, runner="processes")
        assert plan.forecast.seconds >= 0  # measured beforehand
        stamps: Any = Stamps()
        giving, start = time.process_time(), time.perf_counter()
        run(plan, stamps)
        wall = time.perf_counter() - start
        return Spent(wall, stamps.processor, time.process_time() - giving)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
