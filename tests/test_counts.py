"""Latents that are counts: they are drawn where draws will do, and refused in one line where they will not."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized_bayes as ab

X = torch.tensor([0.0, 1.0, 2.0, 4.0, 5.0, 7.0])
K = torch.arange(60.0)
QUICK = ab.ComparisonSettings(epochs=2, rungs=1, num_draws=5)


def model_of(**infer):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.5))
            k = pyro.sample("k", dist.Poisson(3 * z.exp()), infer=infer)
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    return model


def drawing(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.2 * (x - 3), 0.5))
        pyro.sample("k", dist.Poisson(0.5 * x + 1.5 * z.exp()))


def without(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


MARKED = model_of(enumerate="parallel")
CALLS = {
    "elbo": lambda model, guide: ab.elbo(model, guide, X),
    "iwae": lambda model, guide: ab.iwae(model, guide, X),
    "log_predictive": lambda model, guide: ab.log_predictive(model, guide, X),
    "ais": lambda model, guide: ab.ais(model, guide, X),
    "optimize_local": lambda model, guide: ab.optimize_local(model, guide, X),
    "diagnose": lambda model, guide: ab.diagnose(model, guide, X, progress=False),
    "latent_sites": lambda model, guide: ab.latent_sites(model, X),
    "compare": lambda model, guide: ab.compare(model, X, settings=QUICK, progress=False),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_counts_that_are_marked_are_refused_in_the_same_line(call):
    with pytest.raises(ValueError, match=r"^site 'k' \(Poisson\) cannot be enumerated: its values are not") as refused:
        call(MARKED, without)
    assert str(refused.value).endswith("marginalize it or observe it")
    assert "\n" not in str(refused.value)


def test_counts_after_a_site_that_is_enumerated_are_refused_so_too():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            k = pyro.sample("k", dist.Poisson(1 + c), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"^site 'k' \(Poisson\) cannot be enumerated"):
        ab.diagnose(model, without, X, progress=False)


@pytest.mark.parametrize("call", ["ais", "optimize_local", "diagnose"])
def test_counts_that_are_drawn_are_refused_by_calls_that_need_gradients(call):
    with pytest.raises(
        ValueError, match=r"^expected continuous latents, got 'k' of Poisson: marginalize it or observe"
    ):
        CALLS[call](model_of(), drawing)


def test_counts_that_are_drawn_have_bounds():
    """Their weights tie, so that the heaviest may all be alike."""

    def counted(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Poisson(3.0))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Poisson(0.5 * x + 1.5))

    joint = dist.Poisson(3.0).log_prob(K) + dist.Normal(K, 1.0).log_prob(X[:, None])
    torch.manual_seed(0)
    found = ab.iwae(counted, guide, X, num_particles=400)
    assert ((found.value - joint.logsumexp(-1)).abs() < 4 * found.standard_error).all()
    assert (ab.elbo(counted, guide, X, num_draws=500).value < joint.logsumexp(-1) + 0.05).all()
