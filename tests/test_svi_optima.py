"""Training ends at the optimum of each family on the linear-Gaussian model."""

import math

import pytest
import torch

from amortized_bayes.evaluation.bounds import elbo
from amortized_bayes.guides import Amortized, Constant, Factorized
from amortized_bayes.inference.fit import fit
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.sites import latent_sites


def fitted_elbo(problem, family, num_steps=1500):
    """ELBO per point of a family fitted by full batches, evaluated in closed form."""
    model, x, _ = problem
    sites = latent_sites(model, x).local
    guide = {
        "constant": lambda: Constant(sites, 12),
        "factorized": lambda: Factorized(sites, 12),
        "amortized": lambda: Amortized(sites, 12, 5, depth=0),
    }[family]()
    options = FitOptions(12, learning_rate=0.02, row_learning_rate=0.02, schedule=lambda done: 1 - done)
    fit(model, guide, x, num_steps, options)
    with torch.no_grad():
        loc, log_scale = guide.locate(x, torch.arange(12)).chunk(2, -1)
        squares = (x - loc @ model.weight.T - model.bias).square().sum(-1)
        squares = squares + (2 * log_scale).exp() @ model.weight.square().sum(0)
        normaliser = 5 * math.log(model.scale * math.sqrt(2 * math.pi))
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(-1)
        closed = -0.5 * squares / model.scale**2 - normaliser - kl
    estimate = elbo(model, guide, x, torch.arange(12), num_draws=200)
    assert ((estimate.value - closed) / estimate.standard_error).abs().max() < 4.5
    return closed.mean()


@pytest.mark.slow
def test_families_reach_their_optima_and_a_linear_encoder_closes_the_gap(linear_problem):
    """The posterior mean is linear in x: the family gap of a linear encoder is 0, that of constant VI is not."""
    model, x, _ = linear_problem
    found = {family: fitted_elbo(linear_problem, family) for family in ("constant", "factorized", "amortized")}
    best, constant = model.best_factorized_elbo(x).mean(), model.best_constant_elbo(x).mean()
    for value, optimum in ((found["constant"], constant), (found["factorized"], best), (found["amortized"], best)):
        assert -1e-9 < optimum - value < 1e-2
    assert best - constant > 0.5
