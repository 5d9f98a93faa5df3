"""Models whose latents are bits, with log p(x, z) written without Pyro, and guides that draw them."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_codes(num_bits):
    """(2^b, b), the last bit the lowest."""
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * num_bits).reshape(-1, num_bits)


class Belief(nn.Module):
    """A sigmoid belief net: bits with log odds ``prior``, x_p ~ Bernoulli with log odds W z + c."""

    def __init__(self, num_bits, observed=8, steep=2.0):
        super().__init__()
        self.prior, self.bias = 0.7 * normal(1, num_bits), normal(2, observed)
        self.weight = steep * normal(3, num_bits, observed)

    def likelihood(self, z):
        return dist.Bernoulli(logits=z @ self.weight + self.bias)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            prior = dist.Bernoulli(logits=self.prior.expand(len(x), -1)).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", self.likelihood(z).to_event(1), obs=x)

    def log_joint(self, x, z):
        """(R, B) of codes (R, b) and data (B, P)."""
        log_prior = torch.distributions.Bernoulli(logits=self.prior).log_prob(z).sum(-1)
        return log_prior[:, None] + self.likelihood(z[:, None]).log_prob(x).sum(-1)

    def table(self, x):
        """(B, 2^b)."""
        return self.log_joint(x, all_codes(len(self.prior))).T

    def simulate(self, count, seed=5):
        generator = torch.Generator().manual_seed(seed)
        z = torch.bernoulli(self.prior.sigmoid().expand(count, -1), generator=generator)
        return torch.bernoulli(self.likelihood(z).probs, generator=generator)


class NoisyOr(Belief):
    """A symptom shows if a leak or any of its causes makes it."""

    def __init__(self, num_bits, observed=8, leak=0.05):
        super().__init__(num_bits, observed)
        self.fails, self.leak = 0.9 * normal(4, num_bits, observed).sigmoid() + 0.05, leak

    def likelihood(self, z):
        silent = (z[..., None] * self.fails.log()).sum(-2).exp() * (1 - self.leak)
        return dist.Bernoulli(probs=1 - silent)


class Counted(Belief):
    """Counts of events of rates that bits add to: none without a bit that has a rate."""

    def __init__(self, num_bits, observed=8):
        super().__init__(num_bits, observed)
        self.rates = normal(9, num_bits, observed).clamp(min=0)

    def likelihood(self, z):
        return dist.Poisson(z @ self.rates)

    def simulate(self, count, seed=5):
        generator = torch.Generator().manual_seed(seed)
        z = torch.bernoulli(self.prior.sigmoid().expand(count, -1), generator=generator)
        return torch.poisson(z @ self.rates, generator=generator)


class Looked(Belief):
    """A table of means by code, which has no gradient in the bits: x ~ N(table[code], 1)."""

    def __init__(self, num_bits, observed=3):
        super().__init__(num_bits, observed)
        self.means = 1.5 * normal(6, 2**num_bits, observed)

    def likelihood(self, z):
        places = 2 ** torch.arange(z.shape[-1] - 1, -1, -1)
        return dist.Normal(self.means[(z.long() * places).sum(-1)], 1.0)

    def simulate(self, count, seed=5):
        generator = torch.Generator().manual_seed(seed)
        z = torch.bernoulli(self.prior.sigmoid().expand(count, -1), generator=generator)
        return self.likelihood(z).loc + torch.randn(count, 3, generator=generator, dtype=torch.float64)


class Apart(Belief):
    """x_d ~ N(z_d, 1): the bits of a point are independent in its posterior, with log odds prior + x - 1/2."""

    def likelihood(self, z):
        return dist.Normal(z, 1.0)


class Encoder(nn.Module):
    """Log odds of the bits by a linear network of the data."""

    def __init__(self, num_bits, observed=8, size=0.3):
        super().__init__()
        self.net = nn.Linear(observed, num_bits, dtype=torch.float64)
        self.net.weight.data = size * normal(7, num_bits, observed)
        self.net.bias.data = size * normal(8, num_bits)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.net(x)).to_event(1))


class Rows(nn.Module):
    """Log odds of each point's own."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x, index=None):
        with pyro.plate("data", len(x), dim=-1) as places:
            pyro.sample("z", dist.Bernoulli(logits=self.logits[places if index is None else index]).to_event(1))
