"""Programs that ``log_weights`` refuses, and what it says of them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_evidence import assert_evidence

from amortized_bayes.evaluation.bounds import elbo
from amortized_bayes.joint import joint_density
from amortized_bayes.weights import log_weights


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


def pairs(x):
    """Two latents a point, which the model multiplies with: draws of another shape are torch's to refuse."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ torch.ones(2), 1.0), obs=x)


def guide_of(shape, events, size=0):
    def guide(x):
        with pyro.plate("data", len(x) + size):
            pyro.sample("z", dist.Normal(torch.zeros(len(x) + size, *shape), 1.0).to_event(events))

    return guide


@pytest.mark.parametrize("particles", [1, 2])
@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (without_plate, guide_outside, "plate 'data' over data points, found plates: none"),
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


def test_a_plate_that_the_model_does_not_have():
    with pytest.raises(ValueError, match="plate 'data' over data points, found plates: 'points'"):
        log_weights(lambda x: with_plate(x, "points"), lambda x: with_plate(x, "points"), torch.zeros(3), plate="data")


@pytest.mark.parametrize("counts", [{"num_particles": 0}, {"num_shared": 0}, {"num_particles": -1}])
def test_no_draws_are_refused(counts):
    with pytest.raises(ValueError, match="of 1 or more"):
        log_weights(with_plate, guide_in_plate, torch.zeros(3), **counts)


def test_model_that_closes_over_its_data():
    """Nothing can be repeated: particles are drawn in turn, and chains are refused."""
    x = torch.zeros(3)
    assert log_weights(lambda: with_plate(x), lambda: guide_in_plate(x)).local.shape == (1, 1, 3)
    assert log_weights(lambda: with_plate(x), lambda: guide_in_plate(x), num_particles=2).local.shape == (1, 2, 3)
    with pytest.raises(ValueError, match="instead of closing over it"):
        joint_density(lambda: with_plate(x))


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
    with pytest.raises(ValueError, match=r"got 4 of them where 12 were passed.*pass `subsample=index`"):
        elbo(model, guide, x)


@pytest.mark.parametrize("call", [log_weights, elbo])
@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (guide_of((3,), 1), r"^the guide draws 'z' of shape \(4, 3\), expected \(4, 2\), as the model has it$"),
        (guide_of((), 0), r"^the guide draws 'z' of shape \(4,\), expected \(4, 2\), as the model has it$"),
        (guide_of((2,), 1, size=1), "^the guide draws 'z' of 5 points, expected 4, as the model has: size its plate"),
        (guide_of((2,), 0), r"the guide on data of shape \(4,\): .* .* one draw a row, .* by \.to_event\(1\)$"),
    ],
)
def test_draws_that_the_model_cannot_take_are_not_blamed_on_the_data(call, guide, message):
    with pytest.raises(ValueError, match=message):
        call(pairs, guide, torch.zeros(4))
