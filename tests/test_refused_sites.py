"""Latents that would give wrong numbers: on circles, on supports of each point's own, masked parts of a joint draw."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import amortized_bayes as ab
from amortized_bayes.flows import FlowSettings
from amortized_bayes.guides import FlowGuide

X = torch.linspace(0.5, 3, 12)
QUICK = ab.ComparisonSettings(epochs=30, rungs=1, num_draws=50)


def model_of(prior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(x))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return model


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (lambda x: dist.VonMises(0.0, 2.0), "'z' of VonMises: its density repeats itself"),
        (
            lambda x: dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.VonMises(torch.zeros(2), 1.0)),
            "'z' of VonMises: its density repeats itself",
        ),
        (lambda x: dist.Uniform(0.0, x), "support of latent 'z' to be the same for all points, got a upper_bound"),
    ],
    ids=["circle", "mixture on a circle", "bounds of each point"],
)
def test_supports_that_are_refused(prior, words):
    with pytest.raises(ValueError, match=words) as refused:
        ab.compare(model_of(prior), X, progress=False)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("high", [4.0, torch.tensor(4.0), torch.full((12,), 4.0)], ids=["number", "tensor", "rows"])
def test_bounds_that_all_points_share_are_one_support(high):
    """A uniform prior: the evidence is a difference of normal probabilities."""
    model = model_of(lambda x: dist.Uniform(0.0, high if torch.as_tensor(high).dim() == 0 else high[: len(x)]))
    report = ab.compare(model, X, guides=("factorized",), settings=QUICK, progress=False)
    normal = torch.distributions.Normal(0.0, 0.5)
    evidence = ((normal.cdf(X) - normal.cdf(X - 4)) / 4).log()
    found = report.best.elbo
    assert found is not None
    error = found.standard_error.square().sum().sqrt() / len(X)
    assert evidence.mean() - 0.3 < found.value.mean() < evidence.mean() + 3 * error


def masked(x, kept):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=kept):
            pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x[:, 0])


def together(x, kept):
    mean = 0.8 * x[:, 0]
    with pyro.plate("data", len(x)):
        q = dist.Normal(torch.stack([mean, 0 * mean], -1), torch.tensor([0.5**0.5, 1.0])).to_event(1)
        free = pyro.sample("free", q, infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(free[:, 0]))
        pyro.sample("u", dist.Delta(free[:, 1]))


def test_a_masked_part_of_a_joint_draw_is_refused():
    """Its entropy would count: the ELBO came out above log p(x)."""
    some, every = torch.arange(len(X)) % 2 == 0, torch.ones(len(X), dtype=torch.bool)
    flow = FlowGuide(ab.latent_sites(masked, X[:, None], every).local, len(X), 1, FlowSettings("planar"), 4)
    x = X[:, None]
    for guide in (together, flow):
        assert ab.elbo(masked, guide, x, every).value.isfinite().all()
        with pytest.raises(ValueError, match="model masks 'u', which the guide makes of the auxiliary draw"):
            ab.elbo(masked, guide, x, some)


def within(bound):
    def model(x):
        theta = pyro.sample("theta", dist.LogNormal(1.0, 0.3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.zeros(len(x)), bound(theta)))
            pyro.sample("x", dist.Normal(z, 0.3), obs=x)

    return model


def test_a_support_that_moves_with_a_shared_latent_is_refused():
    """Every fit of it failed: a guide has one support, and half of its draws lie outside the next."""
    for call in (ab.latent_sites, ab.compare):
        with pytest.raises(
            ValueError, match="support of latent 'z' to be the same in every draw, got one whose upper"
        ) as refused:
            call(within(lambda theta: theta), X)
        assert "\n" not in str(refused.value)


def test_looking_twice_leaves_random_numbers_as_they_were():
    model, states = within(lambda _: torch.tensor(4.0)), []
    for look in (ab.latent_sites, lambda *args: poutine.trace(args[0]).get_trace(args[1])):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found = look(model, X)
            states.append(torch.random.get_rng_state())
        if look is ab.latent_sites:
            assert float(found.local[0].support.upper_bound) == 4
    assert torch.equal(*states)


@pytest.mark.parametrize("call", [ab.elbo, ab.iwae, ab.log_predictive, ab.ais])
def test_a_model_that_observes_nothing_has_no_evidence(call):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="expected an observed site inside plate 'data'"):
        call(poutine.block(model_of(lambda x: dist.Normal(0.0, 1.0)), hide=["x"]), guide, X)
