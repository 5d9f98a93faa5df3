"""Guides with a row per point, however Pyro lets one write them: every number is exact."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.easyguide import EasyGuide
from torch.distributions import constraints

import amortized_bayes as ab

NOISE, N = 0.5, 6
X = torch.linspace(-1.5, 2, N)[:, None]
LOC = torch.linspace(-1, 1, N)
SCALE = torch.linspace(0.4, 0.8, N)
QUICK = ab.DiagnosisSettings(
    num_particles=200, ais=ab.AISSettings(num_temperatures=40), certificate=ab.CertificateSettings(20, 0.1, 40)
)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[:, None], NOISE).to_event(1), obs=x)


def exact_elbo():
    likelihood = -0.5 * math.log(2 * math.pi * NOISE**2) - ((X[:, 0] - LOC) ** 2 + SCALE**2) / (2 * NOISE**2)
    return likelihood - 0.5 * (LOC**2 + SCALE**2 - 1 - 2 * SCALE.log())


def exact_log_p():
    return dist.Normal(0.0, math.sqrt(1 + NOISE**2)).log_prob(X[:, 0])


def plain_table(x):
    loc, scale = pyro.param("loc", LOC.clone()), pyro.param("scale", SCALE.clone(), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, scale))


def indexed_table(x):
    loc, scale = pyro.param("loc", LOC.clone()), pyro.param("scale", SCALE.clone(), constraint=constraints.positive)
    with pyro.plate("data", len(x)) as index:
        pyro.sample("z", dist.Normal(loc[index], scale[index]))


def table_with_event_dim(x):
    with pyro.plate("data", len(x)):
        loc = pyro.param("loc", LOC.clone(), event_dim=0)
        scale = pyro.param("scale", SCALE.clone(), constraint=constraints.positive, event_dim=0)
        pyro.sample("z", dist.Normal(loc, scale))


def closed_tensors(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(LOC, SCALE))


class Easy(EasyGuide):
    def guide(self, x):
        with self.plate("data", len(x)):
            loc = pyro.param("loc", LOC.clone(), event_dim=0)
            scale = pyro.param("scale", SCALE.clone(), constraint=constraints.positive, event_dim=0)
            pyro.sample("z", dist.Normal(loc, scale))


class EasyGroup(EasyGuide):
    def guide(self, x):
        group = self.group(match="z")
        with self.plate("data", len(x)):
            loc = pyro.param("loc", LOC[:, None].clone(), event_dim=1)
            scale = pyro.param("scale", SCALE[:, None].clone(), constraint=constraints.positive, event_dim=1)
            group.sample("group", dist.Normal(loc, scale).to_event(1))


GUIDES = {
    "plain table": lambda: plain_table,
    "indexed table": lambda: indexed_table,
    "table with event_dim": lambda: table_with_event_dim,
    "closed tensors": lambda: closed_tensors,
    "easy guide": lambda: Easy(model),
    "easy guide with a group": lambda: EasyGroup(model),
}
every_guide = pytest.mark.parametrize("name", GUIDES)


@every_guide
def test_elbo_and_iwae_are_exact(name):
    guide = GUIDES[name]()
    found = ab.elbo(model, guide, X, num_draws=200)
    assert ((found.value - exact_elbo()).abs() < 4.5 * found.standard_error).all()
    bound = ab.iwae(model, guide, X, num_particles=400)
    assert ((bound.value - exact_log_p()).abs() < 4.5 * bound.standard_error + 5e-3).all()


@pytest.mark.parametrize(
    "name",
    [
        "table with event_dim",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("closed tensors", "easy guide with a group")),
    ],
)
@pytest.mark.slow
def test_gaps_are_exact(name):
    gaps = ab.diagnose(model, GUIDES[name](), X, settings=QUICK).gaps()
    exact = (exact_log_p() - exact_elbo()).mean()
    assert abs(gaps.amortization.mean - exact) < 4 * gaps.amortization.mean_error + 0.01
    assert abs(gaps.approximation.mean) < 0.1


@pytest.mark.slow
def test_an_easy_guide_that_takes_its_own_points_alone_works_on():
    """The trial on a few points fails, inside its plate, and the next run must not find that plate."""
    x = torch.linspace(-2, 2, 12)[:, None]

    class Table(EasyGuide):
        def guide(self, x):
            with self.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("twelve", torch.zeros(12)), 0.5))

    guide = Table(model)
    ab.diagnose(model, guide, x, settings=QUICK, progress=False)
    assert not guide.plates
    assert ab.elbo(model, guide, x).value.shape == (12,)
