"""Latents that poutine.block hides: every call refuses those that log p moves with, and answers beside others."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import amortized_bayes as ab

X = torch.linspace(-2, 2, 6)
EVIDENCE = dist.Normal(0.0, math.sqrt(3.0)).log_prob(X)
WORDS = r"got 'u' hidden by poutine.block in the model, with which log p\(x, z\) of a point moves"


def both(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + u, 1.0), obs=x)


def inside(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with poutine.block():
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + u, 1.0), obs=x)


def prior_of_another(x):
    """The hidden latent moves the prior alone."""
    with poutine.block(hide=["u"]):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(u, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def closed():
    inside(X)


def guide(x=X):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 3, 0.8))


MODELS = {"all of the model": poutine.block(both, hide=["u"]), "inside": inside, "outside the plate": prior_of_another}
QUICK = ab.ComparisonSettings(epochs=2, rungs=1, num_draws=5)
CALLS = {
    "log_weights": lambda model: ab.log_weights(model, guide, X),
    "elbo": lambda model: ab.elbo(model, guide, X),
    "iwae": lambda model: ab.iwae(model, guide, X),
    "log_predictive": lambda model: ab.log_predictive(model, guide, X),
    "ais": lambda model: ab.ais(model, guide, X),
    "diagnose": lambda model: ab.diagnose(model, guide, X, progress=False),
    "latent_sites": lambda model: ab.latent_sites(model, X),
    "compare": lambda model: ab.compare(model, X, settings=QUICK, progress=False),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_call_refuses_a_hidden_latent_in_the_same_line(call, model):
    with pytest.raises(ValueError, match=WORDS) as refused:
        call(model)
    assert "\n" not in str(refused.value)


def test_a_model_that_closes_over_its_data_is_refused_too():
    with pytest.raises(ValueError, match=WORDS):
        ab.elbo(closed, guide)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_can_amortize_names_the_hidden_latent(model):
    report = ab.can_amortize(model, X)
    assert report.can is None
    assert report.reason.endswith("at the same values: poutine.block hides 'u'.")


def predicting(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, math.sqrt(2.0)), obs=x)
        pyro.sample("new", dist.Normal(z, math.sqrt(2.0)))


@pytest.mark.slow
def test_a_hidden_prediction_changes_no_number():
    """Nothing depends on it, so log p(x) is that of the model without it; the guide is the exact posterior."""

    def exact(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 3, math.sqrt(2.0 / 3)))

    model = poutine.block(predicting, hide=["new"])
    for found in (
        ab.elbo(model, exact, X, analytic_kl=False),
        ab.iwae(model, exact, X),
        ab.log_predictive(model, exact, X),
    ):
        torch.testing.assert_close(found.value, EVIDENCE)
    assert ab.diagnose(model, exact, X, progress=False).verdict.cause == "nothing"


def test_draws_that_a_guide_hides_leave_bounds_bounds():
    """E[p(x, z)/q(z|a)] is p(x) whatever a is: the weights need no density of a."""

    def mixing(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 0.1), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 3 + a, 0.9))

    model, hiding = poutine.block(predicting, hide=["new"]), poutine.block(mixing, hide=["a"])
    found = ab.log_weights(model, hiding, X, num_particles=4000).local[0]
    weights = (found - EVIDENCE).exp()
    assert ((weights.mean(0) - 1).abs() < 4 * weights.std(0) / math.sqrt(4000)).all()
    assert ab.elbo(model, hiding, X, num_draws=2000).value.mean() < EVIDENCE.mean()
