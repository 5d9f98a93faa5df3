"""Mixtures, and animals that are captured again: discrete latents that Pyro enumerates."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal
from torch import nn

from zoo.entry import Case, Exact, entry

K = 2
POINTS = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0, 0.5, 10.5, 11.5])


@config_enumerate
def gaussian_mixture(data):
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(K)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", K):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


@entry(
    "Gaussian mixture",
    after="Pyro tutorial: Gaussian mixture model with AutoDelta",
    plate="data",
    compare="there is nothing to amortize",
    diagnose="AutoDelta puts all mass on one point and has no density",
    know="enumerated assignments are summed out, and nothing is left per point",
)
def mixture():
    guide = AutoDelta(poutine.block(gaussian_mixture, expose=["weights", "locs", "scale"]))
    guide(POINTS)
    return Case(gaussian_mixture, guide, (POINTS,))


class MixtureOfFactors(nn.Module):
    """A cluster that is summed out, a code within it, and pixels: all Gaussian given the cluster."""

    def __init__(self, clusters=3, z_dim=2, x_dim=4):
        super().__init__()
        self.register_buffer("logits", torch.tensor([0.5, 0.0, -0.5])[:clusters])
        self.register_buffer("locs", 2.0 * torch.randn(clusters, z_dim))
        self.register_buffer("loadings", torch.randn(x_dim, z_dim))
        self.encoder = nn.Sequential(nn.Linear(x_dim, 16), nn.Tanh(), nn.Linear(16, 2 * z_dim))

    @config_enumerate
    def model(self, x):
        with pyro.plate("cells", x.shape[0]):
            c = pyro.sample("cluster", dist.Categorical(logits=self.logits))
            z = pyro.sample("z", dist.Normal(self.locs[c], 0.6).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.loadings.T, 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("cells", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (log_scale - 1).exp()).to_event(1))

    def evidence(self, x):
        w = self.loadings.double()
        covariance = 0.36 * w @ w.T + 0.25 * torch.eye(len(w)).double()
        parts = dist.MultivariateNormal(self.locs.double() @ w.T, covariance).log_prob(x.double()[:, None])
        return (parts + self.logits.double().log_softmax(-1)).logsumexp(-1)


@entry(
    "mixture of factor analyzers",
    after="Ghahramani & Hinton (1996), the cluster enumerated",
    plate="cells",
    has_exact=True,
    know="the cluster is summed out in both calls; the guide has none",
)
def clusters():
    net = MixtureOfFactors()
    c = torch.arange(18) % 3
    z = net.locs[c] + 0.6 * torch.randn(18, 2)
    x = z @ net.loadings.T + 0.5 * torch.randn(18, 4)
    return Case(net.model, net.guide, (x,), exact=lambda: Exact(net.evidence(x)))


def capture_recapture(capture_history):
    N, T = capture_history.shape
    phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    with pyro.plate("animals", N, dim=-1):
        z = torch.ones(N)
        first_capture_mask = torch.zeros(N).bool()
        for t in pyro.markov(range(T)):
            with poutine.mask(mask=first_capture_mask):
                mu_z_t = first_capture_mask.float() * phi * z + (1 - first_capture_mask.float())
                z = pyro.sample(f"z_{t}", dist.Bernoulli(mu_z_t), infer={"enumerate": "parallel"})
                pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=capture_history[:, t])
            first_capture_mask = first_capture_mask | capture_history[:, t].bool()


@entry(
    "capture and recapture",
    after="Pyro example: capture-recapture, a chain of discrete states",
    plate="animals",
    compare="there is nothing to amortize",
    diagnose="expected latents inside plate 'animals', got an autoguide of none",
    know="a chain of states is summed out, and nothing is left per animal",
)
def animals():
    history = torch.bernoulli(0.5 * torch.ones(12, 4))
    guide = AutoDiagonalNormal(poutine.block(capture_recapture, expose=["phi", "rho"]))
    guide(history)
    return Case(capture_recapture, guide, (history,))
