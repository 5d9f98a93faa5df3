"""How soon do `compare` and `diagnose` answer, with their default settings?

A VAE 64-32-10 in Pyro on binarized digits of scikit-learn, its decoder a module that is fitted: `compare` on 1,000
points until its first guide is fitted and to the end, and `diagnose` of the best guide on 100 of them. Aims: the
first result of `compare` within 30 seconds on two cores, `diagnose` within 10.

    python benchmarks/calls.py --json calls.json
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pyro
import pyro.distributions as dist
import torch
import tyro
from _measure import show_table, surroundings, use_threads, wide_console, write_json
from sklearn.datasets import load_digits
from torch import Tensor, nn

import amortized_bayes as ab


@dataclass(frozen=True)
class Options:
    """Time both calls.

    Args:
        points: Points to compare on.
        diagnosed: The first so many of them are diagnosed.
        threads: Threads of torch; 0 for all cores.
        json: File for the figures.
        quick: Few points and epochs, to see that everything runs.
    """

    points: int = 1_000
    diagnosed: int = 100
    threads: int = 0
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    quick: bool = False


class Decoder(nn.Module):
    """The model: z ~ N(0, I), and pixels Bernoulli with logits from a network of one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 64))

    def forward(self, pixels: Tensor) -> None:
        """Run the Pyro program."""
        with pyro.plate("digits", len(pixels)):
            z = pyro.sample("z", dist.Normal(pixels.new_zeros(10), 1.0).to_event(1))
            pyro.sample("pixels", dist.Bernoulli(logits=self.network(z)).to_event(1), obs=pixels)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    fits, diagnosis = ab.ComparisonSettings(), ab.DiagnosisSettings()
    if options.quick:
        options, fits = replace(options, points=40, diagnosed=4), replace(fits, epochs=4, rungs=1)
        few = ab.CertificateSettings(4, 0.1, 10)
        diagnosis = replace(diagnosis, num_particles=50, ais=ab.AISSettings(num_temperatures=5), certificate=few)
    threads = use_threads(options.threads)
    torch.manual_seed(0)
    grey = torch.tensor(load_digits().images).flatten(1)[: options.points]
    x = (grey / 16).bernoulli().float()
    model, told = Decoder(), []
    start = time.perf_counter()
    report = ab.compare(model, x, settings=fits, progress=False, on_row=lambda _: told.append(time.perf_counter()))
    first, whole = told[0] - start, time.perf_counter() - start
    model.eval()
    best = report.best.apply()
    start = time.perf_counter()
    found = ab.diagnose(model, best.guide, x[: options.diagnosed], settings=diagnosis, progress=False)
    seconds = time.perf_counter() - start
    figures = {
        "points": len(x),
        "compare_first": first,
        "compare_seconds": whole,
        "best": best.label,
        "diagnosed": found.num_points,
        "diagnose_seconds": seconds,
    }
    rows = [
        (f"compare on {len(x):,} points, first guide (s)", f"{first:.1f}"),
        (f"compare on {len(x):,} points, all {len(report.fits)} guides (s)", f"{whole:.1f}"),
        (f"diagnose on {found.num_points} points, {best.label} (s)", f"{seconds:.1f}"),
    ]
    show_table(f"first results, {threads} threads", ("", "figure"), rows, wide_console())
    write_json(options.json, {**figures, "verdict": str(found.verdict), "environment": surroundings(threads, x.device)})


if __name__ == "__main__":
    main()
