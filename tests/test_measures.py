"""What is measured of a fit, against exact numbers: on which points, against which targets, by which q."""

import math
from dataclasses import replace

import pytest
import torch

from amortized_bayes.comparing.measures import final_measures, held_measures, over_points, paired, rung_measures
from amortized_bayes.comparing.problem import FitProblem, Held
from amortized_bayes.evaluation.errors import active_units, hidden_units_in_use, mean_latents
from amortized_bayes.guides import Constant, Factorized, MeanField
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.models import DeepGenerative, LinearGaussian
from amortized_bayes.per_point import PointValues
from amortized_bayes.sites import latent_sites

N = 40


@pytest.fixture
def problem(float64):
    """A linear-Gaussian model whose posterior is factorized, with test points and targets of their own."""
    model = LinearGaussian(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), torch.zeros(3), 0.5, num_data=N)
    train, test = torch.randn(N, 3), 3 + torch.randn(30, 3)
    held = Held(torch.randn(N, 3), test, torch.randn(30, 3), particles=5, points=20, predictive_points=20)
    new_model = lambda: (model, latent_sites(model, train))  # noqa: E731
    return FitProblem(train, new_model, lambda _: FitOptions(), seed=0, epochs=2, budgets=(1,), held=held, num_draws=3)


def exact_rows(problem, x):
    model, sites = problem.new_model()
    scale = model.posterior_precision().diagonal().rsqrt().log().expand(len(x), -1)
    rows = torch.zeros(N, 4)
    rows[: len(x)] = torch.cat([model.posterior(x).mean, scale], 1)
    return Factorized(sites.local, N, start=rows)


def test_held_measures_are_of_test_points_and_test_targets(problem):
    held, (model, _) = problem.held, problem.new_model()
    found = held_measures(problem, held, model, exact_rows(problem, held.test))
    evidence = model.log_evidence(held.test)
    assert found["log_predictive"].value == pytest.approx(evidence[:20].mean().item(), abs=1e-9)
    gap = found["test_log_likelihood"].value - found["test_kl"].value
    assert abs(gap - evidence.mean().item()) < 0.5
    assert abs(gap - model.log_evidence(problem.data).mean().item()) > 5
    means = model.posterior(held.test).mean @ model.weight.T
    assert found["final_mse_test"].value == pytest.approx((means - held.test_target).square().mean().item())


def test_training_measures_are_against_the_targets_and_not_the_data(problem):
    model, _ = problem.new_model()
    guide = exact_rows(problem, problem.data)
    means = model.posterior(problem.data).mean @ model.weight.T
    exact = (means - problem.held.target).square().mean().item()
    final, values = final_measures(problem, model, guide)
    for found in (final["final_mse_train"], rung_measures(problem, model, guide)[0]["mse_train"]):
        assert found.value == pytest.approx(exact)
    assert final["final_iwae"].value == pytest.approx(model.log_evidence(problem.data)[:20].mean().item(), abs=1e-9)
    assert final["final_elbo"] == over_points(values)
    assert final["active_units"].value == 2


def test_a_proposal_makes_the_log_predictive_density_that_of_the_model(problem):
    held, (model, sites) = problem.held, problem.new_model()
    poor = Constant(sites.local, N)
    options = (problem, held, model, poor)
    evidence = model.log_evidence(held.test)[:20].mean().item()
    proposed = held_measures(*options, proposal=exact_rows(problem, held.test))
    assert proposed["log_predictive"].value == pytest.approx(evidence, abs=1e-9)
    assert held_measures(*options)["log_predictive"].value < evidence - 1
    assert proposed["test_kl"] == held_measures(*options)["test_kl"]


def test_a_constant_guide_has_no_active_unit(problem):
    model, sites = problem.new_model()
    found, _ = rung_measures(replace(problem, held=None), model, Constant(sites.local, N))
    assert found["active_units"].value == 0
    assert set(found) == {"elbo", "kl", "active_units"}
    rows = torch.cat([torch.linspace(-1, 1, N)[:, None], torch.zeros(N, 3)], 1)
    guide = Factorized(sites.local, N, start=rows)
    assert active_units(mean_latents(guide, problem.data)) == 1
    torch.testing.assert_close(mean_latents(guide, problem.data), rows[:, :2])


def test_errors_hold_the_draws_of_shared_weights():
    model = DeepGenerative(8, 2, [4], N)
    x = torch.bernoulli(torch.full((N, 8), 0.3))
    sites = latent_sites(model, x)
    shared = MeanField(sites.shared, locs=sites.shared_draw, log_scale=-1.5)
    guide = Constant(sites.local, N, shared=shared)
    held = Held(x, x[:10], x[:10], particles=4, points=20)
    problem = FitProblem(x, lambda: (model, sites), lambda _: FitOptions(), 0, 2, (1,), num_draws=12, held=held)
    final, values = final_measures(problem, model, guide)
    assert values.shared_error > 0
    points = values.value.std().item() / math.sqrt(N)
    assert final["final_elbo"].error == pytest.approx(math.hypot(points, values.shared_error))
    assert final["final_elbo_monte_carlo"].error > values.shared_error
    assert final["final_iwae"].error > 0
    one = replace(problem, num_draws=1)
    assert rung_measures(one, model, guide)[0]["elbo"].error is None
    restored = PointValues(values.value.numpy(), float(values.shared_error))
    assert over_points(restored)[:2] == pytest.approx(over_points(values)[:2])
    assert paired(restored, restored._replace()).error == pytest.approx(math.sqrt(2) * values.shared_error)
    found = held_measures(problem, held, model, guide)
    assert found["test_log_likelihood"].error > 0
    assert found["log_predictive"].error > 0


def test_hidden_units_are_in_use_where_what_they_add_varies():
    """Of 4 hidden units: dead at the input, dead at the output, one that adds little, and one that is in use."""
    weights = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    out = torch.tensor([[1.0, 0.0, 0.02, 1.0], [1.0, 0.0, 0.02, 1.0], [1.0, 0.0, 0.02, 1.0]])
    model = DeepGenerative(3, 2, [4], 40, bayesian=False)
    assert model.network is not None
    with torch.no_grad():
        for parameter, value in zip(model.network.parameters(), (weights, 0.0, out, 0.0), strict=True):
            parameter.copy_(torch.as_tensor(value))
    rows = torch.cat([torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(40, 2)], 1)
    x = torch.zeros(40, 3)
    sites = latent_sites(model, x).local
    assert hidden_units_in_use(model, Factorized(sites, 40, start=rows), x) == 1
    assert hidden_units_in_use(model, Constant(sites, 40), x) == 0
    linear = LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
    assert hidden_units_in_use(linear, Constant(latent_sites(linear, x).local, 40), x) is None
