"""Models in which log p of a point changes with its neighbours: no bound is given of points that are taken apart."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized_bayes as ab

N = 40
X = torch.linspace(-1, 5, N)
STANDARD = (X - X.mean()) / X.std()


def standardized(x):
    x = (x - x.mean()) / x.std()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def centered(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z - z.mean(), 0.5), obs=x)


def by_the_largest(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x - x.max())


class Normed(torch.nn.Module):
    """A decoder with batch norm."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(self.norm(z[:, None])[:, 0], 0.5), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.8 * (x - X.mean()) / X.std(), math.sqrt(0.2)))


APART = {
    "iwae": lambda model, x: ab.iwae(model, guide, x),
    "log_predictive": lambda model, x: ab.log_predictive(model, guide, x),
    "elbo of parts": lambda model, x: ab.elbo(model, guide, x, chunk_size=7),
}


@pytest.mark.parametrize("call", APART)
@pytest.mark.parametrize("model", [standardized, centered, Normed()], ids=["data", "latents", "batch norm"])
def test_points_that_change_with_their_neighbours_are_not_taken_apart(model, call):
    with pytest.raises(ValueError, match="log p\\(x, z\\) of a point changes with its neighbours"):
        APART[call](model, X)
    if isinstance(model, Normed):  # the same module, which is remembered by its mode
        model.eval()
        assert APART[call](model, X).value.isfinite().all()
        model.train()


IDS = ["data", "latents", "largest", "batch norm"]


@pytest.mark.parametrize("call", ["iwae", "log_predictive"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("model", [standardized, centered, by_the_largest, Normed()], ids=IDS)
def test_nor_are_two_or_three(model, size, call):
    for x in (X[:size], X[:size].flip(0)):
        with pytest.raises(ValueError, match="log p\\(x, z\\) of a point changes with its neighbours"):
            APART[call](model, x)


def test_particles_of_a_lone_point_are_not_each_other_s_neighbours():
    with pytest.raises(ValueError, match="log p\\(x, z\\) of a point changes with its neighbours"):
        ab.iwae(centered, guide, X[:1])


def plain(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def of_two_or_more(x):
    """Takes no single row, for a reason that changes no density."""
    if len(x) < 2:
        raise ValueError("expected two rows or more")
    plain(x)


def of_as_many(size):
    def model(x):
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return model


FEW = [(kind, size) for kind in ("plain", "of as many") for size in (1, 2, 3)]


@pytest.mark.parametrize(("kind", "size"), [*FEW, ("of two or more", 2), ("of two or more", 3)])
def test_few_points_apart_are_exact(kind, size):
    model = {"plain": plain, "of two or more": of_two_or_more, "of as many": of_as_many(size)}[kind]
    x = X[:size]

    def exact_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, math.sqrt(0.2)))

    if kind == "of as many":
        found = ab.elbo(model, exact_guide, x, analytic_kl=False).value
    else:
        found = ab.iwae(model, exact_guide, x, num_particles=3).value
    torch.testing.assert_close(found.float(), dist.Normal(0.0, math.sqrt(1.25)).log_prob(x), rtol=0, atol=1e-4)


def test_one_elbo_of_all_points_is_that_of_the_data_as_they_are():
    exact = dist.Normal(0.0, math.sqrt(1.25)).log_prob(STANDARD)
    found = ab.elbo(standardized, guide, X, num_draws=2, analytic_kl=False)
    torch.testing.assert_close(found.value.float(), exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("call", APART)
def test_given_what_is_computed_from_all_points_it_is_exact(call):
    def model(x, loc, scale):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=(x - loc) / scale)

    def taking_all(x, loc, scale):
        guide(x)

    given = X, X.mean(), X.std()
    calls = {
        "iwae": lambda: ab.iwae(model, taking_all, *given, num_particles=3),
        "log_predictive": lambda: ab.log_predictive(model, taking_all, *given, num_particles=3),
        "elbo of parts": lambda: ab.elbo(model, taking_all, *given, chunk_size=7, analytic_kl=False),
    }
    exact = dist.Normal(0.0, math.sqrt(1.25)).log_prob(STANDARD)
    torch.testing.assert_close(calls[call]().value.float(), exact, rtol=0, atol=1e-3)
