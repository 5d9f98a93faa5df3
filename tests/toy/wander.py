"""Random walks whose long loops are kept: what a kill, a full disk or a signal does to a run.

``python run_experiments.py wander`` takes a moment.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from amortized_bayes import cli, experiments
from amortized_bayes.configuration import Settings
from amortized_bayes.experiments.spec import Arrays, Job, Measured, Table, Work
from amortized_bayes.keeping import kept
from amortized_bayes.seeding import torch_generator


@dataclass(frozen=True)
class Config(Settings):
    """Walk at random.

    Args:
        walks: Number of walks, a job each.
        steps: Steps of a walk.
        pause: Seconds between two steps.
        seed: Random seed.
    """

    walks: int = 2
    steps: int = 3
    pause: float = 0.0
    seed: int = 0


PRESETS = {"quick": Config()}
TABLES = (Table(("walk",), ("place",), "Walks", apart=()),)
FIGURES = {}


def datasets(config, lab):
    del config, lab
    return ()


def jobs(config, lab) -> Iterator[Job]:
    for walk in range(config.walks):
        after = [f"walk={walk - 1}"] if walk and config.pause == 0 else []
        yield Job({"walk": walk}, partial(run, config, walk, lab), work=[Work("walk", 1, lambda: 1.0)], after=after)


def run(config, walk, lab):
    generator, step, z = torch_generator(config.seed, "walk", walk), 0, torch.zeros(4)
    yield Measured("start", float(walk))
    with kept("walk", lambda: [step, z], generator) as loop:
        if loop.found is not None:
            step, z = loop.found
        while step < config.steps:
            z = z + torch.randn(4, generator=generator)
            step += 1
            time.sleep(config.pause)
            lab.watch("walk", step, config.steps)
            loop.offer()
    yield Arrays({"z": z.numpy()})
    yield Measured("place", z.sum().item(), step=step)


if __name__ == "__main__":
    experiments.EXPERIMENTS["wander"] = "toy.wander"
    cli.main(sys.argv[1:])
