"""Fresh factors for new points: at their optimum, with everything else as it was."""

import torch

from amortized_bayes.evaluation.bounds import elbo
from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.guides import Factorized
from amortized_bayes.inference.local import fresh_factors
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.models import DeepGenerative, LinearGaussian
from amortized_bayes.sites import latent_sites

OPTIONS = FitOptions(batch_size=50, row_learning_rate=1e-3, capture="off")


def linear_model(num_data):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 2, generator=generator)
    model = LinearGaussian(weight, torch.zeros(6), 0.7, num_data=num_data)
    x = torch.randn(50, 2, generator=generator) @ weight.T + 0.7 * torch.randn(50, 6, generator=generator)
    return model, x


def test_new_points_reach_the_best_factorized_elbo_whatever_the_rate_of_training():
    model, x = linear_model(num_data=1000)
    fresh = fresh_factors(model, None, latent_sites(model, x).local, x, OPTIONS, visits=300)
    found = elbo(fresh.model, fresh.guide, x, torch.arange(50), num_draws=50)
    loss = (model.best_factorized_elbo(x) - found.value).mean().item()
    assert -0.05 < loss < 0.05


def test_model_and_shared_guide_do_not_move():
    model = DeepGenerative(5, 2, (3,), 20, bayesian=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.ones(8, 5)
    fresh = fresh_factors(model, None, latent_sites(model, x).local, x, OPTIONS, visits=3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.model.state_dict().items())
    assert fresh.guide.table.weight.abs().sum() > 0


def test_analytic_kl_holds_where_guide_and_model_count_different_points():
    model, x = linear_model(num_data=1000)
    guide = Factorized(latent_sites(model, x).local, 50)
    first, second = (expected_log_weights(model, guide, x[:5], torch.arange(5)) for _ in range(2))
    assert torch.equal(first.log_q - first.log_prior, second.log_q - second.log_prior)
