"""How much sooner is a fit where the published way takes it?

The published way (`Amortized-Bayes`, after Margossian & Blei 2024), written out in plain PyTorch: 10,000 MNIST images,
64 latents, a decoder 64-256-256-784 whose weights have N(0, 1) priors and Gaussian factors (mean 0, log scale -2 at the
start), an encoder of one hidden layer of k = 64 units, or rows of each point's own (F-VI: means from N(0, 1), log
scales from N(0, 1) - 1); the whole data set a step, one draw, Adam at 1e-3. Its objective takes log q(z) with the scale
where the variance belongs. After 2,500 steps its true ELBO, a Gaussian likelihood of variance 1/2 scored right, is
-594.9 nats per point with k = 64 and -586.2 with F-VI.

Our way is the library's: the same model and family, minibatches, falling rates, local reparametrization, and a q(theta)
that starts small. It is given a number of steps, and is there when the true ELBO of its last iterate is at least the
published way's. Seconds are those of the steps; evaluations are not counted.

By default some steps of the published way are timed and the seconds of all 2,500 extrapolated from their median;
`--whole` takes all of them (about ten minutes a family) and scores what they reach.

    python benchmarks/race.py --threads 2 --json race.json
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from _measure import show_table, surroundings, use_threads, wide_console, write_json
from torch import Tensor, nn

import amortized_bayes as ab
from amortized_bayes.guides.registry import GUIDES, GuideSpec
from amortized_bayes.inference.options import linear
from amortized_bayes.inference.svi import Training

PIXELS, LATENTS, HIDDEN, WIDTH = 784, 64, (256, 256), 64
SIZES = (LATENTS, *HIDDEN, PIXELS)
PUBLISHED_STEPS = 2_500
TARGETS = {"amortized": -594.9, "factorized": -586.2}
"""True ELBO of the published way after `PUBLISHED_STEPS` steps, nats per point."""
SOONER = 50
LOG_SCALE = -0.5 * math.log(2)  # of a Gaussian of variance 1/2


@dataclass(frozen=True)
class Flags:
    """Race a fit against the published way to fit the same model.

    Args:
        families: Which guides: an encoder with k = 64, rows of each point's own.
        num_data: Training images.
        batch_size: Points in a minibatch of ours.
        steps: Steps that ours is given; its rates fall to 0 over them.
        every: Steps of ours between evaluations.
        timed: Steps of the published way to time.
        whole: Take all 2,500 steps of the published way, and race to the ELBO that they reach.
        draws: Draws of z and of the weights in an evaluation.
        threads: Threads of torch; 0 for all cores.
        data: Data set.
        json: File to write the figures to.
        quick: Few steps on a few random images, to see that everything runs; the figures mean nothing.
    """

    families: tuple[Literal["amortized", "factorized"], ...] = ("amortized", "factorized")
    num_data: int = 10_000
    batch_size: int = 500
    steps: int = 150
    every: int = 5
    timed: int = 30
    whole: bool = False
    draws: int = 10
    threads: int = 0
    data: str = "mnist"
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    quick: bool = False


class Published:
    """The published way, by hand: parameters, their start, and its objective on all the data."""

    def __init__(self, family: str, x: Tensor) -> None:
        torch.manual_seed(0)
        self.x = x
        self.factors = [
            (torch.zeros(shape, requires_grad=True), torch.full(shape, -2.0, requires_grad=True))
            for size_in, size_out in pairwise(SIZES)
            for shape in ((size_out, size_in), (size_out,))
        ]
        self.encoder: nn.Module | None = None
        self.rows: list[Tensor] = []
        if family == "amortized":
            self.encoder = nn.Sequential(nn.Linear(x.shape[1], WIDTH), nn.LeakyReLU(0.2), nn.Linear(WIDTH, 2 * LATENTS))
        else:
            shape = (len(x), LATENTS)
            self.rows = [torch.randn(shape).requires_grad_(), (torch.randn(shape) - 1).requires_grad_()]
        parameters = [*(t for pair in self.factors for t in pair), *self.rows]
        parameters += list(self.encoder.parameters()) if self.encoder is not None else []
        self.adam = torch.optim.Adam(parameters, lr=1e-3)

    def step(self) -> float:
        """Take a step and return the loss."""
        self.adam.zero_grad()
        loss = -self._objective()
        loss.backward()
        self.adam.step()
        return loss.item()

    def _local(self) -> tuple[Tensor, Tensor]:
        if self.encoder is None:
            return self.rows[0], self.rows[1]
        loc, log_scale = self.encoder(self.x).chunk(2, -1)
        return loc, log_scale

    def _objective(self) -> Tensor:
        loc, log_scale = self._local()
        z = loc + log_scale.exp() * torch.randn_like(loc)
        y, shared = z, z.new_zeros(())
        drawn = []
        for mean, log_sd in self.factors:
            noise = torch.randn_like(mean)
            drawn.append(mean + log_sd.exp() * noise)
            shared = shared + (log_sd + 0.5 * noise**2 - 0.5 * drawn[-1] ** 2).sum()
        y = decode(z, drawn)
        log_q = (-0.5 * (z - loc) ** 2 / log_scale.exp() - 0.5 * log_scale).sum()  # the published slip
        return -((self.x - y) ** 2).sum() - 0.5 * (z**2).sum() - log_q + shared

    @torch.no_grad()
    def true_elbo(self, num_draws: int) -> float:
        """ELBO, nats per point, with a Gaussian likelihood of variance 1/2 and closed-form divergences."""
        loc, log_scale = self._local()
        divergence = normal_divergence(loc, log_scale) / len(self.x)
        divergence += sum(normal_divergence(mean, log_sd) for mean, log_sd in self.factors) / len(self.x)
        errors = 0.0
        for _ in range(num_draws):
            drawn = [mean + log_sd.exp() * torch.randn_like(mean) for mean, log_sd in self.factors]
            y = decode(loc + log_scale.exp() * torch.randn_like(loc), drawn)
            errors += ((self.x - y) ** 2).sum().item() / num_draws
        return -errors / len(self.x) - 0.5 * math.log(math.pi) * self.x.shape[1] - float(divergence)


def decode(z: Tensor, drawn: list[Tensor]) -> Tensor:
    """Means of the pixels under drawn weights and biases, which alternate."""
    for place in range(0, len(drawn) - 2, 2):
        z = nn.functional.leaky_relu(nn.functional.linear(z, drawn[place], drawn[place + 1]), 0.2)
    return nn.functional.linear(z, drawn[-2], drawn[-1])


def normal_divergence(loc: Tensor, log_scale: Tensor) -> Tensor:
    """KL(N(loc, scale²) || N(0, 1)), summed."""
    return 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()


def published(family: str, x: Tensor, flags: Flags) -> dict[str, Any]:
    """Seconds of the published way, and the ELBO that it reaches."""
    way = Published(family, x)
    seconds = []
    for _ in range(PUBLISHED_STEPS if flags.whole else flags.timed):
        start = time.perf_counter()
        way.step()
        seconds.append(time.perf_counter() - start)
    if flags.whole:
        return {"target": way.true_elbo(flags.draws), "seconds": sum(seconds), "per_step": statistics.median(seconds)}
    per_step = statistics.median(seconds)
    return {"target": TARGETS[family], "seconds": per_step * PUBLISHED_STEPS, "per_step": per_step}


def ours(family: str, x: Tensor, target: float, flags: Flags) -> dict[str, Any]:
    """Seconds and steps at which our fit first has the target's ELBO, and its last ELBO."""
    torch.manual_seed(0)
    model = ab.DeepGenerative(
        x.shape[1], LATENTS, HIDDEN, len(x), likelihood="gaussian-learned", weight_prior="standard"
    )
    assert model.log_scale is not None
    model.log_scale.requires_grad_(False).fill_(LOG_SCALE)
    sites = ab.latent_sites(model, x[:2], torch.arange(2))
    starts = {name: draw / 16 for name, draw in sites.shared_draw.items()}  # draws of N(0, 1) would explode
    shared = ab.MeanField(sites.shared, locs=starts, log_scale=-4.5)
    guide = GUIDES[family].build(GuideSpec(sites.local, x, WIDTH, shared=shared, center=True))
    options = ab.FitOptions(
        batch_size=flags.batch_size,
        learning_rate=8e-3,
        shared_learning_rate=1e-2,
        shared_scale_learning_rate=5e-2,
        row_learning_rate=0.3,
        row_steps=2 if family == "factorized" else 1,
        local_reparametrization=True,
        average=None,
        schedule=linear,
        adam_beta2=0.99,
        capture="off",  # capturing takes longer than it saves in so few steps
    )
    training = Training(model, guide, x, options)
    reached: dict[str, Any] = {"reached_step": None, "seconds": None}
    value = math.nan
    curve = []
    for record in training.run(flags.steps, report_at=range(flags.every, flags.steps, flags.every)):
        value = score(model, guide, x, flags.draws)
        curve.append((record.step, record.seconds, value))
        if value >= target:
            reached = {"reached_step": record.step, "seconds": record.seconds}
            break
    return {**reached, "elbo": value, "curve": curve}


def score(model: nn.Module, guide: nn.Module, x: Tensor, num_draws: int) -> float:
    """True ELBO of all points, nats per point."""
    return ab.elbo(model, guide, x, torch.arange(len(x)), num_draws=num_draws).mean()[0]


def main(flags: Flags) -> None:
    """Run the race and print it."""
    threads = use_threads(flags.threads)
    if flags.quick:
        small = {"num_data": 60, "batch_size": 20, "steps": 4, "every": 2, "timed": 2, "draws": 2, "whole": False}
        flags = Flags(**{**asdict(flags), **small})
    if flags.quick:
        x = torch.rand(flags.num_data, PIXELS)
    else:
        x = torch.from_numpy(ab.load_dataset(flags.data, num_train=flags.num_data).train.pixels).float()
        x = x / x.max()
    if not (flags.whole or flags.quick) and (flags.data, len(x)) != ("mnist", 10_000):
        raise ValueError(f"expected --whole where data are not 10,000 of mnist, got {len(x):,} of {flags.data}")
    rows, figures = [], []
    for family in flags.families:
        theirs = published(family, x, flags)
        found = ours(family, x, theirs["target"], flags)
        ratio = theirs["seconds"] / found["seconds"] if found["seconds"] else None
        figures.append({"family": family, "published": theirs, "ours": found, "times_sooner": ratio})
        rows.append(
            (
                family,
                f"{theirs['target']:.1f}",
                f"{theirs['seconds']:.0f}",
                f"{found['seconds']:.2f}" if found["seconds"] else f"not in {flags.steps} steps ({found['elbo']:.1f})",
                str(found["reached_step"] or ""),
                f"{ratio:.0f}" if ratio else "",
            )
        )
    how = "all measured" if flags.whole else f"extrapolated from the median of {flags.timed} steps"
    headings = ("family", "true ELBO", "published way, s", "ours, s", "our steps", "times sooner")
    show_table(
        f"Seconds to the ELBO of {PUBLISHED_STEPS:,} published steps ({how}), {threads} threads",
        headings,
        rows,
        wide_console(),
    )
    for figure in figures:
        ratio = figure["times_sooner"]
        met = "met" if ratio and ratio >= SOONER else "fallen short of"
        print(f"{figure['family']}: target of {SOONER} times sooner {met}")
    around = surroundings(threads, torch.device("cpu"))
    write_json(
        flags.json,
        {"benchmark": "race", "environment": around, "settings": {**asdict(flags), "json": None}, "rows": figures},
        {f"{f['family']} / published way": [1 / f["times_sooner"]] for f in figures if f["times_sooner"]},
        quick=flags.quick,
    )


if __name__ == "__main__":
    try:
        main(tyro.cli(Flags, description=__doc__))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
