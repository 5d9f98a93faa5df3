"""Bounds against exact values, whatever the chunks, with standard errors that mean what they say."""

from itertools import pairwise

import pytest
import torch
from pyro.poutine.messenger import Messenger
from shared_shift import EVERY, N, SharedShift, rows_near_the_optimum

from amortized_bayes.evaluation.bounds import elbo, iwae, log_predictive
from amortized_bayes.guides import Amortized, Constant, Factorized, MeanField
from amortized_bayes.models import DeepGenerative
from amortized_bayes.sites import latent_sites


@pytest.fixture
def shared(linear_problem):
    return SharedShift(linear_problem.model), linear_problem.x, 0.1 * torch.arange(5.0), 0.05


# ELBO -----------------------------------------------------------------------------------------------------------------


def test_elbo_of_the_exact_posterior_is_the_evidence_without_error(linear_problem):
    model, x, guide = linear_problem
    found = elbo(model, guide, x, num_draws=5, analytic_kl=False)
    torch.testing.assert_close(found.value, model.log_evidence(x), rtol=0, atol=1e-10)
    assert found.standard_error.max() < 1e-10
    assert found.shared == 0


def test_elbo_of_the_best_factors_is_the_closed_form(linear_problem):
    model, x, _ = linear_problem
    found = elbo(model, rows_near_the_optimum(model, x), x, EVERY, num_draws=1000)
    scores = (found.value - model.best_factorized_elbo(x)) / found.standard_error
    assert scores.abs().max() < 4
    assert (found.value - model.log_evidence(x)).sum() / found.standard_error.norm() < -20


def test_elbo_is_the_sum_of_its_terms(shared):
    model, x, loc, variance = shared
    found = elbo(model, model.guide(loc, variance), x, EVERY, num_draws=20)
    torch.testing.assert_close(found.value, found.log_likelihood - found.kl + found.shared)
    torch.testing.assert_close(found.shared, -model.shared_kl(loc, variance) / N)


def test_elbo_with_a_shared_latent(shared):
    model, x, loc, variance = shared
    found = elbo(model, model.guide(loc, variance), x, EVERY, num_draws=500)
    exact = model.expected_log_evidence(x, loc, variance) - model.shared_kl(loc, variance) / N
    assert ((found.value - exact) / found.standard_error).abs().max() < 4


def test_one_draw_has_no_error(linear_problem):
    model, x, guide = linear_problem
    assert elbo(model, guide, x, num_draws=1).standard_error.isnan().all()


@pytest.mark.slow
def test_reduced_estimators_agree(float64):
    model = DeepGenerative(5, 2, [4], N)
    x = torch.bernoulli(torch.full((N, 5), 0.5))
    sites = latent_sites(model, x)
    guide = Constant(sites.local, N, shared=MeanField(sites.shared, locs=sites.shared_draw, log_scale=-1.0))
    options = [{"analytic_kl": False}, {"analytic_kl": True}, {"local_reparametrization": True}]
    found = [elbo(model, guide, x, EVERY, num_draws=150, **each) for each in options]
    for other in found[1:]:
        error = (found[0].standard_error.square() + other.standard_error.square()).sqrt()
        assert ((found[0].value - other.value) / error).abs().max() < 4.5
        assert other.standard_error.mean() < found[0].standard_error.mean()


# IWAE -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [1, 3])
def test_iwae_of_the_exact_posterior_is_the_evidence(linear_problem, draws):
    model, x, guide = linear_problem
    found = iwae(model, guide, x, num_particles=4, num_shared=draws)
    torch.testing.assert_close(found.value, model.log_evidence(x), rtol=0, atol=1e-10)
    assert found.standard_error.max() < 1e-10


@pytest.mark.slow
def test_iwae_rises_from_the_elbo_to_the_evidence(linear_problem):
    model, x, _ = linear_problem
    guide = rows_near_the_optimum(model, x, excess=0.7)
    evidence = model.log_evidence(x)
    bounds = [iwae(model, guide, x, EVERY, num_particles=s, num_shared=t) for s, t in ((1, 800), (10, 80), (100, 8))]
    bounds.append(iwae(model, guide, x, EVERY, num_particles=20_000))
    for lower, higher in pairwise(bounds):
        error = (lower.standard_error.square() + higher.standard_error.square()).sum().sqrt()
        assert (higher.value - lower.value).sum() > -4 * error
    assert ((bounds[0].value - bounds[1].value).sum() / bounds[0].standard_error.norm()) < -10
    assert ((bounds[-1].value - evidence) / bounds[-1].standard_error).abs().max() < 4
    assert (bounds[-1].value - evidence).abs().max() < 0.03


def test_iwae_of_one_particle_is_the_elbo(linear_problem):
    model, x, _ = linear_problem
    guide = rows_near_the_optimum(model, x, excess=0.3)
    torch.manual_seed(1)
    bound = iwae(model, guide, x, EVERY, num_particles=1, num_shared=50)
    torch.manual_seed(1)
    plain = elbo(model, guide, x, EVERY, num_draws=50, analytic_kl=False)
    torch.testing.assert_close(bound.value, plain.value)
    torch.testing.assert_close(bound.standard_error, plain.standard_error)


@pytest.mark.parametrize(("with_index", "particles"), [(True, 1), (False, 3)])
@pytest.mark.slow_cases("False-3")
def test_iwae_with_a_shared_latent_takes_a_share_of_its_divergence(shared, with_index, particles):
    """Given theta every weight is log p(x | theta): what is left is the average over theta."""
    model, x, loc, variance = shared
    args = (x, EVERY) if with_index else (x,)
    found = iwae(model, model.guide(loc, variance), *args, num_particles=particles, num_shared=400)
    exact = model.expected_log_evidence(x, loc, variance) - model.shared_kl(loc, variance) / N
    assert ((found.value - exact) / found.standard_error).abs().max() < 4
    assert found.standard_error.max() < 0.1  # small against the share, or a wrong one would pass
    assert model.shared_kl(loc, variance) / N > 0.3


# Predictive density ---------------------------------------------------------------------------------------------------


def test_log_predictive_is_the_closed_form(shared):
    model, x, loc, variance = shared
    test_points = x + 0.5
    found = log_predictive(model, model.guide(loc, variance), test_points, num_particles=1, num_shared=1000)
    exact = model.log_predictive(test_points, loc, variance)
    assert ((found.value - exact) / found.standard_error).abs().max() < 4
    assert (found.value - exact).abs().max() < 0.1
    mean = model.expected_log_evidence(test_points, loc, variance)
    assert ((mean - exact) / found.standard_error).max() < -4  # it averages densities and not their logs


def test_log_predictive_of_one_draw_of_theta_is_iwae(linear_problem):
    model, x, _ = linear_problem
    guide = rows_near_the_optimum(model, x, excess=0.3)
    torch.manual_seed(1)
    bound = iwae(model, guide, x, EVERY, num_particles=7)
    torch.manual_seed(1)
    predictive = log_predictive(model, guide, x, EVERY, num_particles=7, num_shared=1)
    torch.testing.assert_close(bound.value, predictive.value)
    torch.testing.assert_close(bound.standard_error, predictive.standard_error)


# Standard errors ------------------------------------------------------------------------------------------------------


def calibration(estimates, exact):
    """Mean square of z-scores: 1 for an honest standard error."""
    scores = torch.stack([(e.value - exact) / e.standard_error for e in estimates])
    return scores.square().nanmean().item()  # where k̂ is high there is none


@pytest.mark.parametrize("kind", ["elbo", "iwae over theta", "iwae over particles", "predictive"])
@pytest.mark.slow_cases("elbo", "iwae over theta", "predictive")
def test_standard_errors_are_calibrated(linear_problem, shared, kind):
    model, x, _ = linear_problem
    guide, deep = rows_near_the_optimum(model, x, excess=0.3), shared[0]
    of_theta = deep.guide(*shared[2:])
    if kind == "elbo":
        exact = elbo(model, guide, x, EVERY, num_draws=2000).value
        found = [elbo(model, guide, x, EVERY, num_draws=30) for _ in range(20)]
    elif kind == "iwae over theta":
        exact = deep.expected_log_evidence(x, *shared[2:]) - deep.shared_kl(*shared[2:]) / N
        found = [iwae(deep, of_theta, x, EVERY, num_particles=2, num_shared=30) for _ in range(20)]
    elif kind == "iwae over particles":
        exact = model.log_evidence(x)
        found = [iwae(model, guide, x, EVERY, num_particles=1000) for _ in range(60)]
    else:
        exact = deep.log_predictive(x, *shared[2:])
        found = [log_predictive(deep, of_theta, x, num_particles=1, num_shared=50) for _ in range(20)]
    assert 0.6 < calibration(found, exact) < 1.5
    halved = [e._replace(standard_error=e.standard_error / 2) for e in found]
    assert calibration(halved, exact) > 2  # an error of half the size is found out


# Chunks ---------------------------------------------------------------------------------------------------------------


class AtTheMeans(Messenger):
    """Gives z its mean for a draw, so that numbers do not hang on the draws."""

    def _pyro_sample(self, msg):
        if msg["name"] == "z":
            msg["value"] = msg["fn"].mean


def sharp_guides(model, x):
    """Guides that draw their means; each row is another."""
    sites = latent_sites(model, x).local
    return {
        "factorized": AtTheMeans()(Factorized(sites, N, start=torch.randn(N, 4))),
        "amortized": AtTheMeans()(Amortized(sites, N, 5, encoder=torch.nn.Linear(5, 4))),
    }


@pytest.mark.parametrize("family", ["factorized", "amortized"])
@pytest.mark.parametrize("arguments", ["index", "keyword", "none"])
@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_chunks_do_not_change_the_values(linear_problem, family, arguments, chunk):
    model, x, _ = linear_problem
    guide = sharp_guides(model, x)[family]
    args = (x, EVERY) if arguments == "index" else (x,)
    kwargs = {"index": EVERY} if arguments == "keyword" else {}
    wholes = [
        elbo(model, guide, *args, num_draws=2, **kwargs),
        iwae(model, guide, *args, num_particles=3, **kwargs),
        log_predictive(model, guide, *args, num_particles=3, num_shared=2, **kwargs),
    ]
    parts = [
        elbo(model, guide, *args, num_draws=2, chunk_size=chunk, **kwargs),
        iwae(model, guide, *args, num_particles=3, max_rows=3 * chunk, **kwargs),
        log_predictive(model, guide, *args, num_particles=3, num_shared=2, max_rows=3 * chunk, **kwargs),
    ]
    for whole, part in zip(wholes, parts, strict=True):
        assert part.value.shape == (N,)
        torch.testing.assert_close(part.value, whole.value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("with_index", [True, False])
def test_shared_share_does_not_depend_on_chunks(shared, with_index):
    model, x, loc, variance = shared
    args = (x, EVERY) if with_index else (x,)
    for chunk in (5, 12, 100):
        found = elbo(model, model.guide(loc, variance), *args, num_draws=3, chunk_size=chunk)
        torch.testing.assert_close(found.shared, -model.shared_kl(loc, variance) / N)
    given = elbo(model, model.guide(loc, variance), x, num_draws=3, chunk_size=5, num_data=600)
    torch.testing.assert_close(given.shared, -model.shared_kl(loc, variance) / 600)


def test_memory_is_bounded_by_rows_at_once(linear_problem):
    model, x, guide = linear_problem
    seen = []

    def watched(x, index=None):
        seen.append(len(x))
        return guide(x, index)

    iwae(model, watched, x, EVERY, num_particles=6, max_rows=25)
    assert max(seen) == 24
    iwae(model, watched, x, EVERY, num_particles=60, max_rows=25)
    assert max(seen) == 60  # one point is the least


def test_no_gradients_are_kept(linear_problem):
    model, x, _ = linear_problem
    guide = rows_near_the_optimum(model, x)
    for found in (elbo(model, guide, x, EVERY, num_draws=2), iwae(model, guide, x, EVERY, num_particles=2)):
        assert not found.value.requires_grad
