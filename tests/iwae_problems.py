"""Gaussian problems with one latent per point, on which gradients of importance-weighted bounds are integrals."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

NODES = {1: 200, 2: 120, 3: 50}
X, SCALE = 1.3, 0.6
START = {"loc": 0.2, "log_scale": -0.3, "weight": 0.8}
"""Location and log scale of q, and the model's weight: x ~ N(weight z, SCALE²)."""


def of_points(values, count):
    """Values of the first points, or of all of them repeated."""
    return values[:count] if count < len(values) else values.repeat(count // len(values))


class Model(nn.Module):
    """z ~ N(0, 1), x ~ N(w z, SCALE²), with a weight for each of N points, so that a call draws N gradients."""

    def __init__(self, num_data):
        super().__init__()
        self.weight = nn.Parameter(torch.full((num_data,), START["weight"]))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(of_points(self.weight, len(x)) * z, SCALE), obs=x)


class Guide(nn.Module):
    """q(z) = N(loc, exp(log_scale)²), with both for each point."""

    def __init__(self, num_data, **start):
        super().__init__()
        start = START | start
        self.loc = nn.Parameter(torch.full((num_data,), start["loc"]))
        self.log_scale = nn.Parameter(torch.full((num_data,), start["log_scale"]))

    def forward(self, x):
        loc, log_scale = (of_points(values, len(x)) for values in (self.loc, self.log_scale))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


class NoRepeats(Guide):
    """The same, of N points and no others: particles are drawn in turn."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc[: len(x)], self.log_scale[: len(x)].exp()))


def log_weight(z, values):
    """Log w of draws, and log q, at parameters ``values``."""
    log_q = dist.Normal(values["loc"], values["log_scale"].exp()).log_prob(z)
    log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(values["weight"] * z, SCALE).log_prob(torch.tensor(X))
    return log_p - log_q, log_q


def integrals(num_particles):
    """Expected bound; its gradients; and the expected gradient of the wake phase; by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES[num_particles])
    grid = torch.cartesian_prod(*[torch.tensor(nodes)] * num_particles).reshape(-1, num_particles)
    measure = torch.cartesian_prod(*[torch.tensor(weights / math.sqrt(2 * math.pi))] * num_particles)
    measure = measure.reshape(-1, num_particles).prod(-1)
    values = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in START.items()}
    z = values["loc"] + values["log_scale"].exp() * grid
    log_w, _ = log_weight(z, values)
    bound = (measure * (log_w.logsumexp(-1) - math.log(num_particles))).sum()
    gradients = dict(zip(START, torch.autograd.grad(bound, [*values.values()], retain_graph=True), strict=True))
    _, log_q = log_weight(z.detach(), values)
    wake = (measure * (log_w.detach().softmax(-1) * log_q).sum(-1)).sum()
    of_wake = torch.autograd.grad(wake, [values["loc"], values["log_scale"]])
    return bound.item(), gradients, gradients | dict(zip(("loc", "log_scale"), of_wake, strict=True))


def posterior():
    """Mean and standard deviation of p(z|x)."""
    precision = 1 + START["weight"] ** 2 / SCALE**2
    return START["weight"] * X / SCALE**2 / precision, precision**-0.5
