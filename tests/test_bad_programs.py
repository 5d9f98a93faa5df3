"""Guides and data that do not fit a model: one line that says what came and what was expected, from every call."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized_bayes as ab

X = torch.linspace(-1, 1, 12).reshape(6, 2)
WEIGHT = torch.tensor([[1.0, 0.5], [-0.5, 1.0]])
CHAINS = ab.AISSettings(num_temperatures=5, num_chains=4, num_pilot=3)
CALLS = {
    "diagnose": lambda model, guide, x: ab.diagnose(model, guide, x),
    "ais": lambda model, guide, x: ab.ais(model, guide, x, settings=CHAINS),
    "bdmc": lambda model, guide, x: ab.bdmc(model, guide, x, settings=CHAINS),
    "optimize_local": lambda model, guide, x: ab.optimize_local(model, guide, x),
    "elbo": lambda model, guide, x: ab.elbo(model, guide, x, num_draws=2),
    "iwae": lambda model, guide, x: ab.iwae(model, guide, x, num_particles=3),
    "iwae, streamed": lambda model, guide, x: ab.iwae(model, guide, x, num_particles=1500),
    "log_predictive": lambda model, guide, x: ab.log_predictive(model, guide, x),
    "log_weights": lambda model, guide, x: ab.log_weights(model, guide, x, num_particles=3),
    "mean_prediction": lambda model, guide, x: ab.mean_prediction(model, guide, x),
}


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHT.T, 0.5).to_event(1), obs=x)


def elementwise(x):
    """A model that any shape of z broadcasts into."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def of_scalars(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[:, None], 0.5).to_event(1), obs=x)


def guide_of(draw, size=None):
    def guide(x):
        with pyro.plate("data", size or len(x)):
            fn = draw(x)
            pyro.sample("z", fn)

    return guide


GOOD = guide_of(lambda x: dist.Normal(x, 0.4).to_event(1))
ONE = X[:, :1]
CASES = {
    "too little": (model, lambda x: None, X, "the guide misses the model's latent site 'z'"),
    "a plate of another size": (model, guide_of(lambda x: dist.Normal(torch.zeros(5, 2), 1.0).to_event(1), 5), X, "5"),
    "too many dimensions": (model, guide_of(lambda x: dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1)), X, "3"),
    "a number for a vector": (
        elementwise,
        guide_of(lambda x: dist.Normal(x[:, 0], 0.4)),
        X[:, :1],
        r"'z' of shape \(6,\)",
    ),
    "a vector for a number": (
        of_scalars,
        guide_of(lambda x: dist.Normal(x[:, :1], 0.4).to_event(1)),
        X[:, :1],
        r"\(6, 1\)",
    ),
    "nan": (model, guide_of(lambda x: dist.Normal(x * torch.nan, 0.4).to_event(1)), X, "Expected parameter loc"),
    "data too wide": (model, GOOD, torch.zeros(6, 3), "cannot"),
    "integers": (model, GOOD, X.long(), "some of the data are integers: pass x.float|Expected parameter scale"),
    "no data": (model, GOOD, X[:0], "expected one data point or more|two points or more"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_told_in_one_line(case, call):
    subject, guide, x, words = CASES[case]
    if (case, call) == ("data too wide", "mean_prediction"):
        x = torch.zeros(6, 4, 1)
    with pytest.raises(ValueError, match=words) as raised:
        CALLS[call](subject, guide, x)
    assert "\n" not in str(raised.value)


def test_draws_outside_the_support_are_told_in_one_line():
    def positive(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.ones(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"density of 'z'.*to be within the support") as raised:
        ab.log_weights(positive, GOOD, X)
    assert "\n" not in str(raised.value)


def test_one_point_one_particle_and_two_chains_give_numbers_without_errors():
    assert ab.iwae(model, GOOD, X, num_particles=1).standard_error.isnan().all()
    assert ab.elbo(model, GOOD, X, num_draws=1).standard_error.isnan().all()
    one = ab.ais(model, GOOD, X[:1], settings=CHAINS)
    assert one.log_p.isfinite().all()
    with pytest.raises(ValueError, match="expected num_chains of 2 or more, got 1"):
        ab.AISSettings(num_chains=1)
