"""Masks and scales on latent sites: the right number with a guide that was not told of them, or a refusal."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import amortized_bayes as ab
from amortized_bayes.comparing.any_model import ComparisonSettings
from amortized_bayes.inference.options import FitOptions

NOISE = 0.5
KEPT = torch.tensor([True, False, True, True, False, True])
"""Points that have a latent."""
WAYS = ("poutine", "distribution", "before to_event")


def x_of(dim=1):
    return torch.linspace(-1.5, 2, len(KEPT) * dim).reshape(len(KEPT), dim)


def model_of(way, dim=1, size=None):
    """z_n ~ N(0, 1) where it is kept, x_n ~ N(z_n, 1/4), or N(0, 1/4) elsewhere."""

    def model(x, kept, index=None):
        prior = dist.Normal(torch.zeros(len(x), dim), 1.0)
        with pyro.plate("data", size or len(x), subsample=index):
            if way == "poutine":
                with poutine.mask(mask=kept):
                    z = pyro.sample("z", prior.to_event(1))
            elif way == "distribution":
                z = pyro.sample("z", prior.to_event(1).mask(kept))
            else:
                z = pyro.sample("z", prior.mask(kept[:, None]).to_event(1))
            pyro.sample("x", dist.Normal(torch.where(kept[:, None], z, 0.0), NOISE).to_event(1), obs=x)

    return model


def posterior(x, kept, scale=1.0):
    precision = 1 + NOISE**-2
    with pyro.plate("data", len(x)):
        loc = x * NOISE**-2 / precision
        pyro.sample("z", dist.Normal(loc, scale * precision**-0.5 * torch.ones_like(x)).to_event(1))


def evidence(x, kept):
    scale = torch.where(kept[:, None], math.hypot(1, NOISE), NOISE)
    return dist.Normal(0.0, scale).log_prob(x).sum(-1)


@pytest.mark.parametrize("way", WAYS)
def test_every_weight_of_the_exact_posterior_is_the_evidence(float64, way):
    x = x_of(2)
    weights = ab.log_weights(model_of(way, 2), posterior, x, KEPT, num_particles=5)
    torch.testing.assert_close(weights.local, evidence(x, KEPT).expand(1, 5, -1), rtol=0, atol=1e-10)
    plain = ab.elbo(model_of(way, 2), posterior, x, KEPT, num_draws=3, analytic_kl=False)
    torch.testing.assert_close(plain.value, evidence(x, KEPT))
    closed = ab.elbo(model_of(way, 2), posterior, x, KEPT, num_draws=3)
    assert (closed.kl[~KEPT] == 0).all()
    assert (closed.kl[KEPT] > 0.1).all()


@pytest.mark.parametrize("way", WAYS)
def test_a_guide_that_masks_alike_has_the_same_weights(float64, way):
    def masked(x, kept):
        with poutine.mask(mask=kept):
            posterior(x, kept)

    weights = ab.log_weights(model_of(way), masked, x_of(), KEPT, num_particles=2)
    torch.testing.assert_close(weights.local, evidence(x_of(), KEPT).expand(1, 2, -1), rtol=0, atol=1e-10)


def test_a_guide_that_masks_more_is_refused():
    def more(x, kept):
        with poutine.mask(mask=kept & (x[:, 0] > 0)):
            posterior(x, kept)

    with pytest.raises(ValueError, match="the guide masks 'z' where the model does not"):
        ab.log_weights(model_of("poutine"), more, x_of(), KEPT)


def test_entries_cannot_be_masked_in_a_guide_that_ties_them():
    def tied(x, kept):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(torch.zeros(len(x), 2), torch.eye(2)))

    with pytest.raises(ValueError, match="masks entries of 'z', over which the guide's MultivariateNormal does not"):
        ab.log_weights(model_of("before to_event", 2), tied, x_of(2), KEPT)


@pytest.mark.parametrize("way", ["poutine", *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS[1:])])
def test_families_of_a_masked_model_reach_the_evidence(way):
    kept = torch.arange(40) % 3 > 0
    masked, x = model_of(way, size=40), torch.randn(40, 1, generator=torch.Generator().manual_seed(1))

    def model(x, index):
        masked(x, kept[index], index)

    options = FitOptions.recipe(capture="off", batch_size=40)
    settings = ComparisonSettings(epochs=200, num_draws=50, fit=options)
    report = ab.compare(model, x, widths=(8,), settings=settings, progress=False)
    frame = report.to_frame().set_index("guide")
    exact = evidence(x, kept).mean().item()
    assert frame.loc["factorized", "elbo"] == pytest.approx(exact, abs=0.03)
    assert (frame["elbo"] < exact + 0.03).all()


def scaled(x):
    with pyro.plate("data", len(x)):
        with poutine.scale(scale=0.25):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[:, None], NOISE).to_event(1), obs=x)


def test_a_scaled_latent_weighs_alike_in_guide_and_model(float64):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 0.3))

    found = []
    for model in (scaled, unscaled):
        torch.manual_seed(0)
        found.append(ab.log_weights(model, guide, x_of(), num_particles=3))
    torch.testing.assert_close(found[0].log_q, found[1].log_q / 4)
    torch.testing.assert_close(found[0].log_prior, found[1].log_prior / 4)
    torch.testing.assert_close(found[0].log_likelihood, found[1].log_likelihood)


def unscaled(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[:, None], NOISE).to_event(1), obs=x)


def test_gaps_of_a_scaled_model_are_refused():
    words = r"expected sites that are not scaled, got 'z' with a scale of 0\.25: log p\(x\) is then something else"
    guide = ab.Factorized(ab.latent_sites(scaled, x_of()).local, len(KEPT))
    with pytest.raises(ValueError, match=words):
        ab.compare(scaled, x_of(), progress=False)
    with pytest.raises(ValueError, match=words):
        ab.diagnose(scaled, guide, x_of())


def test_a_model_that_observes_nothing_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    guide = ab.Factorized(ab.latent_sites(model, x_of()).local, len(KEPT))
    for call in (lambda: ab.compare(model, x_of(), progress=False), lambda: ab.diagnose(model, guide, x_of())):
        with pytest.raises(ValueError, match=r"expected an observed site inside plate 'data' \(`obs=`\), got none"):
            call()


def test_a_model_that_closes_over_its_data_is_refused():
    x = x_of()

    def model(_):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z[:, None], NOISE).to_event(1), obs=x)

    with pytest.raises(ValueError, match="to hold the points that the model is given, got 6 of them where 5 were"):
        ab.compare(model, x, progress=False)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_nan_behind_a_mask_is_refused_where_a_distribution_has_no_mean(mean, inside):
    x = x_of()[:, 0].masked_fill(~KEPT, math.nan)

    def model(x, kept):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            seen = dist.Normal(z, 1.0) if mean else dist.Cauchy(z, 1.0)
            with poutine.mask(mask=torch.tensor(True) if inside else kept):
                pyro.sample("x", seen.mask(kept) if inside else seen, obs=x)

    def guide(x, kept):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    if mean:
        assert ab.elbo(model, guide, x, KEPT).value.isfinite().all()
        return
    with pytest.raises(ValueError, match=r"expected numbers behind the mask of 'x', got nan: its Cauchy has no finite"):
        ab.elbo(model, guide, x, KEPT)
    assert ab.elbo(model, guide, x.nan_to_num(0.0), KEPT).value.isfinite().all()
