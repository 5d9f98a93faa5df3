"""Analytic KL and local reparametrization: the same expectation as plain draws, with gradients that vary less."""

import functools
import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amortized_bayes.capture import capture
from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.guides import Factorized, LocalGuide, MeanField
from amortized_bayes.models import DeepGenerative
from amortized_bayes.sites import latent_sites
from amortized_bayes.weights import log_weights

DRAWS = 1200
PLAIN = {"analytic_kl": False}
ANALYTIC = {"analytic_kl": True}
LOCAL = {"local_reparametrization": True}


class PluggedIn(DeepGenerative):
    """A decoder that a naive estimator evaluates at the weights' locations: wrong, as the tests must see."""

    def decode(self, z, weights):
        located = {name: self.located[f"decoder.{name}".replace(".", "__")] for name in weights}
        return super().decode(z, located)


def bayesian_problem():
    """A small Bayesian decoder with wide q(theta), distinct rows, and a batch of 4 among 6 points."""
    model = DeepGenerative(3, 2, [4], 6, likelihood="bernoulli")
    x = torch.bernoulli(torch.full((4, 3), 0.5))
    sites = latent_sites(model, x)
    shared = MeanField(sites.shared, locs=sites.shared_draw, log_scale=-1.0)
    guide = Factorized(sites.local, 6, start=torch.randn(6, 4) * 0.5, shared=shared)
    return model, guide, x, torch.tensor([4, 0, 3, 5])


def draws_of_value_and_gradient(model, guide, x, index, options):
    """Elbo a point and its gradient in all parameters, flattened, from many draws, ``(DRAWS, 1 + parameters)``."""
    parameters = list(guide.parameters())

    def program(x, index):
        weights = expected_log_weights(model, guide, x, index, **options)
        value = weights.local.mean() + weights.shared.mean() / weights.num_data
        gradients = torch.autograd.grad(value, parameters)
        return [torch.cat([value.detach().reshape(1), *(g.flatten() for g in gradients)])]

    replay = capture(program, [x, index], [1 - x, index])
    return torch.stack([replay(x, index)[0].clone() for _ in range(DRAWS)])


def z_scores(first, second):
    error = ((first.var(0) + second.var(0)) / DRAWS).sqrt()
    alike = error < 1e-12  # rows outside the batch, whose gradient is 0
    assert (first.mean(0) - second.mean(0))[alike].abs().max() < 1e-12
    return ((first.mean(0) - second.mean(0)) / error)[~alike]


@functools.cache
def plain_draws():
    torch.manual_seed(1)
    problem = bayesian_problem()
    return problem, draws_of_value_and_gradient(*problem, PLAIN)


@pytest.mark.parametrize("options", [ANALYTIC, LOCAL, {**PLAIN, **LOCAL}], ids=["analytic", "local", "local-plain-z"])
@pytest.mark.slow
def test_same_expectation_and_smaller_variance_of_the_gradient(float64, options):
    problem, reference = plain_draws()
    found = draws_of_value_and_gradient(*problem, options)
    scores = z_scores(reference, found)
    assert len(scores) > 50
    assert scores.abs().max() < 4.5
    assert scores.square().mean() < 1.6
    assert found[:, 1:].var(0).sum() < 0.9 * reference[:, 1:].var(0).sum()


@pytest.mark.slow
def test_plugging_in_the_locations_is_found_out(float64):
    (_, guide, x, index), reference = plain_draws()
    wrong = PluggedIn(3, 2, [4], 6, likelihood="bernoulli")
    wrong.located = guide.shared.locs
    found = draws_of_value_and_gradient(wrong, guide, x, index, ANALYTIC)
    assert z_scores(reference, found).abs().max() > 8


def test_parts_of_a_draw_are_those_of_log_weights(float64):
    model, guide, x, index = bayesian_problem()
    torch.manual_seed(1)
    plain = log_weights(model, guide, x, index)
    torch.manual_seed(1)
    found = expected_log_weights(model, guide, x, index, **PLAIN)
    for a, b in zip(plain, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_analytic_parts_are_minus_the_kl(float64):
    model, guide, x, index = bayesian_problem()
    found = expected_log_weights(model, guide, x, index, **ANALYTIC)
    loc, log_scale = guide.table.weight[index].chunk(2, -1)
    kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(-1)
    torch.testing.assert_close((found.log_q - found.log_prior)[0, 0], kl)
    divergences = [
        torch.distributions.kl_divergence(
            dist.Normal(guide.shared.locs[name], guide.shared.log_scales[name].exp()),
            dist.Normal(0.0, 1.0 if name.endswith("bias") else 1 / math.sqrt(guide.shared.locs[name].shape[1])),
        ).sum()
        for name in guide.shared.locs
    ]
    torch.testing.assert_close(found.shared[0], -torch.stack(divergences).sum())
    torch.manual_seed(0)
    one = expected_log_weights(model, guide, x, index, **LOCAL)
    torch.testing.assert_close(one.shared, found.shared)


# What local reparametrization refuses ---------------------------------------------------------------------------------


class Shared(nn.Module):
    """A guide of one Gaussian weight (3, 2) and z of two dimensions."""

    def __init__(self, event=dist.Normal):
        super().__init__()
        self.loc = nn.Parameter(torch.randn(3, 2))
        self.event = event

    def forward(self, x):
        pyro.sample("w", self.event(self.loc, 0.5).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))


def model_using(use, prior=None):
    def model(x):
        w = pyro.sample("w", prior or dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(use(z, w), 1.0).to_event(1), obs=x)

    return model


USES = {
    "matmul": lambda z, w: z @ w.T,
    "matmul method": lambda z, w: torch.matmul(z, w.mT),
    "einsum": lambda z, w: torch.einsum("bd,pd->bp", z, w),
    "scaled": lambda z, w: F.linear(z, 2 * w),
    "concatenated": lambda z, w: F.linear(z, torch.cat([w, w]))[:, :3],
    "as input": lambda z, w: F.linear(w, z).T,
    "twice": lambda z, w: F.linear(z, w) + F.linear(z.tanh(), w),
    "index": lambda z, w: F.linear(z, w[:]),
    "also as a number": lambda z, w: F.linear(z, w) + w.sum(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_other_uses_of_undrawn_weights_name_the_site(use):
    x = torch.randn(4, 3)
    expected_log_weights(model_using(use), Shared(), x)
    with pytest.raises(ValueError, match=r"site 'w' to be used by torch\.nn\.functional\.linear alone"):
        expected_log_weights(model_using(use), Shared(), x, **LOCAL)


@pytest.mark.parametrize("use", [F.linear, lambda z, w: F.linear(input=z, weight=w) + 0 * w.shape[0] * len(w)])
def test_linear_and_looking_at_shapes_are_allowed(use):
    found = expected_log_weights(model_using(use), Shared(), torch.randn(4, 3), **LOCAL)
    assert found.local.isfinite().all()


def test_linear_layer_with_only_a_latent_bias(float64):
    weight = torch.randn(3, 2)

    def model(x):
        bias = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(F.linear(z, weight, bias), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("b", dist.Normal(torch.ones(3), 0.5).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1e-9).to_event(1))

    x = torch.randn(20_000, 3)
    found = expected_log_weights(model, guide, x, **LOCAL).log_likelihood[0, 0]
    expected = dist.Normal(1.0, 1.0).log_prob(x).sum(-1) - 3 * 0.5 * 0.25
    error = found - expected
    assert abs(error.mean() / (error.std() / math.sqrt(len(error)))) < 4


def test_shared_site_that_is_not_gaussian():
    prior = dist.LogNormal(torch.zeros(3, 2), 1.0).to_event(2)
    with pytest.raises(ValueError, match="Gaussian factors, got LogNormal at 'w'"):
        expected_log_weights(model_using(F.linear, prior), Shared(dist.LogNormal), torch.randn(4, 3), **LOCAL)


@pytest.mark.parametrize("wrong", ["student", "scaled"])
def test_undrawn_site_without_a_closed_divergence(wrong):
    """Scored at its location instead, its ELBO would be wrong."""
    prior = dist.StudentT(4.0, torch.zeros(3, 2), 1.0).to_event(2) if wrong == "student" else None
    model, guide = model_using(F.linear, prior), Shared()
    if wrong == "scaled":
        model, guide = poutine.scale(model, scale=0.5), poutine.scale(guide, scale=0.25)
    expected_log_weights(model, guide, torch.randn(4, 3), **ANALYTIC)
    with pytest.raises(ValueError, match="closed KL divergence at 'w'"):
        expected_log_weights(model, guide, torch.randn(4, 3), **LOCAL)


def test_guide_that_reads_its_own_shared_weights():
    class Reading(Shared):
        def forward(self, x):
            w = pyro.sample("w", dist.Normal(self.loc, 0.5).to_event(2))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x @ w, 1.0).to_event(1))

    with pytest.raises(ValueError, match="site 'w' to be used"):
        expected_log_weights(model_using(F.linear), Reading(), torch.randn(4, 3), **LOCAL)


# Where there is no closed form ----------------------------------------------------------------------------------------


class Rows(LocalGuide):
    def locate(self, x, index):
        return torch.cat([0.3 * x[:, : self.latent_dim], -x[:, : self.latent_dim].square()], 1)


@pytest.mark.parametrize(
    "prior",
    [
        dist.LogNormal(torch.zeros(2), 1.0).to_event(1),
        dist.Gamma(torch.full((2,), 2.0), 1.0).to_event(1),
        dist.Beta(torch.full((2,), 2.0), 3.0).to_event(1),
        dist.Dirichlet(torch.full((3,), 2.0)),
    ],
    ids=["lognormal", "gamma", "beta", "dirichlet"],
)
def test_constrained_sites_fall_back_to_the_draw(float64, prior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([len(x), 3]).to_event(1), obs=x)

    x = torch.randn(5, 3)
    guide = Rows(latent_sites(model, x).local, 5)
    torch.manual_seed(4)
    plain = log_weights(model, guide, x)
    torch.manual_seed(4)
    found = expected_log_weights(model, guide, x, **ANALYTIC)
    torch.testing.assert_close(found.local, plain.local, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrap", ["mask", "scale"])
def test_masked_and_scaled_latents_have_a_masked_and_scaled_divergence(linear_problem, wrap):
    linear, x, _ = linear_problem
    guide, kept = Rows(latent_sites(linear, x).local, 12), torch.arange(12) % 2 == 0
    model = (poutine.mask(mask=kept) if wrap == "mask" else poutine.scale(scale=0.5))(linear)
    whole = expected_log_weights(linear, guide, x, **ANALYTIC)
    found = expected_log_weights(model, guide, x, **ANALYTIC)
    divergence = whole.log_q - whole.log_prior
    expected = torch.where(kept, divergence, 0.0) if wrap == "mask" else 0.5 * divergence
    torch.testing.assert_close(found.log_q - found.log_prior, expected, rtol=0, atol=1e-12)


def test_mask_and_scale_on_both_programs_are_kept_by_the_analytic_kl(linear_problem):
    linear, x, _ = linear_problem
    guide, half = Rows(latent_sites(linear, x).local, 12), poutine.scale(scale=0.5)
    whole = expected_log_weights(linear, guide, x)
    found = expected_log_weights(half(linear), half(guide), x)
    torch.testing.assert_close(found.log_q - found.log_prior, 0.5 * (whole.log_q - whole.log_prior))


def test_auxiliary_site_and_factor_of_the_guide_count_towards_log_q(linear_problem):
    linear, x, _ = linear_problem
    rows = Rows(latent_sites(linear, x).local, 12)

    def guide(x):
        rows(x)
        with pyro.plate("auxiliaries", 1):
            pyro.factor("outside", torch.tensor([2.0]), has_rsample=True)

    found, plain = expected_log_weights(linear, guide, x), expected_log_weights(linear, rows, x)
    assert (found.shared_log_q - plain.shared_log_q).item() == 2.0
    torch.testing.assert_close(found.log_q, plain.log_q)
