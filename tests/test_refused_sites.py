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
