"""Factorized VI at scale: what a step costs, and what fitting holds, when there are more and more data points.

A step of a minibatch touches its own rows of the table, of Adam's moments and of its step counts, and nothing else:
it should cost the same at a million points as at ten thousand. Beside it stands what one gets without that: the table
as one parameter, looked up by autograd and moved by dense Adam.

Data are synthetic bits, 64 per point; the model is a Bayesian decoder 16-128-64; the batch is 500. Sizes take turns in
blocks of steps; times are medians over rounds, ratios medians over rounds of the ratio within a round. Averages of
rows are off.

    python benchmarks/scale.py --json scale.json
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _measure import (
    Side,
    Times,
    show_table,
    side_by_side,
    surroundings,
    use_threads,
    wide_console,
    write_json,
)

from amortized_bayes.guides import Factorized, LocalGuide, MeanField
from amortized_bayes.guides.local import initial_parameters
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.inference.svi import Training
from amortized_bayes.models import DeepGenerative
from amortized_bayes.sites import latent_sites

LATENT, HIDDEN, OBSERVED, BATCH = 16, 128, 64, 500
TARGET = 1.2


@dataclass(frozen=True)
class Scale:
    """Time a step of factorized VI at several sizes of data, and count what it holds.

    Args:
        sizes: Numbers of data points.
        dense: Sizes at which dense Adam is timed as well.
        repeats: Rounds.
        block_seconds: Length of a block of steps.
        threads: Threads; 0 for all cores.
        json: File for the figures.
        quick: One step each, at a hundredth of the sizes, to see that everything runs.
    """

    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    dense: tuple[int, ...] = (10_000, 100_000)
    repeats: int = 7
    block_seconds: float = 1.0
    threads: int = 0
    json: Path | None = None
    quick: bool = False


class DenseFactorized(LocalGuide):
    """Factorized VI as one writes it first: the table is a parameter, and its gradient as large as itself."""

    def __init__(self, sites: Any, num_data: int, shared: nn.Module) -> None:
        super().__init__(sites, num_data, shared=shared)
        self.weight = nn.Parameter(initial_parameters(self.latent_dim).repeat(num_data, 1))

    def locate(self, x: Tensor, index: Tensor) -> Tensor:
        """Look the rows up, through autograd."""
        return self.weight[index]


def build(num_data: int, *, dense: bool) -> Training:
    """A training of factorized VI on ``num_data`` synthetic points."""
    torch.manual_seed(0)
    data = torch.randint(0, 2, (num_data, OBSERVED), dtype=torch.uint8)
    model = DeepGenerative(OBSERVED, LATENT, (HIDDEN,), num_data)
    sites = latent_sites(model, data[:2].float())
    shared = MeanField(sites.shared, locs=sites.shared_draw)
    guide = (DenseFactorized if dense else Factorized)(sites.local, num_data, shared=shared)
    options = FitOptions(
        batch_size=min(BATCH, num_data), local_reparametrization=True, average_rows=False, capture="replay"
    )
    return Training(model, guide, data, options)


def take(training: Training, steps: int) -> None:
    """Take steps."""
    for _ in training.run(steps):
        pass


def held(training: Training) -> dict[str, int]:
    """Floats and counters that fitting the rows holds."""
    (adam,) = training.variables.row_adams
    tensors = (adam.table.weight, adam.first_moment, adam.second_moment)
    return {"floats": sum(t.numel() for t in tensors), "counters": adam.count.numel()}


def main(setting: Scale) -> None:
    """Measure, print and write."""
    threads = use_threads(setting.threads)
    shrink = 100 if setting.quick else 1
    trainings = {f"rows, N = {n // shrink:,}": build(n // shrink, dense=False) for n in setting.sizes}
    dense = {f"dense Adam, N = {n // shrink:,}": build(n // shrink, dense=True) for n in setting.dense}
    sides = [Side(name, partial(take, t), 0.0) for name, t in (trainings | dense).items()]
    for side in sides:
        side.run(2)  # capture, and the order of the first epoch
    times = side_by_side(sides, 1 if setting.quick else setting.repeats, setting.block_seconds, one_step=setting.quick)
    rows = figures(times, trainings, dense)
    report(rows, times, trainings, threads)
    write_json(
        setting.json,
        {"benchmark": "scale", "environment": surroundings(threads, torch.device("cpu")), "rows": rows},
        times.against(list(trainings)[1:], [next(iter(trainings)), *dense]),
        quick=setting.quick,
    )


def figures(times: Times, trainings: dict[str, Training], dense: dict[str, Training]) -> list[dict[str, Any]]:
    """A row a side: time, ratio to the smallest size, and what is held."""
    first = next(iter(trainings))
    rows = []
    for name, training in (trainings | dense).items():
        count = len(training.data)
        row: dict[str, Any] = {"side": name, "N": count, "milliseconds": times.median(name)}
        row |= {"of_first": times.ratio(name, first)}
        if name in trainings:
            row |= held(training)
            row |= {"floats_per_ND": row["floats"] / (count * LATENT), "counters_per_N": row["counters"] / count}
        rows.append(row)
    return rows


def report(rows: list[dict[str, Any]], times: Times, trainings: dict[str, Training], threads: int) -> None:
    """Print the table and whether the target is met."""
    cells = [
        (
            row["side"],
            f"{row['milliseconds']:.2f}",
            f"{row['of_first']:.2f}",
            f"{row['floats_per_ND']:.2f}" if "floats_per_ND" in row else "",
            f"{row['counters_per_N']:.2f}" if "counters_per_N" in row else "",
        )
        for row in rows
    ]
    title = f"Factorized VI at scale, batch {BATCH}, D = {LATENT}, {threads} threads"
    headings = ("side", "ms/step", "of smallest N", "floats / (N D)", "counters / N")
    show_table(title, headings, cells, wide_console())
    names = list(trainings)
    ratio = times.ratio(names[-1], names[0])
    print(f"largest over smallest: {ratio:.2f} (to reach: at most {TARGET}), {'met' if ratio <= TARGET else 'not met'}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the whole process: {peak:.2f} GiB")


if __name__ == "__main__":
    try:
        main(tyro.cli(Scale))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
