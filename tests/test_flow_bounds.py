"""Bounds of flow guides against exact values: weights average to the evidence, auxiliary terms, exact posteriors."""

import math

import pyro.poutine as poutine
import pytest
import torch
from flow_problems import N, Numbers, encoder_of, make, scrambled, unclipped
from torch import nn

from amortized_bayes.flows import FAMILIES, FlowSettings
from amortized_bayes.sites import latent_sites
from amortized_bayes.weights import log_weights

every_family = pytest.mark.parametrize("family", FAMILIES)

# Weights are right: their mean is the evidence ------------------------------------------------------------------------


class Blind(nn.Module):
    """A guide without one of its auxiliary terms: what a forgotten one does."""

    def __init__(self, guide, name):
        super().__init__()
        self.guide, self.name = guide, name

    def forward(self, *args):
        with poutine.block(hide=[self.name]):
            self.guide(*args)


def ratio_to_evidence(model, guide, x, num_draws=10_000):
    """Mean of weight / evidence for each point, 1 in expectation, and its standard error, (B,) each."""
    torch.manual_seed(1)
    with torch.no_grad():
        ratio = (log_weights(model, guide, x, num_particles=num_draws).local[0] - model.log_evidence(x)).exp()
    return ratio.mean(0), ratio.std(0) / math.sqrt(num_draws)


def near_posterior(family, model, x):
    """A Gaussian wider than the posterior, about its mean, and a flow that moves it a little."""
    torch.manual_seed(0)
    scale = 2.0 * model.posterior_precision().diagonal().rsqrt()
    encoder = encoder_of(model, scale, FlowSettings(family, context=4).context_dim)
    auxiliary = family.startswith("auxiliary")  # starts further from the identity
    guide = make(family, latent_sites(model, x).local, num_data=len(x), encoder=encoder)
    scrambled(guide, 0.03 if auxiliary else 0.1)
    if auxiliary:  # q(v|z) wider than r(v|x, z)
        with torch.no_grad():
            guide.flow.forward_model.network[-1].bias[2:] += 0.5
    return guide


@every_family
@pytest.mark.slow_cases(
    "auxiliary",
    "auxiliary-contextual",
    "gaussian",
    "planar-contextual",
    "realnvp",
    "realnvp-contextual",
    "spline",
    "spline-contextual",
    "sylvester",
    "sylvester-contextual",
)
def test_mean_weight_is_the_evidence(linear_problem, family):
    model, x, _ = linear_problem
    mean, error = ratio_to_evidence(model, near_posterior(family, model, x), x)
    assert error.max() < 0.1
    assert ((mean - 1) / error).abs().max() < 5


@pytest.mark.parametrize("name", ["_base", "_auxiliary", "_reverse"])
def test_a_term_left_out_is_found_out(linear_problem, name):
    model, x, _ = linear_problem
    mean, error = ratio_to_evidence(model, Blind(near_posterior("auxiliary", model, x), name), x)
    assert ((mean - 1) / error).abs().max() > 5


# Auxiliary flows against exact values ---------------------------------------------------------------------------------


def bound_of(model, guide, x, num_draws=4000):
    """Mean log weight of each point and its standard error, (B,) each."""
    torch.manual_seed(2)
    values = log_weights(model, guide, x, num_particles=num_draws).local[0].detach()
    return values.mean(0), values.std(0) / math.sqrt(num_draws)


@pytest.mark.parametrize("reverse", ["r = q", "r off by 0.3"])
def test_auxiliary_bound_is_the_factorized_one_less_the_divergence(linear_problem, reverse):
    """Couplings at the identity and q(v|z) = r(v|x, z): the bound of the base Gaussian, which is known."""
    model, x, _ = linear_problem
    scale = model.posterior_precision().diagonal().rsqrt()
    guide = make("auxiliary", latent_sites(model, x).local, encoder=encoder_of(model, scale))
    for layer in guide.flow.layers:
        layer.numbers = Numbers(lambda first, context: first.new_zeros(len(first), 4))
    shift = 0.3 if reverse == "r off by 0.3" else 0.0
    constant = torch.tensor([0.2, -0.1, *unclipped(torch.tensor([-0.5, 0.4]), 8.0)])
    guide.flow.forward_model = Numbers(lambda z: constant + torch.cat([z.sin(), 0.0 * z], -1))
    guide.flow.reverse_model = Numbers(lambda x, z: constant + torch.cat([z.sin() + shift, 0.0 * z], -1))
    divergence = 0.5 * (shift**2 / torch.tensor([-0.5, 0.4]).exp().square()).sum()
    value, error = bound_of(model, guide, x)
    assert ((value - model.best_factorized_elbo(x) + divergence) / error).abs().max() < 5
    assert error.max() < 0.05


def exact_auxiliary(model, x):
    """Couplings and reverse model such that z_T has the exact, correlated posterior, and r is q(v|x, z_T).

    For the posterior's covariance U L U^T let z_T = z_0 + A v, A = U (L - s^2)^(1/2), z_0 ~ N(m, s^2 I), v ~ N(0, I).
    Then v given z_T is a factorized Gaussian of mean A^T C^-1 (z_T - m) and variances s^2 / L.
    """
    covariance = torch.linalg.inv(model.posterior_precision())
    lengths, directions = torch.linalg.eigh(covariance)
    s = (0.6 * lengths.min()).sqrt()
    a = directions * (lengths - s**2).sqrt()
    guide = make("auxiliary", latent_sites(model, x).local, num_flows=1, encoder=encoder_of(model, s.expand(2)))
    guide.flow.layers[0].numbers = Numbers(lambda v, context: torch.cat([v @ a.T, 0.0 * v], -1))
    solve = torch.linalg.inv(covariance) @ a
    # The second coupling, on the vector (v, z) reversed as a whole, turns v_0 into 2 v_0 + 0.5 z_T.
    log_two = unclipped(torch.tensor(2.0).log(), 2.0)
    guide.flow.layers[1].numbers = Numbers(lambda z, context: torch.cat([0.5 * z, log_two.expand(len(z), 2)], -1))

    def reverse(x, z):
        mean = (z - model.posterior(x).mean) @ solve
        return torch.cat([2 * mean + 0.5 * z, unclipped((2 * s / lengths.sqrt()).log(), 8.0).expand(len(z), 2)], -1)

    guide.flow.reverse_model = Numbers(reverse)
    guide.flow.forward_model = Numbers(lambda z: torch.zeros(len(z), 4))
    return guide


def test_every_auxiliary_weight_is_the_evidence_where_all_parts_are_exact(linear_problem):
    model, x, _ = linear_problem
    weights = log_weights(model, exact_auxiliary(model, x), x, num_particles=50).local[0]
    torch.testing.assert_close(weights, model.log_evidence(x).expand(50, N), rtol=0, atol=1e-8)


def test_auxiliary_bound_is_below_the_evidence_where_the_reverse_model_is_wrong(linear_problem):
    model, x, _ = linear_problem
    guide = exact_auxiliary(model, x)
    right = guide.flow.reverse_model.function
    guide.flow.reverse_model = Numbers(lambda x, z: right(x, z) + 0.2)
    value, error = bound_of(model, guide, x)
    assert (value < model.log_evidence(x) - 5 * error).all()
