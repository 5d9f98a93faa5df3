"""The binomial distribution on the grey scale, against scipy and against itself summed, and models that have it."""

import numpy as np
import pyro
import pytest
import torch
from scipy.special import expit
from scipy.stats import binom
from torch.nn.functional import binary_cross_entropy_with_logits

import amortized_bayes as ab
from amortized_bayes.binomial import BinomialProportion
from amortized_bayes.evaluation.errors import mean_prediction
from amortized_bayes.guides import Amortized, MeanField
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.inference.svi import Training
from amortized_bayes.likelihoods import with_levels
from amortized_bayes.models import DeepGenerative
from amortized_bayes.sites import latent_sites

LEVELS = pytest.mark.parametrize("levels", [1, 16, 49, 255])  # 1 / 49 * 49 is below 1
LOGITS = (-30.0, -3.0, 0.0, 0.7, 12.0)


def grid(levels):
    """Every logit with every grey level, each (logits, levels + 1), and the counts."""
    counts = torch.arange(levels + 1.0)
    return torch.tensor(LOGITS)[:, None].expand(-1, levels + 1), counts / levels, counts.numpy()


def problem(levels=16, num_data=40, **options):
    """A small Bayesian decoder of counts, a guide, and data, of which a third are black or white."""
    torch.manual_seed(0)
    model = DeepGenerative(4, 2, [5], num_data, likelihood=with_levels("binomial", levels), **options)
    x = torch.randint(-levels // 4, levels + levels // 4 + 1, (num_data, 4)).clamp(0, levels) / levels
    sites = latent_sites(model, x[:2])
    shared = MeanField(sites.shared, locs=sites.shared_draw) if sites.shared else None
    return model, Amortized(sites.local, num_data, 4, width=3, shared=shared), x


# The distribution -----------------------------------------------------------------------------------------------------


@LEVELS
def test_scores_are_scipys(float64, levels):
    logits, grey, counts = grid(levels)
    found = BinomialProportion(levels, logits).log_prob(grey).numpy()
    # scipy's own argument is a probability, which says nothing of 1 - p next to 1
    for row, logit in zip(found, LOGITS, strict=True):
        expected = binom.logpmf(counts, levels, expit(logit)) if logit <= 0 else None
        mirrored = binom.logpmf(levels - counts, levels, expit(-logit))
        np.testing.assert_allclose(row, mirrored if expected is None else expected, rtol=1e-9, atol=1e-11)


@LEVELS
def test_scores_are_log_probabilities(float64, levels):
    logits, grey, _ = grid(levels)
    total = BinomialProportion(levels, logits).log_prob(grey).logsumexp(-1)
    torch.testing.assert_close(total, torch.zeros(len(LOGITS)), rtol=0, atol=1e-12)


@LEVELS
def test_single_precision_scores_as_double_does(levels):
    logits, grey, _ = grid(levels)
    found = BinomialProportion(levels, logits).log_prob(grey)
    exact = BinomialProportion(levels, logits.double()).log_prob(torch.arange(levels + 1.0).double() / levels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=8e-5)  # terms are near 200


def test_one_count_is_a_bernoulli(float64):
    logits, bits = torch.randn(7, 3), torch.bernoulli(torch.full((7, 3), 0.5))
    expected = -binary_cross_entropy_with_logits(logits, bits, reduction="none")
    torch.testing.assert_close(BinomialProportion(1, logits).log_prob(bits), expected)


def test_entries_are_scored_one_by_one(float64):
    """An output may have more draws than the data have, and no entry sees another."""
    logits, x = torch.randn(9, 5, 4), torch.randint(0, 17, (5, 4)) / 16
    together = BinomialProportion(16, logits).log_prob(x)
    assert together.shape == (9, 5, 4)
    torch.testing.assert_close(together[3, 2, 1], BinomialProportion(16, logits[3, 2, 1]).log_prob(x[2, 1]))


@LEVELS
def test_the_gradient_is_the_residual_in_counts(float64, levels):
    logits, grey, _ = grid(levels)
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(BinomialProportion(levels, leaf).log_prob(grey).sum(), leaf)
    torch.testing.assert_close(gradient, levels * (grey - logits.sigmoid()))


@pytest.mark.parametrize("levels", [1, 16, 255])
def test_draws_are_grey_and_have_the_moments_of_the_scores(float64, levels):
    logits = torch.tensor([-1.5, 0.3])
    distribution = BinomialProportion(levels, logits)
    draws = distribution.sample((20_000,))
    assert distribution.support.check(draws).all()
    chances = BinomialProportion(levels, logits[:, None]).log_prob(torch.arange(levels + 1) / levels).exp()
    grey = torch.arange(levels + 1) / levels
    torch.testing.assert_close(distribution.mean, (chances * grey).sum(-1))
    torch.testing.assert_close(distribution.variance, (chances * grey**2).sum(-1) - distribution.mean**2)
    errors = (distribution.variance / len(draws)).sqrt()
    assert ((draws.mean(0) - distribution.mean) / errors).abs().max() < 4
    torch.testing.assert_close(draws.var(0), distribution.variance, rtol=0.05, atol=0)


@pytest.mark.parametrize("value", [0.3, -1 / 16, 17 / 16, float("nan")])
def test_values_between_levels_are_refused(value):
    with pytest.raises(ValueError, match="value"):
        BinomialProportion(16, torch.zeros(2), validate_args=True).log_prob(torch.tensor([0.5, value]))


@pytest.mark.parametrize("levels", [1, 16, 255])
def test_levels_in_single_precision_are_accepted(levels):
    grey = torch.arange(levels + 1) / np.float32(levels)
    assert BinomialProportion(levels, torch.zeros(1), validate_args=True).log_prob(grey).isfinite().all()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="expected 1 level or more, got 0"):
        BinomialProportion(0, torch.zeros(2))
    with pytest.raises(ValueError, match="logits"):
        BinomialProportion(2, torch.tensor([0.0, float("nan")]), validate_args=True)


# Models ---------------------------------------------------------------------------------------------------------------


def test_predictions_are_on_the_grey_scale(float64):
    model, guide, x = problem()
    prediction = mean_prediction(model, guide, x, torch.arange(len(x)))
    with torch.no_grad():
        weights = {name: guide.shared.locs[f"decoder.{name}".replace(".", "__")] for name in model.priors}
        expected = model.decode(prediction.latents, weights).sigmoid()
    torch.testing.assert_close(prediction.observed, expected)


@pytest.mark.parametrize("local_reparametrization", [True, False])
def test_a_captured_step_gives_the_numbers_of_the_plain_one(float64, local_reparametrization):
    found = []
    for how in ("off", "replay"):
        options = FitOptions(batch_size=8, capture=how, local_reparametrization=local_reparametrization)
        model, guide, x = problem()
        training = Training(model, guide, x, options, 3)
        found.append([record.elbo for record in training.run(12, range(13))])
        assert (training.captured is not None) == (how == "replay")
    np.testing.assert_allclose(found[1], found[0], rtol=1e-10)


def test_a_fit_finds_the_frequencies_of_the_pixels(float64):
    """Of pixels that do not depend on each other the best decoder is constant: it predicts their mean grey values."""
    model, guide, x = problem(num_data=500, bayesian=False)
    training = Training(model, guide, x, FitOptions(batch_size=500, learning_rate=0.05), 0)
    list(training.run(400))
    training.settle()
    prediction = mean_prediction(model, guide, x, torch.arange(500)).observed.mean(0)
    torch.testing.assert_close(prediction, x.mean(0), rtol=0, atol=0.03)


def test_data_are_drawn_from_the_model(float64):
    model, _, x = problem()
    drawn = pyro.poutine.uncondition(model)(x)
    assert drawn.shape == x.shape
    torch.testing.assert_close(drawn * 16, (drawn * 16).round())
    assert len(drawn.unique()) > 5


def test_counts_in_the_place_of_grey_values_are_told():
    """Also where validation is off, as in the first trials of a model."""
    words = r"expected grey values in \[0, 1\], counts divided by their 16 levels, got values from 0.5 to 9"
    with pytest.raises(ValueError, match=words):
        BinomialProportion(16, torch.zeros(2), validate_args=False).log_prob(torch.tensor([0.5, 9]))
    pair = ab.vae(
        torch.nn.Linear(3, 2), torch.nn.Linear(1, 3), "binomial", 1,
        encoder_gives="log_scale", decoder_gives="logits", levels=16,
    )  # fmt: skip
    with pytest.raises(ValueError, match="from 0 to 9") as refused:
        ab.elbo(*pair, torch.arange(12.0).reshape(4, 3).clamp(max=9))
    assert "\n" not in str(refused.value)
    assert "index" not in str(refused.value)
