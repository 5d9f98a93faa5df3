"""Predictions at the means of all latents, their errors, and active units."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from amortized_bayes.evaluation.errors import active_units, mean_prediction, mean_squared_error
from amortized_bayes.guides import Constant, Factorized, MeanField
from amortized_bayes.models import DeepGenerative
from amortized_bayes.sites import latent_sites

N = 12


def test_prediction_is_the_decoder_at_the_locations(linear_problem):
    model, x, _ = linear_problem
    guide = Factorized(latent_sites(model, x).local, N, start=torch.randn(N, 4))
    index = torch.tensor([4, 1, 9])
    found = mean_prediction(model, guide, x[index], index)
    locations = guide.table.weight[index, :2]
    torch.testing.assert_close(found.latents, locations)
    torch.testing.assert_close(found.observed, locations @ model.weight.T + model.bias)
    assert not found.observed.requires_grad


def test_shared_latents_are_set_to_their_means_too(float64):
    model = DeepGenerative(5, 2, [4], N)
    x = torch.bernoulli(torch.full((N, 5), 0.5))
    sites = latent_sites(model, x)
    shared = MeanField(sites.shared, locs=sites.shared_draw, log_scale=1.0)
    guide = Factorized(sites.local, N, start=torch.randn(N, 4), shared=shared)
    weights = {name: shared.locs[f"decoder.{name}".replace(".", "__")] for name in model.priors}
    expected = model.decode(guide.table.weight[:, :2], weights).sigmoid()
    found = mean_prediction(model, guide, x, torch.arange(N))
    torch.testing.assert_close(found.observed, expected)
    again = mean_prediction(model, guide, x, torch.arange(N))
    assert torch.equal(found.observed, again.observed)


def test_several_and_constrained_sites_are_laid_side_by_side(float64):
    def model(x):
        with pyro.plate("points", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(a[:, None] + b, 1.0).to_event(1), obs=x)

    x = torch.randn(4, 2)
    start = torch.randn(4, 6)
    guide = Factorized(latent_sites(model, x, plate="points").local, 4, start=start, plate="points")
    found = mean_prediction(model, guide, x, plate="points")
    medians = torch.cat([start[:, :1], start[:, 1:3].exp()], 1)
    torch.testing.assert_close(found.latents, medians)
    torch.testing.assert_close(found.observed, medians[:, :1] + medians[:, 1:])


def test_several_observed_sites_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(4)
    with pytest.raises(ValueError, match=r"one observed site in plate 'data', got \['x', 'y'\]"):
        mean_prediction(model, Constant(latent_sites(model, x).local, 4), x)


def test_guide_that_misses_a_site_is_refused(linear_problem):
    """The model would draw it from its prior, and the prediction would not be one."""
    model, x, _ = linear_problem
    with pytest.raises(ValueError, match="misses the model's latent site 'z'"):
        mean_prediction(model, lambda x: None, x)


def test_mean_squared_error_of_each_point():
    prediction, target = torch.zeros(3, 2, 2), torch.tensor([0.0, 1.0, 2.0])[:, None, None].expand(3, 2, 2)
    assert mean_squared_error(prediction, target).tolist() == [0.0, 1.0, 4.0]
    with pytest.raises(ValueError, match=r"shape \(3, 2, 2\), got \(3, 4\)"):
        mean_squared_error(prediction, target.flatten(1))


def test_active_units_tell_dead_latents_from_live_ones():
    means = torch.stack([torch.zeros(1000), 5.0 + 0.05 * torch.randn(1000), 0.2 * torch.randn(1000)], 1)
    assert active_units(means) == 1
    assert active_units(means[:, :2]) == 0
    assert active_units(torch.randn(1000, 7)) == 7


def test_active_units_of_any_prior_are_a_share_of_the_aggregated_variance():
    means = torch.stack([torch.linspace(-1, 1, 100), torch.linspace(-0.01, 0.01, 100)], 1)
    scales = torch.full((100, 2), 0.3)
    for unit in (1e-3, 1.0, 1e3):
        assert active_units(unit * means, unit * scales) == 1
    assert active_units(1e-3 * means) == 0  # for latents of variance 1 alone
    assert active_units(torch.zeros(100, 2), scales) == 0


def test_active_units_of_a_guide(linear_problem):
    """A latent that the decoder does not read stays at its prior's mean in the best guide."""
    model, x, _ = linear_problem
    model.weight[:, 1] = 0.0
    sites = latent_sites(model, x).local
    start = torch.cat([model.posterior(x).mean, torch.zeros(N, 2)], 1)
    found = mean_prediction(model, Factorized(sites, N, start=start), x)
    assert active_units(found.latents) == 1
    assert active_units(mean_prediction(model, Constant(sites, N), x).latents) == 0


@pytest.mark.parametrize("wrong", [torch.full((4, 2), torch.nan), torch.ones(4, 2, dtype=torch.long)])
def test_active_units_of_what_is_no_number_are_refused(wrong):
    with pytest.raises(ValueError, match="expected latent_means of floats"):
        active_units(wrong)
    with pytest.raises(ValueError, match="expected scales of floats"):
        active_units(torch.ones(4, 2), wrong)


def test_latents_without_bounds_on_their_scales_are_not_active():
    assert active_units(torch.arange(8.0).reshape(4, 2), torch.tensor([[1.0, torch.inf]] * 4)) == 1
