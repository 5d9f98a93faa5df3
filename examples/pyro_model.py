"""A Pyro model of one's own: does amortizing cost anything, and is the answer right?

Batting skills of players, each a Beta variable: log p(x) of a Beta-binomial is known, so the estimates can be checked.

    pip install -e . && python examples/pyro_model.py
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import amortized_bayes as ab


def batting(at_bats: Tensor, hits: Tensor) -> None:
    """Each player has a skill of their own; rows are players."""
    with pyro.plate("players", len(hits)):
        skill = pyro.sample("skill", dist.Beta(8.0, 22.0))
        pyro.sample("hits", dist.Binomial(at_bats, skill), obs=hits)


def main() -> None:
    """Ask whether, compare, diagnose."""
    torch.manual_seed(0)
    at_bats = torch.randint(20, 200, (300,)).float()
    hits = dist.Binomial(at_bats, dist.Beta(8.0, 22.0).sample((300,))).sample()

    print(ab.can_amortize(batting, at_bats, hits))
    settings = ab.ComparisonSettings(epochs=100, rungs=3)
    report = ab.compare(batting, at_bats, hits, widths=(1, 16), settings=settings, progress=False)
    print(report)

    found = ab.diagnose(batting, report.best.apply().guide, at_bats, hits)
    print(found)
    exact = dist.BetaBinomial(8.0, 22.0, at_bats).log_prob(hits).mean()
    print(f"log p(x) is {exact:.3f} nats per player; estimated: {found.summary().loc['iwae', 'mean']:.3f}")


if __name__ == "__main__":
    main()
