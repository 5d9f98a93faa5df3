"""What the tests of flows share: sites, guides with small networks, a model for any sites, parts that are known."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import biject_to, constraints

from amortized_bayes.flows import FlowSettings
from amortized_bayes.guides import FlowGuide
from amortized_bayes.guides.flow import LOG_SCALE_RANGE
from amortized_bayes.guides.local import INITIAL_LOG_SCALE
from amortized_bayes.types import LatentSite

N, P = 12, 5

SITES = {
    "scalar": LatentSite("z", torch.Size(), constraints.real),
    "vector": LatentSite("z", torch.Size([3]), constraints.independent(constraints.real, 1)),
    "matrix": LatentSite("z", torch.Size([2, 3]), constraints.independent(constraints.real, 2)),
    "positive": LatentSite("z", torch.Size([2]), constraints.independent(constraints.positive, 1)),
    "positive scalar": LatentSite("z", torch.Size(), constraints.positive),
    "unit interval": LatentSite("z", torch.Size([2, 2]), constraints.independent(constraints.unit_interval, 2)),
    "simplex": LatentSite("z", torch.Size([4]), constraints.simplex),
    "two simplexes": LatentSite("z", torch.Size([2, 3]), constraints.independent(constraints.simplex, 1)),
}
SEVERAL = [SITES[name]._replace(name=name) for name in ("scalar", "simplex", "matrix")]


def make(family, sites, observed=P, num_data=N, *, num_flows=2, hidden=(8, 8), width=6, **options):
    settings = FlowSettings(family, num_flows=num_flows, hidden=hidden, context=4)
    return FlowGuide(sites, num_data, observed, settings, width, **options)


def scrambled(guide, spread=0.3):
    """Parameters at a place where nothing is zero or alike."""
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return guide


class AnyPrior(nn.Module):
    """A model with given local sites, each standard normal on the unconstrained space, and x about their sum."""

    def __init__(self, sites):
        super().__init__()
        self.sites = sites

    def forward(self, x, index=None):
        total = 0.0
        with pyro.plate("data", len(x) if index is None else N, subsample=index):
            for site in self.sites:
                transform = biject_to(site.support)
                base = dist.Normal(torch.zeros(transform.inverse_shape(site.event_shape)), 1.0)
                prior = dist.TransformedDistribution(base, [transform])
                prior = prior.to_event(len(site.event_shape) - transform.codomain.event_dim)
                value = pyro.sample(site.name, prior)
                total = total + value.reshape(len(x), -1).sum(-1)
            pyro.sample("x", dist.Normal(total[:, None].expand(x.shape), 1.0).to_event(1), obs=x)


class Numbers(nn.Module):
    """A function in place of a network, so that exact parameters can be put into a guide."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *parts):
        return self.function(*parts)


def unclipped(log_scale, bound, centre=0.0):
    """What has to go into the soft clip for ``log_scale`` to come out."""
    return centre + bound * torch.atanh((log_scale - centre) / bound)


def encoder_of(model, scale, context_dim=0):
    """Exact posterior means with given scales (D,), and data for a context."""
    bounded = unclipped(scale.log(), LOG_SCALE_RANGE, INITIAL_LOG_SCALE)
    return Numbers(lambda x: torch.cat([model.posterior(x).mean, bounded.expand(len(x), -1), x[:, :context_dim]], -1))
