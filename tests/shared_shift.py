"""Models whose bounds are known exactly, one with a latent that all points share, and guides near the best."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import MultivariateNormal

from amortized_bayes.guides import Factorized
from amortized_bayes.sites import latent_sites

N = 12
EVERY = torch.arange(N)


def rows_near_the_optimum(model, x, excess=0.0):
    """A factorized guide at the best Gaussian of each point, its log scales ``excess`` too large."""
    best = -0.5 * model.posterior_precision().diagonal().log()
    start = torch.cat([model.posterior(x).mean, (best + excess).expand(len(x), -1)], 1)
    return Factorized(latent_sites(model, x).local, len(x), start=start)


class SharedShift:
    """A model with a shared latent: theta ~ N(0, v I), z ~ N(0, I), x ~ N(theta + W z, s^2 I)."""

    def __init__(self, linear, prior_variance=0.5):
        self.linear, self.variance = linear, prior_variance

    def __call__(self, x, index=None):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(5), math.sqrt(self.variance)).to_event(1))
        with pyro.plate("data", len(x) if index is None else N, subsample=index):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = theta + z @ self.linear.weight.T
            pyro.sample("x", dist.Normal(mean, self.linear.scale).to_event(1), obs=x)

    def guide(self, loc, variance):
        """A Gaussian q(theta), and the exact posterior of z given theta."""

        def guide(x, index=None):
            theta = pyro.sample("theta", dist.Normal(loc, math.sqrt(variance)).to_event(1))
            with pyro.plate("data", len(x) if index is None else N, subsample=index):
                pyro.sample("z", self.linear.posterior(x - theta + self.linear.bias))

        return guide

    def marginal_covariance(self):
        return self.linear.weight @ self.linear.weight.T + self.linear.scale**2 * torch.eye(5)

    def log_predictive(self, x, loc, variance):
        return MultivariateNormal(loc, self.marginal_covariance() + variance * torch.eye(5)).log_prob(x)

    def shared_kl(self, loc, variance):
        ratio = variance / self.variance
        return 0.5 * (loc.square().sum() / self.variance + 5 * (ratio - 1 - math.log(ratio)))

    def expected_log_evidence(self, x, loc, variance):
        """E_q(theta) log p(x | theta), (B,)."""
        covariance = self.marginal_covariance()
        spread = variance * torch.linalg.inv(covariance).trace()
        return MultivariateNormal(loc, covariance).log_prob(x) - 0.5 * spread
