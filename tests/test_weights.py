"""The seam: with the exact posterior as guide every log weight is the log evidence, whatever the program looks like."""

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from exact_evidence import DRAWS, INDEX, TOLERANCE, assert_evidence
from pyro.nn import PyroModule, PyroSample
from torch import nn

from amortized_bayes.guides import Constant
from amortized_bayes.models import LinearGaussian
from amortized_bayes.sites import latent_sites
from amortized_bayes.weights import log_weights


@pytest.mark.parametrize(("particles", "shared_draws"), DRAWS)
@pytest.mark.parametrize("subsampled", [False, True])
def test_exact_posterior_gives_the_evidence(linear_problem, particles, shared_draws, subsampled):
    model, x, guide = linear_problem
    args = (x[INDEX], INDEX) if subsampled else (x,)
    found = log_weights(model, guide, *args, num_particles=particles, num_shared=shared_draws)
    assert_evidence(found, model.log_evidence(args[0]), particles, shared_draws)
    assert found.shared.tolist() == [0.0] * shared_draws
    assert found.num_data == 12


def test_an_inexact_guide_does_not_give_the_evidence(linear_problem):
    model, x, _ = linear_problem
    found = log_weights(model, Constant(latent_sites(model, x).local, 12), x, num_particles=3)
    assert (found.local - model.log_evidence(x)).abs().max() > 0.1


def test_parts_are_the_densities_they_are_named_after(linear_problem):
    model, x, guide = linear_problem
    found = log_weights(model, guide, x, num_particles=2)
    torch.manual_seed(3)
    one = log_weights(model, guide, x)
    torch.manual_seed(3)
    z = poutine.trace(guide).get_trace(x).nodes["z"]["value"]
    mean = z @ model.weight.T + model.bias
    torch.testing.assert_close(one.log_likelihood[0, 0], dist.Normal(mean, model.scale).log_prob(x).sum(-1))
    torch.testing.assert_close(one.log_prior[0, 0], dist.Normal(0.0, 1.0).log_prob(z).sum(-1))
    torch.testing.assert_close(one.log_q[0, 0], model.posterior(x).log_prob(z))
    torch.testing.assert_close(found.local, found.log_likelihood + found.log_prior - found.log_q)


@pytest.mark.parametrize(("particles", "shared_draws"), DRAWS)
def test_any_names_of_plate_and_sites(linear_problem, particles, shared_draws):
    linear, x, _ = linear_problem

    def model(images):
        with pyro.plate("points", len(images)):
            latent = pyro.sample("code", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = latent @ linear.weight.T + linear.bias
            pyro.sample("pixels", dist.Normal(mean, linear.scale).to_event(1), obs=images)

    def guide(images):
        with pyro.plate("points", len(images)):
            pyro.sample("code", linear.posterior(images))

    found = log_weights(model, guide, images=x, num_particles=particles, num_shared=shared_draws, plate="points")
    assert_evidence(found, linear.log_evidence(x), particles, shared_draws)


def two_site_programs(linear):
    """z in two sites, the guide's second one conditional on the first, and x in two observed sites."""
    covariance = torch.linalg.inv(linear.posterior_precision())

    def model(x):
        with pyro.plate("data", len(x)):
            first = pyro.sample("first", dist.Normal(torch.zeros(()), 1.0))
            second = pyro.sample("second", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            mean = torch.cat([first[:, None], second], 1) @ linear.weight.T + linear.bias
            pyro.sample("top", dist.Normal(mean[:, :3], linear.scale).to_event(1), obs=x[:, :3])
            pyro.sample("bottom", dist.Normal(mean[:, 3:], linear.scale).to_event(1), obs=x[:, 3:])

    def guide(x):
        mean = linear.posterior(x).mean
        with pyro.plate("data", len(x)):
            first = pyro.sample("first", dist.Normal(mean[:, 0], covariance[0, 0].sqrt()))
            slope = covariance[1, 0] / covariance[0, 0]
            rest = (covariance[1, 1] - slope * covariance[0, 1]).sqrt()
            conditional = dist.Normal(mean[:, 1:] + slope * (first - mean[:, 0])[:, None], rest)
            pyro.sample("second", conditional.to_event(1))

    return model, guide


@pytest.mark.parametrize(("particles", "shared_draws"), DRAWS)
def test_two_local_and_two_observed_sites(linear_problem, particles, shared_draws):
    linear, x, _ = linear_problem
    found = log_weights(*two_site_programs(linear), x, num_particles=particles, num_shared=shared_draws)
    assert_evidence(found, linear.log_evidence(x), particles, shared_draws)


@pytest.mark.parametrize("particles", [1, 3])
def test_factors_inside_and_outside_the_plate(linear_problem, particles):
    linear, x, guide = linear_problem

    def model(x, index):
        pyro.factor("tempering", torch.tensor(-3.5))
        with pyro.plate("data", 12, subsample=index):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = z @ linear.weight.T + linear.bias
            pyro.sample("x", dist.Normal(mean, linear.scale).to_event(1), obs=x)
            pyro.factor("bonus", x.sum(-1))

    found = log_weights(model, guide, x[INDEX], INDEX, num_particles=particles, num_shared=2)
    assert_evidence(found, linear.log_evidence(x[INDEX]) + x[INDEX].sum(-1), particles, 2)
    assert found.shared_log_p.tolist() == [-3.5, -3.5]


@pytest.mark.parametrize("particles", [1, 3])
def test_masks_are_kept(linear_problem, particles):
    linear, x, _ = linear_problem
    seen = torch.arange(12) % 3 != 0

    def model(x, seen, index):
        with pyro.plate("data", 12, subsample=index):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = z @ linear.weight.T + linear.bias
            with poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(mean, linear.scale).to_event(1), obs=x)

    def guide(x, seen, index):
        posterior = linear.posterior(x)
        mean = torch.where(seen[:, None], posterior.mean, 0.0)
        covariance = torch.where(seen[:, None, None], posterior.covariance_matrix, torch.eye(2))
        with pyro.plate("data", 12, subsample=index):
            pyro.sample("z", dist.MultivariateNormal(mean, covariance))

    found = log_weights(model, guide, x[INDEX], seen[INDEX], INDEX, num_particles=particles)
    expected = torch.where(seen[INDEX], linear.log_evidence(x[INDEX]), 0.0)
    assert 0 < seen[INDEX].sum() < len(INDEX)
    assert_evidence(found, expected, particles, 1)


@pytest.mark.parametrize("particles", [1, 3])
def test_scale_of_the_plate_is_undone_and_the_users_own_kept(linear_problem, particles):
    linear, x, guide = linear_problem
    plain = log_weights(linear, guide, x[INDEX], num_particles=particles)  # plate of 4, no subsampling
    torch.manual_seed(5)
    subsampled = log_weights(linear, guide, x[INDEX], INDEX, num_particles=particles)
    torch.manual_seed(5)
    scaled = log_weights(poutine.scale(linear, 0.25), guide, x[INDEX], INDEX, num_particles=particles)
    assert (plain.num_data, subsampled.num_data, scaled.num_data) == (4, 12, 12)
    torch.testing.assert_close(plain.local, subsampled.local, **TOLERANCE)
    torch.testing.assert_close(scaled.log_likelihood, 0.25 * subsampled.log_likelihood, **TOLERANCE)
    torch.testing.assert_close(scaled.log_prior, 0.25 * subsampled.log_prior, **TOLERANCE)
    torch.testing.assert_close(scaled.log_q, 0.25 * subsampled.log_q, **TOLERANCE)  # the guide was not told


class PyroSampleModel(PyroModule):
    """A linear-Gaussian model whose weight is a sample site, read outside the plate."""

    def __init__(self):
        super().__init__()
        self.decoder = PyroModule[nn.Linear](2, 3)
        self.decoder.weight = PyroSample(dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        self.decoder.bias = PyroSample(dist.Normal(torch.zeros(3), 2.0).to_event(1))

    def forward(self, x, index):
        weight, bias = self.decoder.weight, self.decoder.bias
        with pyro.plate("data", 12, subsample=index):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(F.linear(z, weight, bias), 0.5).to_event(1), obs=x)


@pytest.mark.parametrize(("particles", "shared_draws"), DRAWS)
def test_pyro_sample_weights_outside_the_plate(float64, particles, shared_draws):
    drawn = []

    def guide(x, index):
        weight = pyro.sample("decoder.weight", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        bias = pyro.sample("decoder.bias", dist.Normal(torch.ones(3), 1.0).to_event(1))
        drawn.append((weight, bias))
        with pyro.plate("data", 12, subsample=index):
            pyro.sample("z", LinearGaussian(weight, bias, 0.5).posterior(x))

    x = torch.randn(4, 3)
    found = log_weights(PyroSampleModel(), guide, x, INDEX, num_particles=particles, num_shared=shared_draws)
    for t, (weight, bias) in enumerate(drawn[-shared_draws:]):
        evidence = LinearGaussian(weight, bias, 0.5).log_evidence(x)
        torch.testing.assert_close(found.local[t], evidence.expand(particles, 4), **TOLERANCE)
        shared = dist.Normal(0.0, 2.0).log_prob(bias).sum() - dist.Normal(1.0, 1.0).log_prob(bias).sum()
        torch.testing.assert_close(found.shared[t], shared, **TOLERANCE)


@pytest.mark.parametrize(("particles", "shared_draws"), DRAWS)
def test_convolutional_model(float64, particles, shared_draws):
    kernel = torch.randn(1, 2, 2, 2)

    def decode(z):
        return F.conv_transpose2d(z, kernel, stride=2)  # (B, 1, 2, 2) -> (B, 2, 4, 4)

    matrix = decode(torch.eye(4).reshape(4, 1, 2, 2)).reshape(4, 32).T
    linear = LinearGaussian(matrix, torch.zeros(32), 0.6)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, 2, 2), 1.0).to_event(3))
            pyro.sample("x", dist.Normal(decode(z), 0.6).to_event(3), obs=x)

    def guide(x):
        posterior = linear.posterior(x.flatten(1))
        reshape = torch.distributions.transforms.ReshapeTransform((4,), (1, 2, 2))
        with pyro.plate("data", len(x)):
            flat = dist.MultivariateNormal(posterior.mean, posterior.covariance_matrix)
            pyro.sample("z", dist.TransformedDistribution(flat, [reshape]))

    x = torch.randn(3, 2, 4, 4)
    found = log_weights(model, guide, x, num_particles=particles, num_shared=shared_draws)
    assert_evidence(found, linear.log_evidence(x.flatten(1)), particles, shared_draws)


@pytest.mark.parametrize(("particles", "shared_draws"), DRAWS)
@pytest.mark.parametrize("with_factor", [True, False])
def test_auxiliary_site_of_the_guide(linear_problem, particles, shared_draws, with_factor):
    linear, x, _ = linear_problem
    drawn = []

    def guide(x):
        with pyro.plate("data", len(x)):
            auxiliary = dist.Normal(x[:, 0], 0.3)
            u = pyro.sample("u", auxiliary, infer={"is_auxiliary": True})
            drawn.append(auxiliary.log_prob(u))
            pyro.sample("z", linear.posterior(x))
            if with_factor:  # r(u) = q(u)
                pyro.factor("log_r", -auxiliary.log_prob(u), has_rsample=True)

    found = log_weights(linear, guide, x, num_particles=particles, num_shared=shared_draws)
    correction = torch.stack(drawn[-shared_draws:]).reshape(found.local.shape)
    evidence = linear.log_evidence(x) - (0 if with_factor else correction)
    torch.testing.assert_close(found.local, evidence.expand_as(found.local), **TOLERANCE)


@pytest.mark.parametrize("particles", [1, 3])
def test_a_second_plate_inside_sums_over_its_points(linear_problem, particles):
    """Pixels as a plate to the left or right of the data's, instead of an event dimension."""
    linear, x, guide = linear_problem

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("pixels", 5, dim=-2):
                mean = (z @ linear.weight.T + linear.bias).T
                pyro.sample("x", dist.Normal(mean, linear.scale), obs=x.T)

    found = log_weights(model, guide, x, num_particles=particles)
    assert_evidence(found, linear.log_evidence(x), particles, 1)


def test_num_data_is_taken_where_the_plate_is_sized_by_the_batch(linear_problem):
    model, x, guide = linear_problem
    assert log_weights(model, guide, x[:3]).num_data == 3
    assert log_weights(model, guide, x[:3], num_data=500).num_data == 500
