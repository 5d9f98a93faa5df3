"""How soon do `compare` and `diagnose` answer, with their default settings?

A VAE 64-32-10 in Pyro on binarized digits of scikit-learn, its decoder a module that is fitted: `compare` on 1,000
points until its first guide is fitted and to the end, and `diagnose` of the best guide on 100 of them. Aims: the
first result of `compare` within 30 seconds on two cores, `diagnose` within 10. That is also the aim for 100 points of
a VAE 64-32-16 whose guide has a full covariance for each point, and of one of 784-200-16 on binarized MNIST.

    python benchmarks/calls.py --json calls.json
    python benchmarks/calls.py --only-diagnose --mnist
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pyro
import pyro.distributions as dist
import torch
import tyro
from _measure import show_table, surroundings, use_threads, wide_console, write_json
from sklearn.datasets import load_digits
from torch import Tensor, nn

import amortized_bayes as ab
from amortized_bayes.data import load_dataset

Timed = tuple[str, tuple[float, float]]
"""What was timed, and its seconds of the wall and of the processor."""


@dataclass(frozen=True)
class Options:
    """Time both calls, by the clock and by the seconds of the processor.

    Args:
        points: Points to compare on.
        diagnosed: The first so many of them are diagnosed.
        threads: Threads of torch; 0 for all cores.
        only_diagnose: The last measurement alone: a guide of full covariance is diagnosed.
        mnist: That one on binarized MNIST, with 200 hidden units.
        json: File for the figures.
        quick: Few points and epochs, to see that everything runs.
    """

    points: int = 1_000
    diagnosed: int = 100
    threads: int = 0
    only_diagnose: bool = False
    mnist: bool = False
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    quick: bool = False


class Decoder(nn.Module):
    """The model: z ~ N(0, I), and pixels Bernoulli with logits from a network of one hidden layer."""

    def __init__(self, latent: int = 10, hidden: int = 32, pixels: int = 64) -> None:
        super().__init__()
        self.latent = latent
        self.network = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, pixels))

    def forward(self, pixels: Tensor) -> None:
        """Run the Pyro program."""
        with pyro.plate("digits", len(pixels)):
            z = pyro.sample("z", dist.Normal(pixels.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("pixels", dist.Bernoulli(logits=self.network(z)).to_event(1), obs=pixels)


class Correlated(nn.Module):
    """A guide: an encoder of one hidden layer for a mean and a Cholesky factor of each point."""

    def __init__(self, latent: int, hidden: int, pixels: int) -> None:
        super().__init__()
        self.latent = latent
        self.network = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, latent + latent**2))

    def forward(self, pixels: Tensor) -> None:
        """Run the Pyro program."""
        loc, raw = self.network(pixels).split([self.latent, self.latent**2], -1)
        raw = raw.unflatten(-1, (self.latent, self.latent))
        tril = raw.tril(-1) + raw.diagonal(dim1=-2, dim2=-1).exp().diag_embed()
        with pyro.plate("digits", len(pixels)):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))


class Clock:
    """Seconds since it was made, of the wall and of the processor."""

    def __init__(self) -> None:
        self.start = self._now()

    @property
    def seconds(self) -> tuple[float, float]:
        """Both."""
        wall, processor = self._now()
        return wall - self.start[0], processor - self.start[1]

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    diagnosis, steps = ab.DiagnosisSettings(), 3_000
    if options.quick:
        options, steps = replace(options, points=40, diagnosed=4), 8
        few = ab.CertificateSettings(4, 0.1, 10)
        diagnosis = replace(diagnosis, num_particles=50, ais=ab.AISSettings(num_temperatures=5), certificate=few)
    threads = use_threads(options.threads)
    torch.manual_seed(0)
    digits: Any = load_digits()
    grey = torch.tensor(digits.images).flatten(1)[: options.points]
    x = (grey / 16).bernoulli().float()
    figures: dict[str, Any] = {"points": len(x), "diagnosed": len(x[: options.diagnosed])}
    timed = [] if options.only_diagnose else _both(x, options, diagnosis, figures)
    timed.append(_correlated(x, options, diagnosis, steps, figures))
    rows = [(what, *(f"{s:.1f}" for s in seconds)) for what, seconds in timed]
    show_table(f"first results, {threads} threads", ("", "wall (s)", "processor (s)"), rows, wide_console())
    write_json(options.json, {**figures, "environment": surroundings(threads, x.device)}, quick=options.quick)


def _both(x: Tensor, options: Options, diagnosis: ab.DiagnosisSettings, figures: dict[str, Any]) -> list[Timed]:
    """`compare`, and `diagnose` of its best guide."""
    fits = replace(ab.ComparisonSettings(), epochs=4, rungs=1) if options.quick else ab.ComparisonSettings()
    model, told, clock = Decoder(), [], Clock()
    report = ab.compare(model, x, settings=fits, progress=False, on_row=lambda _: told.append(clock.seconds))
    whole = clock.seconds
    model.eval()
    best, clock = report.best.apply(), Clock()
    found = ab.diagnose(model, best.guide, x[: options.diagnosed], settings=diagnosis, progress=False)
    seconds = clock.seconds
    figures |= {"compare_first": told[0], "compare_seconds": whole, "best": best.label}
    figures |= {"diagnose_seconds": seconds, "verdict": str(found.verdict)}
    return [
        (f"compare on {len(x):,} points, first guide", told[0]),
        (f"compare on {len(x):,} points, all {len(report.fits)} guides", whole),
        (f"diagnose on {found.num_points} points, {best.label}", seconds),
    ]


def _correlated(
    x: Tensor, options: Options, diagnosis: ab.DiagnosisSettings, steps: int, figures: dict[str, Any]
) -> Timed:
    """`diagnose` of a guide with a full covariance for each of 16 latents."""
    hidden = 32
    if options.mnist:
        pixels = load_dataset("binarized-mnist", num_train=len(x), download=False).train.pixels
        x, hidden = torch.as_tensor(pixels).float(), 200
    model, guide = Decoder(16, hidden, x.shape[1]), Correlated(16, max(128, hidden), x.shape[1])
    ab.fit(model, guide, x, num_steps=steps, options=ab.FitOptions(batch_size=min(100, len(x))), progress=False)
    clock = Clock()
    found = ab.diagnose(model.eval(), guide.eval(), x[: options.diagnosed], settings=diagnosis, progress=False)
    figures |= {
        "correlated_seconds": (seconds := clock.seconds),
        "correlated_verdict": str(found.verdict),
        "correlated_temperatures": found.settings["ais"]["num_temperatures"],
    }
    return f"diagnose on {found.num_points} points, full covariance of 16 latents", seconds


if __name__ == "__main__":
    main()
