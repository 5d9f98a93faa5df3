"""Counts whose evidence and posterior are known: Gamma-Poisson, Dirichlet-multinomial; and factor analysis."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from zoo.entry import Case, Exact, entry

SHAPE, RATE = 3.0, 0.5


def shops(sales):
    with pyro.plate("shops", len(sales)):
        demand = pyro.sample("demand", dist.Gamma(SHAPE, RATE))
        with pyro.plate("days", sales.shape[-1], dim=-2):
            pyro.sample("sales", dist.Poisson(demand), obs=sales.T)


def demand_table(sales):
    with pyro.plate("shops", len(sales)):
        alpha = pyro.param("alpha", 20.0 * torch.ones(len(sales)), constraint=dist.constraints.positive, event_dim=0)
        mean = pyro.param("mean", 0.5 + sales.mean(-1), constraint=dist.constraints.positive, event_dim=0)
        pyro.sample("demand", dist.Gamma(alpha, alpha / mean))


@entry(
    "Gamma-Poisson",
    after="a conjugate textbook model; a table of Gamma distributions for a guide",
    plate="shops",
    has_exact=True,
    know="q* is searched among Gamma distributions",
)
def gamma_poisson():
    sales = torch.poisson(dist.Gamma(SHAPE, RATE).sample((14, 1)).expand(14, 5))

    def exact():
        counts = sales.double()
        shape, rate = SHAPE + counts.sum(-1), RATE + sales.shape[-1]
        prior = SHAPE * torch.tensor(RATE).double().log() - torch.lgamma(torch.tensor(SHAPE).double())
        log_p = prior + torch.lgamma(shape) - shape * torch.tensor(rate).log() - torch.lgamma(counts + 1).sum(-1)
        q = dist.Gamma(torch.full_like(shape, 20.0), 20.0 / (0.5 + counts.mean(-1)))
        posterior = dist.Gamma(shape, torch.full_like(shape, rate))
        return Exact(log_p, torch.distributions.kl_divergence(q, posterior), own_family=True)

    return Case(shops, demand_table, (sales,), exact=exact)


PRIOR = torch.tensor([2.0, 1.0, 0.5, 0.5])


class Pollster(nn.Module):
    """A Dirichlet whose pseudo-counts are near what the votes say."""

    def __init__(self, num_parties):
        super().__init__()
        self.extra = nn.Parameter(torch.full((num_parties,), 1.5))

    def model(self, votes, num_voters):
        with pyro.plate("districts", votes.shape[0]):
            share = pyro.sample("share", dist.Dirichlet(PRIOR))
            pyro.sample("votes", dist.Multinomial(num_voters, share), obs=votes)

    def guide(self, votes, num_voters):
        pyro.module("pollster", self)
        with pyro.plate("districts", votes.shape[0]):
            pyro.sample("share", dist.Dirichlet(0.8 * votes + self.extra))


@entry(
    "Dirichlet-multinomial",
    after="a conjugate textbook model; an amortized Dirichlet guide",
    plate="districts",
    has_exact=True,
    know="an integer beside the data; q* is searched among Dirichlet distributions",
)
def dirichlet_multinomial():
    votes = torch.stack([dist.Multinomial(30, share).sample() for share in dist.Dirichlet(PRIOR).sample((12,))])
    net = Pollster(4)

    def exact():
        counts = votes.double()
        log_p = dist.DirichletMultinomial(PRIOR.double(), 30.0).log_prob(counts)
        q, posterior = dist.Dirichlet(0.8 * counts + 1.5), dist.Dirichlet(PRIOR.double() + counts)
        return Exact(log_p, torch.distributions.kl_divergence(q, posterior), own_family=True)

    return Case(net.model, net.guide, (votes, 30), exact=exact)


class FactorAnalysis(nn.Module):
    """Some entries are missing; Pyro's `obs_mask` draws them."""

    def __init__(self, features=4, factors=2):
        super().__init__()
        self.loadings = nn.Parameter(torch.randn(features, factors))
        self.encoder = nn.Linear(2 * features, 2 * factors)

    def model(self, x, seen):
        pyro.module("factor_analysis", self)
        with pyro.plate("rows", len(x)):
            f = pyro.sample("factor", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("features", x.shape[1], dim=-2):
                pyro.sample("x", dist.Normal((f @ self.loadings.T).T, 0.5), obs=x.T, obs_mask=seen.T)

    def guide(self, x, seen):
        pyro.module("factor_analysis", self)
        with pyro.plate("rows", len(x)):
            loc, log_scale = self.encoder(torch.cat((x * seen, seen), -1)).chunk(2, -1)
            pyro.sample("factor", dist.Normal(loc, log_scale.exp()).to_event(1))
            with pyro.plate("features", x.shape[1], dim=-2):
                pyro.sample("x_unobserved", dist.Normal(torch.zeros(x.T.shape), 1.0).mask(~seen.T))


class MaskedFactorAnalysis(FactorAnalysis):
    """The same with masked likelihoods; what is missing stands as nan."""

    def model(self, x, seen):
        pyro.module("factor_analysis", self)
        with pyro.plate("rows", len(x)):
            f = pyro.sample("factor", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            known = torch.where(seen, x, torch.zeros(()))
            pyro.sample("x", dist.Normal(f @ self.loadings.T, 0.5).mask(seen).to_event(1), obs=known)

    def guide(self, x, seen):
        pyro.module("factor_analysis", self)
        with pyro.plate("rows", len(x)):
            inputs = torch.cat((torch.where(seen, x, torch.zeros(())), seen.float()), -1)
            loc, log_scale = self.encoder(inputs).chunk(2, -1)
            pyro.sample("factor", dist.Normal(loc, log_scale.exp()).to_event(1))


def incomplete():
    x = torch.randn(16, 2) @ torch.randn(2, 4) + 0.5 * torch.randn(16, 4)
    seen = torch.rand(16, 4) < 0.8
    seen[:, 0] |= ~seen.any(-1)  # of every row something
    return x, seen


def evidence_of_seen(net, x, seen):
    log_p = []
    for row, here in zip(x.double(), seen, strict=True):
        w = net.loadings.detach().double()[here]
        covariance = w @ w.T + 0.25 * torch.eye(len(w)).double()
        log_p.append(dist.MultivariateNormal(torch.zeros(len(w)).double(), covariance).log_prob(row[here]))
    return torch.stack(log_p)


@entry(
    "missing data, masked",
    after="factor analysis with masked likelihoods, nan where nothing was measured",
    plate="rows",
    has_exact=True,
    know="nan is refused only where it reaches a density",
)
def missing_masked():
    net = MaskedFactorAnalysis()
    x, seen = incomplete()
    holed = torch.where(seen, x, torch.tensor(float("nan")))
    return Case(net.model, net.guide, (holed, seen), exact=lambda: Exact(evidence_of_seen(net, x, seen)))


@entry(
    "missing data, obs_mask",
    after="factor analysis with Pyro's obs_mask",
    plate="rows",
    has_exact=True,
    know="missing entries are latents, so that the ELBO is lower than with masks",
)
def missing_sampled():
    net = FactorAnalysis()
    x, seen = incomplete()
    return Case(net.model, net.guide, (x, seen), exact=lambda: Exact(evidence_of_seen(net, x, seen)))
