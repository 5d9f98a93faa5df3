"""Fresh factors for new points: at their optimum, with everything else as it was."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch.distributions import constraints

from amortized_bayes.evaluation.bounds import elbo
from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.guides import Factorized, MeanField
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
    fresh = fresh_factors(model, None, latent_sites(model, x).local, x, OPTIONS)
    found = elbo(fresh.model, fresh.guide, x, torch.arange(50), num_draws=50)
    loss = (model.best_factorized_elbo(x) - found.value).mean().item()
    assert -0.05 < loss < fresh.gain + 0.05  # what is left is about the last gain
    assert fresh.settled
    assert not fresh.note
    assert fresh.visits in (100, 200, 400)
    assert fresh.gain < 0.1


@pytest.mark.slow
def test_points_are_visited_until_they_are_settled():
    model, x = linear_model(num_data=1000)
    sites = latent_sites(model, x).local
    hurried = fresh_factors(model, None, sites, x, OPTIONS, visits=(5, 10))
    settled = fresh_factors(model, None, sites, x, OPTIONS, visits=(5, 800))
    assert hurried.visits == 10
    assert not hurried.settled
    assert hurried.note == f"fresh factors not settled: 10 visits gain {hurried.gain:.2f} nats over half as many"
    assert settled.settled
    assert settled.visits > 10
    found = [elbo(f.model, f.guide, x, torch.arange(50), num_draws=200).value for f in (hurried, settled)]
    exact = model.best_factorized_elbo(x)
    left = [(exact - values).mean().item() for values in found]
    assert left[0] > 0.3
    assert left[1] < 2 * 0.1  # what is left is about the last gain
    alone = fresh_factors(model, None, sites, x, OPTIONS, visits=(5, 5))
    assert math.isnan(alone.gain)
    assert not alone.settled  # nobody asked what more would gain
    assert alone.note == "fresh factors not settled: 5 visits, never doubled"
    again = fresh_factors(model, None, sites, x, OPTIONS, visits=(5, 10))
    assert again.gain == hurried.gain
    with pytest.raises(ValueError, match="expected visits of 1 or more, got 0"):
        fresh_factors(model, None, sites, x, OPTIONS, visits=(0, 800))


def test_model_and_shared_guide_do_not_move():
    model = DeepGenerative(5, 2, (3,), 20, bayesian=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.ones(8, 5)
    fresh = fresh_factors(model, None, latent_sites(model, x).local, x, OPTIONS, visits=(3, 3))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.model.state_dict().items())
    assert fresh.guide.table.weight.abs().sum() > 0


def test_the_param_store_does_not_move():
    class Scaled(PyroModule):
        def forward(self, x, index=None):
            scale = pyro.param("scale", torch.tensor(3.0), constraint=constraints.positive)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
                pyro.sample("x", dist.Normal(z[:, None], scale).to_event(1), obs=x)

    model, x = Scaled(), torch.randn(8, 5)
    sites = latent_sites(model, x).local
    fresh_factors(model, None, sites, x, OPTIONS, visits=(5, 5))
    assert pyro.param("scale").item() == pytest.approx(3.0, abs=1e-6)
    assert pyro.get_param_store()._params["scale"].requires_grad


def test_q_of_theta_is_frozen():
    model = DeepGenerative(5, 2, (3,), 20)
    x = torch.ones(8, 5)
    sites = latent_sites(model, x)
    shared = MeanField(sites.shared, locs=sites.shared_draw)
    before = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
    fresh = fresh_factors(model, shared, sites.local, x, OPTIONS, visits=(3, 3))
    assert fresh.guide.shared is not shared
    for held in (shared, fresh.guide.shared):
        assert all(torch.equal(before[name], tensor) for name, tensor in held.state_dict().items())
    assert [name for name, p in fresh.guide.named_parameters() if p.requires_grad] == ["table.weight"]
    assert all(p.requires_grad for p in shared.parameters())
    assert fresh.guide.table.weight.abs().sum() > 0


def test_fresh_factors_are_not_annealed():
    """A fit with KL warm-up leaves its test points their whole KL."""
    model, x = linear_model(num_data=1000)
    sites = latent_sites(model, x).local
    options = replace(OPTIONS, kl_weight=lambda _: 0.0, entropy_weight=lambda _: 0.0)
    found = [fresh_factors(model, None, sites, x, o, visits=(5, 5)) for o in (OPTIONS, options)]
    assert torch.equal(found[0].guide.table.weight, found[1].guide.table.weight)


def test_analytic_kl_holds_where_guide_and_model_count_different_points():
    model, x = linear_model(num_data=1000)
    guide = Factorized(latent_sites(model, x).local, 50)
    first, second = (expected_log_weights(model, guide, x[:5], torch.arange(5)) for _ in range(2))
    assert torch.equal(first.log_q - first.log_prior, second.log_q - second.log_prior)
