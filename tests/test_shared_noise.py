"""Errors that include the draws of theta that all points share."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from shared_shift import EVERY, N, SharedShift

from amortized_bayes.comparing.measures import paired
from amortized_bayes.evaluation import bounds
from amortized_bayes.evaluation.bounds import elbo, iwae, log_predictive
from amortized_bayes.guides import Amortized, Constant, Factorized, MeanField
from amortized_bayes.models import DeepGenerative
from amortized_bayes.per_point import PointValues, mean_over_points, paired_difference
from amortized_bayes.sites import latent_sites


@pytest.fixture
def shared(linear_problem):
    return SharedShift(linear_problem.model), linear_problem.x, 0.1 * torch.arange(5.0), 0.05


@pytest.fixture
def decoder():
    """A small Bayesian decoder whose q(theta) is wide, a guide and 60 points."""
    model = DeepGenerative(8, 2, [4], 60)
    x = torch.bernoulli(torch.full((60, 8), 0.3))
    sites = latent_sites(model, x)
    shared = MeanField(sites.shared, locs=sites.shared_draw, log_scale=-1.5)
    return model, Amortized(sites.local, 60, 8, width=4, shared=shared), x


@pytest.fixture
def of_prior(decoder):
    """The decoder with q(z) = p(z), whose weights have light tails."""
    model, guide, x = decoder
    return model, Factorized(guide.sites, 60, start=torch.zeros(60, 4), shared=guide.shared), x


def spread(scores):
    """Standard deviation of z-scores around 0."""
    return torch.tensor(scores).square().mean().sqrt().item()


def scores_of(*pairs):
    found = [paired(*pair) for pair in pairs]
    return [m.value / m.error for m in found if m.error]


@pytest.mark.parametrize("times", [25, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_guide_compared_with_itself_has_z_scores_of_one(decoder, times):
    model, guide, x = decoder
    pairs = [[elbo(model, guide, x, torch.arange(60), num_draws=10) for _ in range(2)] for _ in range(times)]
    assert abs(spread(scores_of(*pairs)) - 1) < 3 / math.sqrt(2 * times)
    assert (
        spread(scores_of(*((a.value, b.value) for a, b in pairs))) > 2
    )  # of points alone, as if draws were not shared


@pytest.mark.parametrize("times", [30, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_with_local_reparametrization_points_share_no_noise(decoder, times):
    model, guide, x = decoder
    options = {"num_draws": 4, "local_reparametrization": True}
    pairs = [[elbo(model, guide, x, torch.arange(60), **options) for _ in range(2)] for _ in range(times)]
    assert all(found.shared_error == 0 for pair in pairs for found in pair)
    assert abs(spread(scores_of(*pairs)) - 1) < 3 / math.sqrt(2 * times)


@pytest.mark.slow
@pytest.mark.parametrize("bound", [iwae, log_predictive])
def test_bounds_of_a_guide_compared_with_itself_have_z_scores_of_one(shared, bound):
    model, x, loc, variance = shared
    guide = model.guide(loc, variance)
    pairs = [[bound(model, guide, x, EVERY, num_particles=1, num_shared=16) for _ in range(2)] for _ in range(60)]
    assert 0.75 < spread(scores_of(*pairs)) < 1.3
    assert spread(scores_of(*((a.value, b.value) for a, b in pairs))) > 1.5


@pytest.mark.slow
def test_streamed_iwae_has_the_shared_error_of_the_unstreamed(shared):
    model, x, loc, variance = shared
    guide = model.guide(loc, variance)
    streamed, whole = (iwae(model, guide, x, EVERY, num_particles=s, num_shared=t) for s, t in ((1_001, 30), (1, 300)))
    ratio = streamed.shared_error * math.sqrt(30) / (whole.shared_error * math.sqrt(300))
    assert abs(ratio - 1) < 3 / math.sqrt(2 * 29)


def test_the_shared_error_is_that_of_random_effects():
    """Of points 2, of draws 0.5, of both 1: the mean of 8 draws moves by 0.5 / sqrt(8) with the draws alone."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found, plain, errors = [], [], []
    for _ in range(2000):
        values = 2 * normal(30) + 0.5 * normal(8, 1) + normal(8, 30)
        value, _, error = bounds._over_draws(values, drawn=True)
        found.append(error**2)
        plain.append(bounds._over_draws(2 * normal(30) + normal(8, 30), drawn=True)[2] ** 2)
        errors.append(mean_over_points(PointValues(value, error))[1] ** 2)
    of_draws, total = torch.tensor(found), torch.tensor(errors)
    assert abs(of_draws.mean() - 0.25 / 8) < 4 * of_draws.std() / math.sqrt(2000)
    exact = 4 / 30 + 0.25 / 8 + 1 / 240  # of points, draws and both, each once
    assert abs(total.mean() - exact) < 4 * total.std() / math.sqrt(2000)
    assert torch.tensor(plain).mean() < 0.5 / 240  # nothing shared, nothing found but what clipping at 0 leaves


@pytest.mark.parametrize("particles", [3, 1_001])
def test_one_draw_of_theta_leaves_the_error_unknown(shared, particles):
    model, x, loc, variance = shared
    guide = model.guide(loc, variance)
    found = [
        elbo(model, guide, x, EVERY, num_draws=1),
        iwae(model, guide, x, EVERY, num_particles=particles, num_shared=1),
        log_predictive(model, guide, x, EVERY, num_particles=3, num_shared=1),
    ]
    for each in found:
        assert each.standard_error.isnan().all()
        assert math.isnan(each.shared_error)
        assert math.isnan(each.mean()[1])
        assert paired(each, each._replace()).error is None


@pytest.mark.slow
def test_several_draws_are_the_default_where_latents_are_shared(linear_problem, shared):
    model, x, loc, variance = shared
    thetas = []

    def watched(x, index=None):
        theta = pyro.sample("theta", dist.Normal(loc, math.sqrt(variance)).to_event(1))
        thetas.append(theta[0].item())
        with pyro.plate("data", len(x) if index is None else N, subsample=index):
            pyro.sample("z", model.linear.posterior(x - theta + model.linear.bias))

    for bound, draws in ((iwae, 8), (log_predictive, 32)):
        thetas.clear()
        found = bound(model, watched, x, EVERY, num_particles=3, max_rows=9)
        assert len(set(thetas)) == draws
        assert 0 < found.shared_error < math.inf
        alone = bound(linear_problem.model, linear_problem.exact_guide, x, num_particles=3)
        assert alone.shared_error == 0
        assert alone.standard_error.isfinite().all()
    with pytest.raises(ValueError, match="expected num_shared of 1 or more, got 0"):
        iwae(model, watched, x, num_shared=0)


@pytest.mark.parametrize("chunk", [1, 5])
def test_all_chunks_share_the_draws_of_theta(shared, chunk):
    """Given theta every weight is log p(x | theta): with one theta for all chunks the values are those of one chunk."""
    model, x, loc, variance = shared
    guide = model.guide(loc, variance)
    for evaluate in (
        lambda size: elbo(model, guide, x, EVERY, num_draws=1, analytic_kl=False, chunk_size=size),
        lambda size: iwae(model, guide, x, EVERY, num_particles=3, num_shared=1, max_rows=3 * size),
        lambda size: log_predictive(model, guide, x, EVERY, num_particles=3, num_shared=1, max_rows=3 * size),
    ):
        values = []
        for size in (N, chunk):
            torch.manual_seed(3)
            values.append(evaluate(size).value)
        torch.testing.assert_close(*values, rtol=0, atol=1e-10)


class Idle:
    """A linear-Gaussian model with a shared latent that does nothing, whose KL is known."""

    def __init__(self, linear):
        self.linear = linear

    def __call__(self, x, index=None):
        pyro.sample("theta", dist.Normal(0.0, 1.0))
        self.linear(x, index)

    def guide(self, x, index=None):
        pyro.sample("theta", dist.Normal(3.0, 0.1))
        with pyro.plate("data", len(x) if index is None else N, subsample=index):
            pyro.sample("z", self.linear.posterior(x))


@pytest.mark.parametrize("particles", [1, 7, 1_001])
def test_iwae_has_the_kl_of_theta_in_closed_form(linear_problem, particles):
    model = Idle(linear_problem.model)
    kl = 0.5 * (0.01 + 9 - 1) - math.log(0.1)
    found = iwae(model, model.guide, linear_problem.x, EVERY, num_particles=particles, num_shared=2)
    exact = linear_problem.model.log_evidence(linear_problem.x) - kl / N
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-6)
    assert found.shared_error < 1e-6


@pytest.mark.parametrize("times", [15, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_iwae_does_not_lie_below_the_elbo(decoder, times):
    """Of one particle it is the ELBO; of ten it is above, beyond doubt at times, and never below beyond doubt."""
    model, guide, x = decoder
    index = torch.arange(60)
    gains = {1: [], 10: []}
    for particles, found in gains.items():
        for _ in range(times):
            bound = iwae(model, guide, x, index, num_particles=particles, num_shared=10)
            value, error = paired_difference(bound, elbo(model, guide, x, index, num_draws=10))
            found.append(value / error)
    assert abs(spread(gains[1]) - 1) < 3 / math.sqrt(2 * times)
    assert min(gains[10]) > -3
    assert torch.tensor(gains[10]).mean() > 4 / math.sqrt(times)


def test_log_predictive_by_local_reparametrization_is_that_of_drawn_weights(of_prior):
    model, guide, x = of_prior
    options = {"num_particles": 20, "num_shared": 20}
    plain = log_predictive(model, guide, x, **options)
    found = log_predictive(model, guide, x, **options, local_reparametrization=True)
    error = (plain.standard_error.square() + found.standard_error.square()).sqrt()
    assert ((found.value - plain.value) / error).abs().max() < 4.5
    assert found.standard_error.mean() < plain.standard_error.mean() / 2
    assert found.shared_error == 0 < plain.shared_error
    terms = elbo(model, guide, x, torch.arange(60), num_draws=100)
    above, sure = paired_difference(found, PointValues(terms.log_likelihood - terms.kl, terms.shared_error))
    assert above > 4 * sure  # it averages densities and not their logs


@pytest.mark.parametrize("sized_by_batch", [True, False])
def test_repeated_points_keep_their_own_factors(sized_by_batch):
    """From q(z_n) = p(z_n|x_n) every draw has the weight p(x_n), and from that of another point it has not."""
    x = torch.linspace(-2, 2, 5)[:, None]

    def model(x, index=None):
        weight = pyro.sample("w", dist.Normal(torch.ones(1, 1), 1e-5).to_event(2))
        size, subsample = (len(x), None) if sized_by_batch else (5, index)
        with pyro.plate("data", size, subsample=subsample):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.nn.functional.linear(z, weight), 1.0).to_event(1), obs=x)

    args = (x,) if sized_by_batch else (x, torch.arange(5))
    sites = latent_sites(model, *args)
    posterior = torch.cat([x / 2, torch.full((5, 1), -0.5 * math.log(2))], 1)
    shared = MeanField(sites.shared, locs={"w": torch.ones(1, 1)}, log_scale=math.log(1e-5))
    guide = Factorized(sites.local, 5, start=posterior, shared=shared)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x[:, 0])
    for max_rows in (2, 7, 1_000):  # points apart, and together, in blocks and at once
        options = {"num_particles": 3, "num_shared": 2, "local_reparametrization": True, "max_rows": max_rows}
        assert log_predictive(model, guide, *args, **options).value.tolist() == pytest.approx(exact.tolist(), abs=1e-3)


def test_log_predictive_by_local_reparametrization_has_an_error_that_holds(of_prior):
    model, guide, x = of_prior
    options = {"num_particles": 10, "num_shared": 5, "local_reparametrization": True}
    pairs = [[log_predictive(model, guide, x, **options) for _ in range(2)] for _ in range(20)]
    assert 0.6 < spread(scores_of(*pairs)) < 1.4
    scores = torch.stack([(a.value - b.value) / (a.standard_error**2 + b.standard_error**2).sqrt() for a, b in pairs])
    assert 0.8 < scores.square().mean() < 1.3  # weights are skewed


def test_a_constant_guide_without_shared_latents_is_as_before(linear_problem):
    model, x, _ = linear_problem
    guide = Constant(latent_sites(model, x).local, N)
    found = elbo(model, guide, x, EVERY, num_draws=3)
    assert found.shared_error == 0
    assert found.mean() == mean_over_points(found.value)
