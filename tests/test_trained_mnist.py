"""The bounds of Cremer et al. (2018), Table 2, lie in their order on a model that was trained on real images."""

import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from wing import CPU, Recorder

from amortized_bayes.experiments import plans, running
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.model_gaps import Config, models
from amortized_bayes.experiments.settings import model_factors
from amortized_bayes.experiments.spec import job_key

CONFIG = Config(families=("gaussian",), annealing=(False,), epochs=20)
ORDER = ("elbo", "elbo_star_gaussian", "elbo_star_realnvp", "log_p_lower")


@pytest.fixture(scope="module")
def bounds(tmp_path_factory):
    """Of each of 100 training points."""
    torch.set_num_threads(1)
    lab = Lab(tmp_path_factory.mktemp("trained-mnist"), CPU)
    run = running.run(plans.new_plan("model-gaps", CONFIG, lab, ["dataset"], {"threads": 1}), Recorder())
    (model,) = models(CONFIG)
    return run.load_arrays(job_key(model_factors(model)))


def difference(bounds, higher, lower):
    """Mean of what one bound lies above another, paired by point, and its standard error."""
    gap = bounds[higher] - bounds[lower]
    return gap.mean(), gap.std(ddof=1) / np.sqrt(len(gap))


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("AMORTIZED_BAYES_DATA"), reason="needs binarized MNIST")
def test_bounds_lie_in_their_order(bounds):
    assert len(bounds["elbo"]) == CONFIG.points
    for lower, higher in pairwise(ORDER):
        mean, error = difference(bounds, higher, lower)
        assert mean >= -2 * error, (lower, higher, mean, error)
    for lower, higher in (("elbo", "elbo_star_gaussian"), ("elbo_star_gaussian", "log_p_lower"), ("elbo", "iwae")):
        mean, error = difference(bounds, higher, lower)
        assert mean > 4 * error, (lower, higher, mean, error)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("AMORTIZED_BAYES_DATA"), reason="needs binarized MNIST")
def test_gaps_are_those_between_the_bounds(bounds):
    mean, error = difference(bounds, "log_p_lower", "elbo_star_gaussian")
    assert bounds["approximation_gap"].mean() >= mean - 2 * error
    assert bounds["approximation_gap"].mean() >= -2 * error
    whole = bounds["approximation_gap"] + bounds["amortization_gap"]
    np.testing.assert_allclose(whole, bounds["inference_gap"], rtol=1e-6, atol=1e-6)
