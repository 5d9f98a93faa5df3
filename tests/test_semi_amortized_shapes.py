"""Semi-amortized guides of models of other shapes: steps lead to the posterior in their family."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import amortized_bayes as ab

pytestmark = pytest.mark.usefixtures("float64")
N = 5
NOISE = 0.6
LEVELS = torch.linspace(-1.5, 1.5, N, dtype=torch.float64)
COLUMNS = torch.stack([LEVELS, 0.5 - LEVELS, LEVELS.square()], -1)


def normal(x, noise=NOISE):
    """Log evidence of N(z, noise) with a standard normal z."""
    return dist.Normal(0.0, math.hypot(1.0, noise)).log_prob(x)


class Several(nn.Module):
    """A number and a vector."""

    def forward(self, x):
        with pyro.plate("rows", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.cat([a[:, None], b], -1), NOISE).to_event(1), obs=x)


class Positive(nn.Module):
    """A latent above 0 whose logarithm is measured, beside one in (0, 1) whose log odds are."""

    def forward(self, x):
        unit = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.SigmoidTransform()])
        with pyro.plate("rows", len(x)):
            u = pyro.sample("u", dist.LogNormal(0.0, 1.0))
            p = pyro.sample("p", unit)
            seen = torch.stack([u.log(), p.logit()], -1)
            pyro.sample("x", dist.Normal(seen, NOISE).to_event(1), obs=x[:, :2])


class Enumerated(nn.Module):
    """A label that is summed out, beside a latent that is not."""

    def forward(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.8])), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z, NOISE), obs=x[:, 0])
            pyro.sample("y", dist.Normal(3.0 * k, 1.0), obs=x[:, 1])


class Nested(nn.Module):
    """A plate of columns inside that of rows, which is at dim -2."""

    def forward(self, x):
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x)


class Batches(nn.Module):
    """A dictionary with noise of each point's own, and a number that all share."""

    def forward(self, batch, scale):
        with pyro.plate("rows", len(batch["x"])):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(scale * z, batch["noise"]), obs=batch["x"])


def labelled(x):
    parts = torch.stack([dist.Normal(3.0 * k, 1.0).log_prob(x[:, 1]) + math.log(p) for k, p in ((0, 0.2), (1, 0.8))])
    return normal(x[:, 0]) + parts.logsumexp(0)


SPREAD = torch.linspace(0.4, 1.2, N, dtype=torch.float64)
CASES = {
    "several latents": (Several(), (COLUMNS,), normal(COLUMNS).sum(-1), None),
    "constrained supports": (Positive(), (COLUMNS,), normal(COLUMNS[:, :2]).sum(-1), None),
    "an enumerated label": (Enumerated(), (COLUMNS,), labelled(COLUMNS), None),
    "nested plates": (Nested(), (COLUMNS,), normal(COLUMNS).sum(-1), None),
    "a dictionary": (
        Batches(),
        ({"x": LEVELS, "noise": SPREAD}, 2.0),
        dist.Normal(0.0, (4 + SPREAD.square()).sqrt()).log_prob(LEVELS),
        lambda batch, scale: torch.stack([batch["x"], batch["noise"]], -1),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_steps_lead_to_the_posterior_where_it_is_in_the_family(case):
    """Then every weight is the evidence, whichever points are in the batch."""
    model, args, exact, shown = case
    torch.manual_seed(0)
    sites = ab.latent_sites(model, *args, plate="rows").local
    observed = 2 if shown else 3
    start = ab.Amortized(sites, N, observed, width=4, plate="rows", encoder_input=shown)
    guide = ab.SemiAmortized(model, start, 60, learning_rate=0.5)
    found = ab.log_weights(model, guide, *args, plate="rows", num_particles=2).local[0]
    torch.testing.assert_close(found, exact.expand(2, N), rtol=0, atol=1e-5)
    plain = ab.log_weights(model, start, *args, plate="rows", num_particles=2).local[0]
    assert (plain - exact).abs().mean() > 0.1
