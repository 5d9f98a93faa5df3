"""What bugs that were once planted showed to be untested: what the sweep fits, and what it measures."""

from dataclasses import replace

import pytest
import torch
from sweeps import TINY, a_lab

import amortized_bayes as ab
from amortized_bayes.experiments.guide_fits import SCALES_SLOWER, Place
from amortized_bayes.guides.registry import Fit
from amortized_bayes.inference.options import WarmUp
from amortized_bayes.inference.svi import Training


@pytest.fixture
def place(tmp_path):
    """The digits as bits, of which the sweep sees the first hundred."""
    config = replace(TINY, likelihood="bernoulli", warm_up=0.2, decay=True)
    return Place(config, a_lab(tmp_path), "digits", 0)


def test_the_sweep_measures_test_images_against_grey_values(place):
    problem, source = place.problem(), place.lab.dataset("digits", 0)
    assert problem.held is not None
    grey = [torch.from_numpy(split.pixels).float().flatten(1) / 16 for split in (source.train, source.test)]
    torch.testing.assert_close(problem.held.target.flatten(1), grey[0][:100])
    torch.testing.assert_close(problem.held.test_target.flatten(1), grey[1][:20])
    for bits, values in ((problem.data, grey[0]), (problem.held.test, grey[1])):
        assert set(bits.unique().tolist()) == {0, 1}
        own = values[: len(bits)]
        certain = (own == 0) | (own == 1)  # such pixels are drawn as they are
        assert torch.equal(bits.flatten(1)[certain].float(), own[certain])


def test_the_sweep_fits_by_the_recipe(place):
    """Rates fall to 0, and the KL of z and that of theta grow to their whole."""
    options = place.options(Fit("factorized"))
    assert options.schedule is not None
    assert [options.schedule(done) for done in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]
    assert options.weights_at(0.0) == (0.0, 0.0, 0.0)
    assert options.weights_at(0.1) == (0.5, 0.5, 0.5)
    assert options.weights_at(0.2) == (1.0, 1.0, 1.0)
    assert options.average is None
    assert options.shared_scale_learning_rate == options.shared_learning_rate / SCALES_SLOWER


def test_warm_up_weighs_the_kl_of_shared_latents_too(float64):
    """The loss is linear in the weight of the KL of theta, whose slope is KL / N: no draw is in it."""
    model = ab.DeepGenerative(6, 2, [5], 8)
    x = torch.bernoulli(torch.full((8, 6), 0.4))
    sites = ab.latent_sites(model, x)
    shared = ab.MeanField(sites.shared, locs=sites.shared_draw, log_scale=-0.5)
    guide = ab.Factorized(sites.local, 8, shared=shared)
    options = ab.FitOptions(batch_size=4, capture="off", kl_weight=WarmUp(0.5), shared_kl_weight=WarmUp(0.2))
    training = Training(model, guide, x, options)
    losses = []
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        inputs = torch.tensor([1.0, 1.0, weight]), *training.variables.rows(torch.arange(4))
        losses.append(training.loss_and_gradients(x[:4], torch.arange(4), *inputs)[0].item())
    found = ab.elbo(model, guide, x, torch.arange(8))
    slope = -found.shared.item()
    assert slope > 0.1
    assert losses[1] - losses[0] == pytest.approx(slope / 2)
    assert losses[2] - losses[1] == pytest.approx(slope / 2)
