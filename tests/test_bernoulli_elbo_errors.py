"""Guides and models that have no gradient for bits: each is refused in one line."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from bit_problems import problem
from torch import nn

import amortized_bayes as ab
from amortized_bayes.guides import AmortizedBits
from amortized_bayes.models import TwoBitMixture

X = torch.zeros(4, 2)


def model_of(site):
    """A model with one latent site in the plate."""

    def model(x, index=None):
        with pyro.plate("data", len(x)):
            site(x)
            pyro.sample("x", dist.Normal(x.detach(), 1.0).to_event(1), obs=x)

    return model


def guide_of(site):
    def guide(x, index=None):
        with pyro.plate("data", len(x)):
            site(x)

    return guide


def gaussian(x):
    return pyro.sample("z", dist.Normal(x[:, 0], 1.0))


def bit(x):
    return pyro.sample("b", dist.Bernoulli(logits=x[:, 0]))


def categorical(x):
    bit(x)
    pyro.sample("k", dist.Categorical(logits=x))


def chain(x):
    first = pyro.sample("b", dist.Bernoulli(logits=x[:, 0]))
    pyro.sample("c", dist.Bernoulli(logits=first))


def difference(x):
    a, b = (pyro.sample(name, dist.Bernoulli(logits=x[:, 0])) for name in "ab")
    pyro.sample("c", dist.Bernoulli(logits=4 * (a - b)))


def moved(x):
    first = pyro.sample("b", dist.Bernoulli(logits=x[:, 0]))
    pyro.sample("z", dist.Normal(first, 1.0))


def outside(x, index=None):
    pyro.sample("b", dist.Bernoulli(0.5))


def model_outside(x, index=None):
    outside(x)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(x.detach(), 1.0).to_event(1), obs=x)


PROGRAMS = {
    "none": (
        model_of(gaussian),
        guide_of(gaussian),
        "objective 'disarm' expected a guide with Bernoulli latents, got one without; use objective 'elbo'",
    ),
    "categorical": (
        model_of(categorical),
        guide_of(categorical),
        "objective 'disarm' expected Bernoulli latents, and others that can be reparametrized, got 'k' from "
        "Categorical; use objective 'rws'",
    ),
    "chain": (
        model_of(chain),
        guide_of(chain),
        "objective 'disarm' expected a guide in which nothing depends on a bit, got 'c', which changes with one; use "
        "objective 'rws'",
    ),
    "difference": (
        model_of(difference),
        guide_of(difference),
        "objective 'disarm' expected a guide in which nothing depends on a bit, got 'c', which changes with one; use "
        "objective 'rws'",
    ),
    "moved": (
        model_of(moved),
        guide_of(moved),
        "objective 'disarm' expected a guide in which nothing depends on a bit, got 'z', which changes with one; use "
        "objective 'rws'",
    ),
    "outside": (
        model_outside,
        outside,
        "objective 'disarm' expected bits inside plate 'data', got 'b' outside of it",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_guide_without_such_gradients_is_refused(name):
    model, guide, words = PROGRAMS[name]
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        ab.BernoulliELBO("disarm").loss(model, guide, X)


def test_fit_refuses_it_too():
    model = ab.LinearGaussian(torch.ones(2, 2), torch.zeros(2), 0.5)
    guide = ab.Amortized(ab.latent_sites(model, X).local, num_data=4, observed=2, width=8)
    with pytest.raises(
        ValueError, match=r"^objective 'disarm' expected a guide with Bernoulli latents, got one without"
    ):
        ab.fit(model, guide, X, num_steps=2, options=ab.FitOptions(batch_size=4, objective="disarm"))


def test_more_bits_than_are_enumerated():
    with pytest.raises(ValueError, match=r"^objective 'enumerated' expected 8 bits per point or fewer, got 9: use"):
        ab.BernoulliELBO("enumerated").loss(*problem(2, 9)[:2], *problem(2, 9)[2])


def test_a_model_that_takes_rows_by_bits_has_no_straight_through_gradient():
    guide = AmortizedBits(("first", "second"), nn.Linear(2, 2))
    model = TwoBitMixture(torch.ones(2, 2, 2), 1.0)
    words = "^objective 'straight-through' expected a log likelihood that can be differentiated by 'first', got a model"
    with pytest.raises(ValueError, match=words):
        ab.BernoulliELBO("straight-through").loss(model, guide, X)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "reinforce"}, "expected num_particles of 2 or more with objective 'reinforce': the baseline"),
        (
            {"objective": "enumerated", "num_particles": 2},
            "expected num_particles of 1 with objective 'enumerated', got 2",
        ),
        ({"objective": "disarm", "analytic_kl": True}, "expected objective 'elbo' with analytic_kl, got 'disarm'"),
        ({"objective": "straight-through", "temperature": 0.0}, "temperature"),
        ({"objective": "disarmed"}, "disarm"),
    ],
)
def test_options_that_an_estimator_does_not_have(options, words):
    with pytest.raises(ValueError, match=words):
        ab.FitOptions(**options)


@pytest.mark.parametrize("estimator", ["reinforce", "enumerated"])
def test_pyros_face_refuses_the_same_numbers_of_particles(estimator):
    with pytest.raises(ValueError, match=f"with objective '{estimator}'"):
        ab.BernoulliELBO(estimator, num_particles=1 if estimator == "reinforce" else 3)


def test_a_fit_says_that_it_climbs_the_elbo():
    assert ab.FitOptions(objective="disarm", num_particles=3).bound_name == "ELBO"
