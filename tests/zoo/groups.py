"""Hierarchies: schools, batters, counties, persons and items."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from torch import nn

from zoo.entry import Case, Exact, entry

J = 8
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


def schools_without_a_plate(data):
    y, sigma = data[:, 0], data[:, 1]
    eta = pyro.sample("eta", dist.Normal(torch.zeros(data.size(0)), torch.ones(data.size(0))).to_event(1))
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(25.0))
    pyro.sample("obs", dist.Normal(mu + tau * eta, sigma).to_event(1), obs=y)


@entry(
    "eight schools, no plate",
    after="Pyro example: eight schools by SVI",
    plate="data",
    compare="found plates: none",
    diagnose="found plates: none",
    know="put the schools into a plate: the next row",
)
def schools_svi():
    data = torch.stack([Y, SIGMA], dim=1)
    return Case(schools_without_a_plate, AutoNormal(schools_without_a_plate), (data,))


def schools(num_schools, sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(25.0))
    with pyro.plate("schools", num_schools):
        theta_raw = pyro.sample("theta_raw", dist.Normal(0.0, 1.0))
        return pyro.sample("obs", dist.Normal(mu + tau * theta_raw, sigma), obs=y)


@entry(
    "eight schools",
    after="Pyro example: eight schools by MCMC, a plate of constant size",
    plate="schools",
    compare="size its plate by the data, `len(x)`",
    know="`compare` needs `pyro.plate('schools', len(y))`; gaps are given draws of the shared latents",
)
def schools_plate():
    guide = AutoNormal(schools)
    guide(J, SIGMA, y=Y)
    return Case(schools, guide, (J, SIGMA), {"y": Y})


@entry(
    "eight schools, joint guide",
    after="Pyro example: eight schools with AutoMultivariateNormal",
    plate="schools",
    compare="size its plate by the data, `len(x)`",
    know="the same",
)
def schools_joint():
    guide = AutoMultivariateNormal(schools)
    guide(J, SIGMA, y=Y)
    return Case(schools, guide, (J, SIGMA), {"y": Y})


AT_BATS = torch.tensor([45.0] * 10 + [40.0, 38.0])
HITS = torch.tensor([18.0, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10])


def not_pooled(at_bats, hits):
    num_players = at_bats.shape[0]
    with pyro.plate("num_players", num_players):
        phi_prior = dist.Uniform(at_bats.new_tensor(0), at_bats.new_tensor(1))
        phi = pyro.sample("phi", phi_prior)
        return pyro.sample("obs", dist.Binomial(at_bats, probs=phi), obs=hits)


def beta_table(at_bats, hits):
    with pyro.plate("num_players", len(at_bats)):
        a = pyro.param("a", 5.0 * torch.ones(len(at_bats)), constraint=dist.constraints.positive)
        b = pyro.param("b", 12.0 * torch.ones(len(at_bats)), constraint=dist.constraints.positive)
        pyro.sample("phi", dist.Beta(a, b))


@entry(
    "baseball, not pooled",
    after="Pyro example: baseball; a table of Beta distributions for a guide",
    plate="num_players",
    has_exact=True,
    know="q* is searched among Beta distributions",
)
def baseball_alone():
    def exact():
        log_p = dist.BetaBinomial(torch.tensor(1.0), torch.tensor(1.0), AT_BATS).log_prob(HITS)
        q = dist.Beta(5.0 * torch.ones(12), 12.0 * torch.ones(12))
        posterior = dist.Beta(1 + HITS, 1 + AT_BATS - HITS)
        return Exact(log_p, torch.distributions.kl_divergence(q, posterior), own_family=True)

    return Case(not_pooled, beta_table, (AT_BATS, HITS), exact=exact)


def partially_pooled(at_bats, hits):
    num_players = at_bats.shape[0]
    m = pyro.sample("m", dist.Uniform(at_bats.new_tensor(0), at_bats.new_tensor(1)))
    kappa = pyro.sample("kappa", dist.Pareto(at_bats.new_tensor(1), at_bats.new_tensor(1.5)))
    with pyro.plate("num_players", num_players):
        phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        return pyro.sample("obs", dist.Binomial(at_bats, probs=phi), obs=hits)


@entry(
    "baseball, partially pooled",
    after="Pyro example: baseball, with AutoDiagonalNormal",
    plate="num_players",
    know="a joint autoguide of few points",
)
def baseball_pooled():
    guide = AutoDiagonalNormal(partially_pooled)
    guide(AT_BATS, HITS)
    return Case(partially_pooled, guide, (AT_BATS, HITS))


def fully_pooled(at_bats, hits):
    phi = pyro.sample("phi", dist.Uniform(at_bats.new_tensor(0), at_bats.new_tensor(1)))
    with pyro.plate("num_players", at_bats.shape[0]):
        return pyro.sample("obs", dist.Binomial(at_bats, probs=phi), obs=hits)


@entry(
    "baseball, fully pooled",
    after="Pyro example: baseball; no latent per player",
    plate="num_players",
    compare="there is nothing to amortize",
    diagnose="there is nothing to infer for each point",
    know="no latent per player",
)
def baseball_together():
    guide = AutoNormal(fully_pooled)
    guide(AT_BATS, HITS)
    return Case(fully_pooled, guide, (AT_BATS, HITS))


PRIOR_MEAN, PRIOR_SCALE, NOISE = 1.3, 0.5, 0.8
"""Of a county's level of radon, and of a home's about it."""


def radon(log_radon, has_basement):
    """Counties of several homes each, in plates within each other."""
    slope = pyro.param("slope", torch.tensor(0.6))
    counties = pyro.plate("counties", log_radon.shape[0], dim=-2)
    homes = pyro.plate("homes", log_radon.shape[1], dim=-1)
    with counties:
        level = pyro.sample("level", dist.Normal(PRIOR_MEAN, PRIOR_SCALE))
        with homes:
            pyro.sample("log_radon", dist.Normal(level + slope * has_basement, NOISE), obs=log_radon)


class CountyEncoder(nn.Module):
    def __init__(self, num_homes):
        super().__init__()
        self.net = nn.Linear(2 * num_homes, 2)

    def forward(self, log_radon, has_basement):
        loc, log_scale = self.net(torch.cat((log_radon, has_basement), -1)).split(1, -1)
        return loc, torch.exp(0.1 * log_scale - 1.0)


@entry(
    "nested plates",
    after="Gelman & Hill (2007): radon; homes within counties",
    plate="counties",
    has_exact=True,
    know="the plate is named: there are two; its `dim` is −2",
)
def counties():
    has_basement = torch.bernoulli(0.5 * torch.ones(15, 4))
    level = PRIOR_MEAN + PRIOR_SCALE * torch.randn(15, 1)
    log_radon = level + 0.6 * has_basement + NOISE * torch.randn(15, 4)
    encoder = CountyEncoder(4)

    def guide(log_radon, has_basement):
        pyro.module("encoder", encoder)
        with pyro.plate("counties", log_radon.shape[0], dim=-2):
            pyro.sample("level", dist.Normal(*encoder(log_radon, has_basement)))

    def exact():
        left = (log_radon - 0.6 * has_basement).double()
        covariance = NOISE**2 * torch.eye(4).double() + PRIOR_SCALE**2
        log_p = dist.MultivariateNormal(torch.full((4,), PRIOR_MEAN).double(), covariance).log_prob(left)
        precision = PRIOR_SCALE**-2 + 4 * NOISE**-2
        mean = (PRIOR_MEAN * PRIOR_SCALE**-2 + left.sum(-1) * NOISE**-2) / precision
        with torch.no_grad():
            loc, scale = (part.squeeze(-1).double() for part in encoder(log_radon, has_basement))
        posterior = dist.Normal(mean, torch.tensor(precision).double().rsqrt())
        return Exact(log_p, torch.distributions.kl_divergence(dist.Normal(loc, scale), posterior), own_family=True)

    return Case(radon, guide, (log_radon, has_basement), exact=exact)


def two_parameter_logistic(responses, answered):
    """Persons across items, both plates sized; not everybody was asked everything."""
    persons = pyro.plate("persons", responses.shape[0], dim=-2)
    items = pyro.plate("items", responses.shape[1], dim=-1)
    with items:
        difficulty = pyro.sample("difficulty", dist.Normal(0.0, 1.0))
        discrimination = pyro.sample("discrimination", dist.LogNormal(0.0, 0.3))
    with persons:
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
    with persons, items, pyro.poutine.mask(mask=answered):
        logits = discrimination * (ability - difficulty)
        pyro.sample("correct", dist.Bernoulli(logits=logits), obs=responses)


class PersonEncoder(nn.Module):
    def __init__(self, num_items):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * num_items, 8), nn.ELU(), nn.Linear(8, 2))
        self.item_loc = nn.Parameter(torch.zeros(2, num_items))

    def guide(self, responses, answered):
        pyro.module("person_encoder", self)
        with pyro.plate("items", responses.shape[1], dim=-1):
            pyro.sample("difficulty", dist.Normal(self.item_loc[0], 0.3))
            pyro.sample("discrimination", dist.LogNormal(self.item_loc[1], 0.1))
        asked = answered.float()
        with pyro.plate("persons", responses.shape[0], dim=-2):
            loc, log_scale = self.net(torch.cat((responses * asked, asked), -1)).split(1, -1)
            pyro.sample("ability", dist.Normal(loc, log_scale.exp()))


@entry(
    "item response",
    after="Wu et al. (2020): two-parameter logistic, amortized over persons",
    plate="persons",
    know="crossed plates, shared latents of the items, masked answers",
)
def item_response():
    ability, difficulty = torch.randn(20, 1), torch.randn(6)
    responses = torch.bernoulli(torch.sigmoid(ability - difficulty))
    answered = torch.rand(20, 6) < 0.8
    return Case(two_parameter_logistic, PersonEncoder(6).guide, (responses, answered))


def answers_in_rows(models, items, obs):
    """A row per answer, as py-irt has it: who, to what, right or wrong."""
    num_subjects, num_items = int(models.max()) + 1, int(items.max()) + 1
    with pyro.plate("thetas", num_subjects):
        ability = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("bs", num_items):
        diff = pyro.sample("b", dist.Normal(0.0, 3.0))
    with pyro.plate("observe_data", obs.size(0)):
        pyro.sample("obs", dist.Bernoulli(logits=ability[models] - diff[items]), obs=obs)


def tables_of_both(models, items, obs):
    num_subjects, num_items = int(models.max()) + 1, int(items.max()) + 1
    m_theta = pyro.param("loc_ability", torch.zeros(num_subjects))
    s_theta = pyro.param("scale_ability", torch.ones(num_subjects), constraint=dist.constraints.positive)
    m_b = pyro.param("loc_diff", torch.zeros(num_items))
    s_b = pyro.param("scale_diff", torch.ones(num_items), constraint=dist.constraints.positive)
    with pyro.plate("thetas", num_subjects):
        pyro.sample("theta", dist.Normal(m_theta, s_theta))
    with pyro.plate("bs", num_items):
        pyro.sample("b", dist.Normal(m_b, s_b))


@entry(
    "item response, long format",
    after="py-irt: one-parameter logistic, a row per answer",
    plate="thetas",
    compare="expected plate 'thetas' to hold the points",
    diagnose="expected plate 'thetas' to hold the points",
    know="pass a row per person, with a mask of what was asked: the row above",
)
def item_response_rows():
    who, what = torch.cartesian_prod(torch.arange(10), torch.arange(5)).unbind(-1)
    obs = torch.bernoulli(torch.sigmoid(torch.randn(10)[who] - torch.randn(5)[what]))
    return Case(answers_in_rows, tables_of_both, (who, what, obs))


def random_intercepts(visits, severity):
    """Patients of whom the program draws some itself; severity is a numpy array, as it was loaded."""
    effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    with pyro.plate("patients", len(visits), subsample_size=8) as ind:
        intercept = pyro.sample("intercept", dist.Normal(0.0, 0.7))
        rate = torch.exp(intercept + effect * torch.as_tensor(severity, dtype=torch.float32)[ind])
        pyro.sample("visits", dist.Poisson(rate), obs=visits[ind])


def intercept_table(visits, severity):
    pyro.sample("effect", dist.Normal(pyro.param("effect_loc", torch.tensor(0.0)), 0.1))
    loc = pyro.param("intercept_loc", torch.zeros(len(visits)))
    scale = pyro.param("intercept_scale", 0.5 * torch.ones(len(visits)), constraint=dist.constraints.positive)
    with pyro.plate("patients", len(visits), subsample_size=8) as ind:
        pyro.sample("intercept", dist.Normal(loc[ind], scale[ind]))


@entry(
    "own subsample",
    after="Pyro tutorial: SVI part II; the plate draws its subsample",
    plate="patients",
    compare="or take `index` and pass `subsample=index`",
    diagnose="or take `index` and pass `subsample=index`",
    know="leave the subsampling to the call",
)
def subsampled():
    severity = np.linspace(-1, 1, 20)
    visits = torch.poisson(torch.exp(0.5 * torch.as_tensor(severity, dtype=torch.float32) + 0.7 * torch.randn(20)))
    return Case(random_intercepts, intercept_table, (visits, severity))


EXPOSURE = torch.linspace(0.5, 4.0, 16)


def claims_and_evidence():
    found = torch.poisson(EXPOSURE * dist.Gamma(2.0, 1.0).sample((16,)))

    def exact():
        total = torch.lgamma(found + 2) - torch.lgamma(found + 1) - math.lgamma(2.0)
        return Exact(total + found * (EXPOSURE / (1 + EXPOSURE)).log() - 2 * (1 + EXPOSURE).log())

    return found, exact


def closed_over(claims):
    """The exposure of each policy is a global, as a notebook has it."""
    with pyro.plate("policies", len(EXPOSURE)):
        risk = pyro.sample("risk", dist.Gamma(2.0, 1.0))
        pyro.sample("claims", dist.Poisson(EXPOSURE * risk), obs=claims)


def risk_table(claims):
    with pyro.plate("policies", len(EXPOSURE)):
        loc = pyro.param("risk_loc", torch.zeros(len(EXPOSURE)))
        pyro.sample("risk", dist.LogNormal(loc, 0.5))


@entry(
    "closed-over data",
    after="an insurer's notebook: exposures as a global",
    plate="policies",
    has_exact=True,
    compare="close over no data",
    diagnose="pass all data as arguments instead of closing over them",
    know="pass the exposures as an argument: the next row",
)
def claims():
    found, exact = claims_and_evidence()
    return Case(closed_over, risk_table, (found,), exact=exact)


def with_exposure(claims, exposure):
    with pyro.plate("policies", len(claims)):
        risk = pyro.sample("risk", dist.Gamma(2.0, 1.0))
        pyro.sample("claims", dist.Poisson(exposure * risk), obs=claims)


class Actuary(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)

    def guide(self, claims, exposure):
        pyro.module("actuary", self)
        with pyro.plate("policies", len(claims)):
            loc, log_scale = self.net(torch.stack((claims, exposure), -1)).unbind(-1)
            pyro.sample("risk", dist.LogNormal(0.1 * loc, (0.1 * log_scale).exp()))


@entry(
    "exposures passed",
    after="the same, exposures as an argument",
    plate="policies",
    has_exact=True,
    know="the row above, changed as its line says",
)
def exposures():
    claims, exact = claims_and_evidence()
    return Case(with_exposure, Actuary().guide, (claims, EXPOSURE), exact=exact)
