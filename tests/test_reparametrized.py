"""Models that Pyro reparametrizes: what is left of a latent is a function of others, neither latent nor data."""

import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam, TransformReparam

import amortized_bayes as ab
from amortized_bayes.evaluation.simulation import simulate
from amortized_bayes.joint import joint_density

X = torch.linspace(-2, 3, 10)
EVIDENCE = dist.Normal(0.3, math.sqrt(4.25)).log_prob(X)


def by_scale(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.full((len(x),), 0.3), 2.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def by_transform(x):
    with pyro.plate("data", len(x)):
        base = dist.Normal(torch.zeros(len(x)), 1.0)
        z = pyro.sample("z", dist.TransformedDistribution(base, transforms.AffineTransform(0.3, 2.0)))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def posterior(name):
    """Of the standardized latent, exactly."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample(name, dist.Normal(2 * (x - 0.3) / 4.25, math.sqrt(0.25 / 4.25)))

    return guide


MODELS = {
    "loc and scale": (poutine.reparam(by_scale, config={"z": LocScaleReparam(0.0)}), posterior("z_decentered")),
    "transform": (poutine.reparam(by_transform, config={"z": TransformReparam()}), posterior("z_base")),
}


@pytest.mark.parametrize("name", MODELS)
def test_bounds_and_certificate_are_exact(name):
    model, guide = MODELS[name]
    for call in (ab.iwae, ab.log_predictive):
        torch.testing.assert_close(call(model, guide, X, num_particles=3).value.float(), EVIDENCE, rtol=0, atol=1e-4)
    settings = ab.AISSettings(num_chains=8, num_temperatures=40)
    found = ab.bdmc(model, guide, X, settings=settings, certificate=ab.CertificateSettings(10, None, 40))
    exact = dist.Normal(0.3, math.sqrt(4.25))
    assert abs(found.mean_gap) < 4 * found.gap_error
    assert found.lower.mean() < exact.entropy().neg() + 4 * exact.stddev / math.sqrt(10)


def test_data_are_drawn_from_the_reparametrized_model():
    x = torch.zeros(4000)
    joint, z = simulate(joint_density(MODELS["loc and scale"][0], x))
    (drawn,) = joint.leaves
    assert drawn.mean() == pytest.approx(0.3, abs=4 * math.sqrt(4.25 / 4000))
    assert (drawn - 0.3 - 2 * z[:, 0]).std() == pytest.approx(0.5, rel=0.05)


def test_what_is_left_of_a_latent_is_no_data():
    def without_data(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 2.0))

    with pytest.raises(ValueError, match="expected an observed site inside plate"):
        ab.ais(poutine.reparam(without_data, config={"z": LocScaleReparam(0.0)}), None, X)


def test_a_guide_alone_reparametrized_is_told():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.9 * x, 0.6))

    reparametrized = poutine.reparam(guide, config={"z": LocScaleReparam(0.0)})
    with pytest.raises(ValueError, match="gives 'z' a value without drawing it"):
        ab.elbo(by_scale, reparametrized, X)


def test_a_number_that_a_latent_is_conditioned_on_is_no_argument():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            w = pyro.sample("w", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(z + w, 0.5), obs=x)

    conditioned = pyro.condition(model, data={"w": torch.tensor(0.5)})
    with pytest.raises(ValueError, match="expected observed site 'w' to be an argument"):
        ab.bdmc(conditioned, posterior("z"), X)
    both = torch.stack([torch.full_like(X, 0.5), X - 0.5], -1)
    cover = torch.tensor([[2.0, 1.0], [1.0, 1.25]])
    exact = dist.MultivariateNormal(torch.zeros(2), cover).log_prob(both)
    found = ab.iwae(conditioned, posterior("z"), X, num_particles=1000)
    assert ((found.value - exact).abs() < 5 * found.standard_error.nan_to_num(nan=1.0) + 1e-3).all()


def test_one_point_has_no_error_and_no_warning(recwarn):
    model, guide = MODELS["loc and scale"]
    settings = ab.AISSettings(num_chains=4, num_temperatures=10)
    found = ab.bdmc(model, guide, X[:1], settings=settings, certificate=ab.CertificateSettings(4, None, 10))
    assert found.difficulty is None
    assert math.isnan(found.gap_error)
    assert not recwarn.list
