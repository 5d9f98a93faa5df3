"""Models of which it is known whether, and how, the inference of one point depends on other points."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate

N = 10
PARALLEL = {"enumerate": "parallel"}


def normal(loc, scale=1.0):
    return dist.Normal(loc, scale)


def linear(x):
    theta = pyro.sample("theta", normal(0.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(torch.zeros(())))
        pyro.sample("x", normal(theta + 1.155 * z, 2.43), obs=x)


def two_levels(x):
    """Groups of points: a group is a point here."""
    mu = pyro.sample("mu", normal(0.0))
    with pyro.plate("groups", x.shape[0], dim=-2):
        eta = pyro.sample("eta", normal(mu))
        with pyro.plate("members", x.shape[1], dim=-1):
            z = pyro.sample("z", normal(eta))
            pyro.sample("x", normal(z), obs=x)


def members_of_groups(x, group):
    """The same, in long format."""
    mu = pyro.sample("mu", normal(0.0))
    with pyro.plate("groups", 3):
        eta = pyro.sample("eta", normal(mu))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(eta[group]))
        pyro.sample("x", normal(z), obs=x)


def saw(x):
    """z_n ~ N(x_n, 1), x_(n+1) ~ N(a (z_n + theta), 1): one row more than there are latents."""
    theta = pyro.sample("theta", normal(0.0))
    with pyro.plate("data", len(x) - 1):
        z = pyro.sample("z", normal(x[:-1]))
        pyro.sample("x", normal(0.75 * (z + theta)), obs=x[1:])


def walk(x):
    """A random walk, all of it at one site."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(0.0))
        before = torch.cat([torch.zeros_like(z[:1]), z[:-1]])
        pyro.factor("steps", normal(before).log_prob(z) - normal(torch.zeros(())).log_prob(z))
        pyro.sample("x", normal(z), obs=x)


def markov_walk(x):
    z = torch.zeros(())
    for n in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{n}", normal(z))
        pyro.sample(f"x_{n}", normal(z), obs=x[n])


def unrolled_without_ties(x):
    theta = pyro.sample("theta", normal(0.0))
    for n in range(len(x)):
        z = pyro.sample(f"z{n + 1}", normal(theta))
        pyro.sample(f"x{n + 1}", normal(z), obs=x[n])


def turns_of_a_plate(x):
    for n in pyro.plate("data", len(x)):
        z = pyro.sample(f"z_{n}", normal(torch.zeros(())))
        pyro.sample(f"x_{n}", normal(z), obs=x[n])


def kernel(count, length=2.0):
    t = torch.arange(float(count))
    return torch.exp(-0.5 * ((t[:, None] - t) / length) ** 2) + 1e-3 * torch.eye(count)


def gaussian_process(x):
    """One latent per point, all in one draw outside the plate."""
    f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(x)), kernel(len(x))))
    with pyro.plate("data", len(x)):
        pyro.sample("x", normal(f), obs=x)


def whitened_process(x):
    """The same, of draws inside the plate."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(torch.zeros(())))
        pyro.sample("x", normal(torch.linalg.cholesky(kernel(len(x))) @ z), obs=x)


def running_sum(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(torch.zeros(())))
        pyro.sample("x", normal(z.cumsum(0)), obs=x)


def batch_norm(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(torch.zeros(3)).to_event(1))
        hidden = (z - z.mean(0)) / (z.var(0) + 0.1).sqrt()
        pyro.sample("x", normal(hidden).to_event(1), obs=x)


def data_norm(x):
    """What a latent's prior is depends on the mean of all data."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(x.mean(0)).to_event(1))
        pyro.sample("x", normal(z).to_event(1), obs=x)


def regression(x, y):
    beta = pyro.sample("beta", normal(torch.zeros(x.shape[1])).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", normal(x @ beta), obs=y)


def random_effects(x, y):
    beta = pyro.sample("beta", normal(torch.zeros(x.shape[1])).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("y", dist.Poisson(z * torch.exp(x @ beta)), obs=y)


@config_enumerate
def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    locs = pyro.sample("locs", normal(torch.zeros(3)).to_event(1))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", normal(locs[k]), obs=x)


def local_discrete(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.3), infer=PARALLEL)
        z = pyro.sample("z", normal(2 * k))
        pyro.sample("x", normal(z), obs=x)


def ising(x):
    """A chain of spins."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
        spin = 2 * k - 1
        pyro.factor("pairs", torch.cat([spin[:-1] * spin[1:], torch.zeros(1)]))
        pyro.sample("x", normal(spin), obs=x)


def discrete_neighbour(x):
    """A count depends on the binary latent of the point before it, which no derivative shows."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
        rate = 1 + k + torch.cat([torch.zeros(1), k[:-1]])
        pyro.sample("x", dist.Poisson(rate), obs=x)


def pairs_of_points(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(torch.zeros(())))
        both = z.reshape(-1, 2).sum(-1, keepdim=True).expand(-1, 2).reshape(-1)
        pyro.sample("x", normal(both), obs=x)


def by_step(x):
    """Tied by a step: all mixed derivatives are zero."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(torch.zeros(())))
        pyro.sample("x", normal(z * (1 + (torch.cat([z[:1] * 0, z[:-1]]) > 0).to(z))), obs=x)


def two_rows_before(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(torch.zeros(())))
        pyro.sample("x", normal(z * (1 + torch.cat([x[:2] * 0, x[:-2]]))), obs=x)


def own_parameters(x):
    loc = torch.linspace(-1, 1, len(x))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(loc))
        pyro.sample("x", normal(z), obs=x)


def sequences(x):
    """A plate over sequences: a sequence is a point."""
    with pyro.plate("data", len(x)):
        z = torch.zeros(len(x))
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", normal(z))
            pyro.sample(f"x_{t}", normal(z), obs=x[:, t])


def draw_outside(x):
    """Latents of all points in one draw outside the plate, independent of each other."""
    f = pyro.sample("f", normal(torch.zeros(len(x))).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", normal(f), obs=x)


def parameters_passed(x, loc):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(loc))
        pyro.sample("x", normal(z), obs=x)


def counted(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(torch.zeros(())))
        pyro.sample("x", dist.Poisson(z.exp()), obs=x)


def far_partners(x):
    """The first point and the last one meet, and no others."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(torch.zeros(())))
        with_partner = torch.cat([z[:1] + z[-1:], z[1:]])
        pyro.sample("x", normal(with_partner), obs=x)
