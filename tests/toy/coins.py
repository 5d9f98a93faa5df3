"""How often a coin falls on heads: an experiment of its own, as docs/add_an_experiment.md adds one.

``python run_experiments.py coins`` takes a second; expect the share of heads near each coin's probability.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from amortized_bayes.configuration import AtLeast, Different, Settings
from amortized_bayes.experiments.spec import Arrays, Job, Measured, Points, Table, Work


@dataclass(frozen=True)
class Config(Settings):
    """Throw coins.

    Args:
        coins: Probabilities of heads.
        throws: Throws of each coin.
        seed: Random seed.
    """

    coins: Annotated[tuple[float, ...], Different(), AtLeast(0)] = (0.2, 0.5)
    throws: Annotated[int, AtLeast(1)] = 100
    seed: Annotated[int, AtLeast(0)] = 0


def findings(rows):
    """Sentences about what was found."""
    yield f"{len(rows[rows['metric'] == 'heads'])} coins were thrown."


PRESETS = {"quick": Config(), "paper": Config(throws=1_000)}
TABLES = (Table(rows=("coin",), columns=("heads", "throws"), title="Coins", apart=()),)
FINDINGS = (findings,)
FIGURES = {"coins": (Points(x="coin", y="heads"),)}


def datasets(config, lab):
    del config, lab
    return ()


def jobs(config, lab) -> Iterator[Job]:
    for coin in config.coins:
        yield Job({"coin": coin}, lambda c=coin: throw(config, c, lab), work=[Work("throws", 1, lambda: 0.01, "habit")])


def throw(config, coin, lab):
    if coin > 1:
        raise ArithmeticError(f"no coin falls on heads with probability {coin:g}")
    heads = np.random.default_rng([config.seed, round(1000 * coin)]).random(config.throws) < coin
    lab.watch("throws", config.throws, config.throws)
    yield Measured("heads", float(heads.mean()), float(heads.std() / config.throws**0.5), "points", status="ok")
    yield Measured("throws", float(config.throws))
    yield Arrays({"heads": heads})
