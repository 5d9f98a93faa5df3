"""The seam: with the exact posterior as guide every log weight is the log evidence, whatever the program looks like."""

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule, PyroSample
from pyro.poutine.messenger import Messenger
from torch import nn

from amortized_bayes.guides import Amortized, Constant, Factorized
from amortized_bayes.models import LinearGaussian
from amortized_bayes.networks import MLP
from amortized_bayes.sites import latent_sites
from amortized_bayes.weights import log_weights

TOLERANCE = {"rtol": 0, "atol": 1e-10}
DRAWS = [(1, 1), (5, 1), (1, 3), (4, 3)]
INDEX = torch.tensor([7, 2, 11, 0])


def assert_evidence(found, evidence, particles, shared_draws):
    assert found.local.shape == (shared_draws, particles, len(evidence))
    torch.testing.assert_close(found.local, evidence.expand_as(found.local), **TOLERANCE)


# Exact posteriors ----------------------------------------------------------------------------------------------------


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
    torch.testing.assert_close(scaled.log_q, subsampled.log_q, **TOLERANCE)


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


# Batch invariance ----------------------------------------------------------------------------------------------------


class NoiseOfThePoint(Messenger):
    """Makes the draw of each point the same function of the point, whoever its neighbours are."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg):
        if msg["name"] == "z":
            msg["value"] = msg["fn"].mean + msg["fn"].variance.sqrt() * self.noise.repeat(
                msg["fn"].batch_shape[0] // len(self.noise), 1
            )


def guides_for(model, x):
    sites = latent_sites(model, x).local
    encoder = nn.Sequential(nn.Flatten(), MLP([5, 8, 4]))
    return {
        "constant": Constant(sites, 12),
        "factorized": Factorized(sites, 12, start=torch.randn(12, 4)),
        "amortized": Amortized(sites, 12, 5, encoder=encoder),
    }


@pytest.mark.parametrize("family", ["constant", "factorized", "amortized"])
@pytest.mark.parametrize("particles", [1, 3])
def test_log_weight_does_not_depend_on_neighbours(linear_problem, family, particles):
    model, x, _ = linear_problem
    guide, noise = guides_for(model, x)[family], torch.randn(12, 2)

    def weights_of(index):
        return log_weights(model, NoiseOfThePoint(noise[index])(guide), x[index], index, num_particles=particles).local

    together = weights_of(torch.arange(12))
    assert together[0, 0].std() > 0.1
    torch.testing.assert_close(weights_of(INDEX), together[..., INDEX], **TOLERANCE)
    for n in (0, 5):
        torch.testing.assert_close(weights_of(torch.tensor([n])), together[..., n : n + 1], **TOLERANCE)


def test_a_guide_that_looks_at_the_whole_batch_breaks_the_invariance(linear_problem):
    model, x, _ = linear_problem

    def guide(x, index):
        with pyro.plate("data", 12, subsample=index):
            pyro.sample("z", dist.Normal((x - x.mean(0))[:, :2], 1.0).to_event(1))

    handler = NoiseOfThePoint(torch.zeros(1, 2))
    few, more = (log_weights(model, handler(guide), x[:n], torch.arange(n)).local[0, 0, 0] for n in (2, 9))
    assert (few - more).abs() > 1e-3


# Rows of a table for every particle ----------------------------------------------------------------------------------


def row_model(x, index):
    """Point n is observed at 10 n, so that any other row is found out."""
    with pyro.plate("data", 12, subsample=index):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 100.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def factorized_rows():
    x = 10.0 * torch.arange(12.0)[:, None]
    sites = latent_sites(row_model, x, torch.arange(12)).local
    return Factorized(sites, 12, start=torch.cat([x, torch.full_like(x, -25.0)], 1))


def param_indexed_by_the_plate(x, index):
    with pyro.plate("data", 12, subsample=index) as places:
        table = pyro.param("table", lambda: 10.0 * torch.arange(12.0)[:, None])
        pyro.sample("z", dist.Normal(table[places], 1e-11).to_event(1))


def param_selected_by_the_plate(x, index):
    with pyro.plate("data", 12, subsample=index):
        rows = pyro.param("table", lambda: 10.0 * torch.arange(12.0)[:, None], event_dim=1)
        pyro.sample("z", dist.Normal(rows, 1e-11).to_event(1))


@pytest.mark.parametrize("guide", ["factorized", param_indexed_by_the_plate, param_selected_by_the_plate])
@pytest.mark.parametrize("particles", [1, 2, 3, 7])  # 4 points times 3 particles are as many as all N
@pytest.mark.parametrize("index", [INDEX, torch.arange(12)], ids=["part", "all"])
def test_every_particle_finds_the_row_of_its_point(float64, guide, particles, index):
    guide = factorized_rows() if guide == "factorized" else guide
    found = log_weights(row_model, guide, 10.0 * index[:, None], index, num_particles=particles, num_shared=2)
    peak = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0))
    torch.testing.assert_close(found.log_likelihood, peak.expand(2, particles, len(index)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("particles", [1, 3])
def test_data_selected_by_pyro_subsample(linear_problem, particles):
    linear, x, _ = linear_problem

    def model(everything, index):
        with pyro.plate("data", 12, subsample=index):
            batch = pyro.subsample(everything, event_dim=1)
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = z @ linear.weight.T + linear.bias
            pyro.sample("x", dist.Normal(mean, linear.scale).to_event(1), obs=batch)

    def guide(everything, index):
        with pyro.plate("data", 12, subsample=index):
            pyro.sample("z", linear.posterior(pyro.subsample(everything, event_dim=1)))

    found = log_weights(model, guide, x, INDEX, num_particles=particles)
    assert_evidence(found, linear.log_evidence(x[INDEX]), particles, 1)


def test_gradients_reach_the_rows_that_the_plate_selects(float64):
    index = torch.tensor([3, 1, 6, 8])
    x = torch.randn(4, 1)
    log_weights(row_model, param_selected_by_the_plate, x, index, num_particles=3).local.sum().backward()
    gradient = pyro.param("table").unconstrained().grad
    assert gradient[index].abs().min() > 0
    assert gradient.abs().gt(0).sum() == 4


# Subsampled totals ---------------------------------------------------------------------------------------------------


def test_totals_of_the_batches_of_a_partition_average_to_the_full_total(linear_problem):
    model, x, _ = linear_problem
    guide, noise = guides_for(model, x)["factorized"], torch.randn(12, 2)

    def total(index):
        found = log_weights(model, NoiseOfThePoint(noise[index])(guide), x[index], index)
        return found.num_data * found.local.mean()

    batches = torch.randperm(12).split(4)
    everything = total(torch.arange(12))
    torch.testing.assert_close(torch.stack([total(b) for b in batches]).mean(), everything, **TOLERANCE)
    assert (total(batches[0]) - everything).abs() > 0.1


# Errors --------------------------------------------------------------------------------------------------------------


def without_plate(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def with_plate(x, name="data", size=None):
    with pyro.plate(name, size or len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def in_sequence(x):
    for n in pyro.plate("data", len(x)):
        z = pyro.sample(f"z_{n}", dist.Normal(0.0, 1.0))
        pyro.sample(f"x_{n}", dist.Normal(z, 1.0), obs=x[n])


def guide_in_plate(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


def guide_with_extra(x):
    guide_in_plate(x)
    pyro.sample("extra", dist.Normal(0.0, 1.0))


def guide_outside(x):
    pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))


def guide_without(x):
    pass


@pytest.mark.parametrize("particles", [1, 2])
@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (without_plate, guide_outside, "plate 'data' over data points, found plates: none"),
        (lambda x: with_plate(x, "points"), lambda x: with_plate(x, "points"), "found plates: 'points'"),
        (in_sequence, in_sequence, "sequential"),
        (with_plate, guide_without, "misses the model's latent site 'z'"),
        (with_plate, guide_with_extra, "samples 'extra', which the model does not"),
        (with_plate, guide_outside, "'z' is outside plate 'data' in the guide but inside"),
    ],
)
def test_programs_that_do_not_fit(model, guide, message, particles):
    with pytest.raises(ValueError, match=message):
        log_weights(model, guide, torch.zeros(3), num_particles=particles)


def test_shared_site_that_the_guide_puts_inside_the_plate():
    def model(x):
        pyro.sample("shared", dist.Normal(0.0, 1.0))
        with_plate(x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))
            pyro.sample("shared", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'shared' is inside plate 'data' in the guide but outside"):
        log_weights(model, guide, torch.zeros(3))


@pytest.mark.parametrize("counts", [{"num_particles": 0}, {"num_shared": 0}, {"num_particles": -1}])
def test_no_draws_are_refused(counts):
    with pytest.raises(ValueError, match="of 1 or more"):
        log_weights(with_plate, guide_in_plate, torch.zeros(3), **counts)


def test_model_that_closes_over_its_data():
    x = torch.zeros(3)
    assert log_weights(lambda: with_plate(x), lambda: guide_in_plate(x)).local.shape == (1, 1, 3)
    with pytest.raises(ValueError, match="instead of closing over it"):
        log_weights(lambda: with_plate(x), lambda: guide_in_plate(x), num_particles=2)


def test_model_that_draws_its_own_subsample(linear_problem):
    linear, x, _ = linear_problem

    def model(x):
        with pyro.plate("data", 12, subsample_size=4) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = z @ linear.weight.T + linear.bias
            pyro.sample("x", dist.Normal(mean, linear.scale).to_event(1), obs=x[index])
        seen.append(index)

    def guide(x):
        with pyro.plate("data", 12, subsample_size=4) as index:
            pyro.sample("z", linear.posterior(x[index]))

    seen = []
    found = log_weights(model, guide, x)
    assert_evidence(found, linear.log_evidence(x[seen[-1]]), 1, 1)
    assert found.num_data == 12
    with pytest.raises(ValueError, match="draws its own subsample of 4 points"):
        log_weights(model, guide, x, num_particles=2)
