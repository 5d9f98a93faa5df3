"""A guide of one's own in the race: does a Gamma for each point fit better than the log-normal that is the default?

Counts with a Gamma rate per row have a Gamma posterior, so that this guide can be exact: what is left is its network's.

    pip install -e . && python examples/own_guide.py
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import amortized_bayes as ab


def model(counts: Tensor) -> None:
    """Three counts per row, of one rate."""
    with pyro.plate("rows", len(counts)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
        pyro.sample("counts", dist.Poisson(rate[:, None].expand(-1, 3)).to_event(1), obs=counts)


network = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))


def gammas(counts: Tensor) -> None:
    """A Gamma for each row, its shape and rate from a network."""
    pyro.module("network", network)
    with pyro.plate("rows", len(counts)):
        shape, rate = nn.functional.softplus(network(counts)).clamp_min(1e-3).unbind(-1)
        pyro.sample("rate", dist.Gamma(shape, rate))


def main() -> None:
    """Race it against our guides."""
    torch.manual_seed(0)
    counts = dist.Poisson(dist.Gamma(2.0, 0.5).sample((300, 1)).expand(-1, 3)).sample()
    settings = ab.ComparisonSettings(epochs=100, rungs=3)
    report = ab.compare(model, counts, widths=(16,), guides={"gammas": gammas}, settings=settings, progress=False)
    print(report)


if __name__ == "__main__":
    main()
