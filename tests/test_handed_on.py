"""Latents that a guide makes of auxiliary draws: log q holds how far the map stretches space, or is refused."""

import math

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as autoguides
import pyro.poutine as poutine
import pytest
import torch

import amortized_bayes as ab

N = 8
X = torch.linspace(-1, 2, N)
EVIDENCE = dist.Normal(0.0, math.sqrt(1.25)).log_prob(X)
AUXILIARY = {"infer": {"is_auxiliary": True}}


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def scaled(factor, *, told=1.0, by_factor=False):
    """The exact posterior, as ``factor`` times a draw; ``told`` is the share of the log Jacobian that is passed on."""

    def guide(x):
        scale = pyro.param("scale", torch.tensor(math.sqrt(0.2) / factor))
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x / 1.25 / factor, scale), **AUXILIARY)
            log_density = torch.full((len(x),), -told * math.log(factor))
            if by_factor:
                pyro.sample("z", dist.Delta(factor * u))
                pyro.factor("jacobian", log_density, has_rsample=True)
            else:
                pyro.sample("z", dist.Delta(factor * u, log_density=log_density))

    return guide


CALLS = {
    "elbo": lambda guide: ab.elbo(model, guide, X, num_draws=3, analytic_kl=False).value,
    "iwae": lambda guide: ab.iwae(model, guide, X, num_particles=3).value,
    "log_predictive": lambda guide: ab.log_predictive(model, guide, X, num_particles=3).value,
}
REFUSING = {
    **CALLS,
    "ais": lambda guide: ab.ais(model, guide, X),
    "diagnose": lambda guide: ab.diagnose(model, guide, X, progress=False),
    "compare": lambda guide: ab.compare(model, X, guides={"mine": guide}, progress=False),
}


@pytest.mark.parametrize("by_factor", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_latent_made_of_a_draw_with_its_jacobian_is_exact(call, by_factor):
    found = CALLS[call](scaled(2.0, by_factor=by_factor))
    torch.testing.assert_close(found.float(), EVIDENCE, rtol=0, atol=1e-4)


@pytest.mark.parametrize("told", [0.0, -1.0, 0.9])
@pytest.mark.parametrize("call", REFUSING)
def test_a_jacobian_that_is_left_out_is_refused(call, told):
    words = rf"expected 'z' with .* makes of 'u', .* say -0.6931, got {-told * math.log(2) or 0:.4g}"
    with pytest.raises(ValueError, match=words) as refused:
        REFUSING[call](scaled(2.0, told=told))
    assert "\n" not in str(refused.value)


def of_gammas(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(torch.full((len(x), 2), 2.0), 1.0).to_event(1))
        pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)


def by_logarithms(told):
    """Gamma posteriors, drawn as Gammas of another rate and scaled, in a positive and a real space."""

    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Gamma(2 + x, 1.0).to_event(1), **AUXILIARY)
            log_density = told * torch.full((len(x),), 2 * math.log(2.0))
            pyro.sample("rate", dist.Delta(u / 2, log_density=log_density, event_dim=1))

    return guide


def test_positive_draws_and_latents_are_compared_on_the_same_space():
    x = torch.tensor([[0.0, 3.0], [1.0, 7.0], [2.0, 2.0]])
    exact = dist.GammaPoisson(2.0, 1.0).log_prob(x).sum(-1)
    found = ab.elbo(of_gammas, by_logarithms(1.0), x, num_draws=2)
    torch.testing.assert_close(found.value.float(), exact, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"'rate' with .* say 1.386, got 0"):
        ab.elbo(of_gammas, by_logarithms(0.0), x)


def bounded(x):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Beta(2.0, 3.0).expand([len(x)]))
        v = pyro.sample("v", dist.LogNormal(0.0, torch.ones(2)).to_event(1))
        p = pyro.sample("p", dist.Dirichlet(torch.ones(len(x), 3)))
        pyro.sample("x", dist.Normal(z + v.sum(-1) + p[..., 0] + w[0], 0.5), obs=x)


NUM_DRAWS = 200
JOINT = ["AutoMultivariateNormal", "AutoDiagonalNormal", "AutoLowRankMultivariateNormal"]


@pytest.mark.parametrize("name", ["AutoNormal", *JOINT])
@pytest.mark.slow
def test_autoguides_say_how_far_they_stretch_space(name):
    """All supports at once, inside the plate and outside: the sum over points is what Pyro's own traces give."""
    torch.manual_seed(3)
    guide = getattr(autoguides, name)(bounded)
    guide(X)
    if name == "AutoLowRankMultivariateNormal":  # what ties points is left out of ours, whose ELBO is then higher
        guide.cov_factor.data.zero_()
    draws = []
    for _ in range(NUM_DRAWS):
        drawn = poutine.trace(guide).get_trace(X)
        traced = poutine.trace(poutine.replay(bounded, trace=drawn)).get_trace(X)
        draws.append(traced.log_prob_sum() - drawn.log_prob_sum())
    values = torch.stack(draws).detach()
    error = values.std() * math.sqrt(2 / NUM_DRAWS)  # ours has as many draws
    assert error < 1
    found = ab.elbo(bounded, guide, X, num_draws=NUM_DRAWS).value.sum()
    assert abs(found - values.mean()) < 4 * error


def test_latents_that_mix_points_are_left_alone():
    """A reflection of all points together has determinant 1, and that of no point's own entry."""
    mirror = torch.eye(N) - 2 / N

    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(len(x)), 1.0), **AUXILIARY)
            pyro.sample("z", dist.Delta(mirror @ u))

    assert ab.elbo(model, guide, X, num_draws=2).value.isfinite().all()


def test_a_map_through_every_number_of_a_point():
    """A lower triangular map, whose columns are added up by ``to_event``: log|det| is that of its diagonal."""
    tril = torch.tensor([[2.0, 0.0, 0.0], [0.3, 0.5, 0.0], [-0.4, 1.0, 3.0]])

    def wide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    def guide(log_density):
        def guide(x):
            with pyro.plate("data", len(x)):
                u = pyro.sample("u", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1), **AUXILIARY)
                pyro.sample("z", dist.Delta(u @ tril.T, log_density=log_density, event_dim=1))

        return guide

    ab.elbo(wide, guide(torch.full((N,), -math.log(3.0))), X, num_draws=2)
    with pytest.raises(ValueError, match=r"say -1\.099, got 1\.099"):
        ab.elbo(wide, guide(torch.full((N,), math.log(3.0))), X)


def with_factor(value, *, inside=True):
    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.25 + loc, math.sqrt(0.2)))
            if inside:
                pyro.factor("more", torch.full((len(x),), value), has_rsample=True)
        if not inside:
            pyro.factor("more", torch.tensor(value), has_rsample=True)

    return guide


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("call", REFUSING)
def test_a_factor_beside_densities_is_refused(call, inside):
    with pytest.raises(ValueError, match="got 'more' where each latent has a density"):
        REFUSING[call](with_factor(0.5, inside=inside))


@pytest.mark.parametrize("call", CALLS)
def test_a_factor_of_nothing_changes_nothing(call):
    torch.testing.assert_close(CALLS[call](with_factor(0.0)).float(), EVIDENCE, rtol=0, atol=1e-4)


def test_a_factor_may_be_the_density_of_a_draw_that_pyro_does_not_see():
    def guide(x):
        draw = x / 1.25 + math.sqrt(0.2) * torch.randn(len(x))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(draw, log_density=torch.full((len(x),), 1e-3)))
            log_q = dist.Normal(x / 1.25, math.sqrt(0.2)).log_prob(draw)
            pyro.factor("log_q", log_q - 1e-3, has_rsample=True)

    torch.testing.assert_close(CALLS["elbo"](guide).float(), EVIDENCE, rtol=0, atol=1e-4)
