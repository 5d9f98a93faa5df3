"""Models of bits, with a parameter for each of N points in model and guide, so that a call draws N gradients."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

P = 3
"""Observed size."""


class Model(nn.Module):
    """Bits with log odds ``prior`` and x ~ N(bias + tanh(z V) W, 0.7²), z in {-1, 1}: bits are coupled a posteriori."""

    def __init__(self, num_data, num_bits, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.first, self.second = 1.5 * normal(num_bits, 4), normal(4, P)
        self.prior = normal(num_bits)
        self.bias = nn.Parameter(normal(P).repeat(num_data, 1))

    def mean(self, bits):
        return torch.tanh((2 * bits - 1) @ self.first) @ self.second

    def forward(self, x, index):
        with pyro.plate("data", len(x)):
            bits = pyro.sample("bits", dist.Bernoulli(logits=self.prior).expand([len(x), len(self.prior)]).to_event(1))
            pyro.sample("x", dist.Normal(self.bias[index] + self.mean(bits), 0.7).to_event(1), obs=x)

    def log_joint(self, x, codes):
        """Log p(x, code) of one point and each code, (R,), without Pyro."""
        log_prior = torch.where(codes.bool(), self.prior.sigmoid(), (-self.prior).sigmoid()).log().sum(1)
        return log_prior + torch.distributions.Normal(self.bias[0] + self.mean(codes), 0.7).log_prob(x).sum(1)


class ScalarModel(Model):
    """The same with a site for each bit, which can be enumerated by Pyro."""

    def forward(self, x, index):
        with pyro.plate("data", len(x)):
            sites = [pyro.sample(f"bit{d}", dist.Bernoulli(logits=prior)) for d, prior in enumerate(self.prior)]
            bits = torch.stack(torch.broadcast_tensors(*sites), -1)
            pyro.sample("x", dist.Normal(self.bias[index] + self.mean(bits), 0.7).to_event(1), obs=x)


class Guide(nn.Module):
    """Log odds of each bit of each of N points."""

    def __init__(self, num_data, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.repeat(num_data, 1))

    def forward(self, x, index):
        with pyro.plate("data", len(x)):
            pyro.sample("bits", dist.Bernoulli(logits=self.logits[index]).to_event(1))


class ScalarGuide(Guide):
    """The same with a site for each bit."""

    def forward(self, x, index):
        with pyro.plate("data", len(x)):
            for d, logits in enumerate(self.logits[index].unbind(1)):
                pyro.sample(f"bit{d}", dist.Bernoulli(logits=logits), infer={"enumerate": "parallel"})


class PlatedModel(Model):
    """The same with a plate of bits, (b, B)."""

    def forward(self, x, index):
        with pyro.plate("data", len(x)):
            with pyro.plate("each", len(self.prior)):
                bits = pyro.sample("bits", dist.Bernoulli(logits=self.prior[:, None]))
            pyro.sample("x", dist.Normal(self.bias[index] + self.mean(bits.mT), 0.7).to_event(1), obs=x)


class PlatedGuide(Guide):
    """The same."""

    def forward(self, x, index):
        with pyro.plate("data", len(x)), pyro.plate("each", self.logits.shape[1]):
            pyro.sample("bits", dist.Bernoulli(probs=self.logits[index].mT.sigmoid()))


FORMS = {"vector": (Model, Guide), "sites": (ScalarModel, ScalarGuide), "plate": (PlatedModel, PlatedGuide)}


def problem(num_data, num_bits, form="vector"):
    """Model, guide, and arguments: one point, N times."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(num_bits, generator=generator, dtype=torch.float64)
    x = torch.tensor([0.8, -0.5, 1.1], dtype=torch.float64).repeat(num_data, 1)
    kinds = FORMS[form]
    return kinds[0](num_data, num_bits), kinds[1](num_data, logits), (x, torch.arange(num_data))


def all_codes(num_bits):
    """(2^b, b)."""
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * num_bits).reshape(-1, num_bits)


def exact(model, guide, x):
    """The ELBO of the first point, and its gradients with respect to its log odds and bias, summed over codes."""
    codes = all_codes(guide.logits.shape[1])
    logits = guide.logits[0]
    log_q = torch.where(codes.bool(), logits.sigmoid(), (-logits).sigmoid()).log().sum(1)
    elbo = (log_q.exp() * (model.log_joint(x[0], codes) - log_q)).sum()
    by_logits, by_bias = torch.autograd.grad(elbo, [guide.logits, model.bias])
    return elbo.detach(), by_logits[0], by_bias[0]
