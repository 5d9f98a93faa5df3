"""Mean ± standard error over points, paired differences, and the rule for what is vacuous."""

import math

import numpy as np
import pytest
import torch

from amortized_bayes.per_point import is_vacuous, mean_over_points, paired_difference


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray], ids=["tensor", "array"])
def test_the_error_is_that_of_the_mean_and_nan_for_one_point(kind):
    values = np.random.default_rng(0).normal(size=400)
    mean, error = mean_over_points(kind(values))
    assert mean == pytest.approx(values.mean(), rel=1e-14)
    assert error == pytest.approx(values.std(ddof=1) / 20, rel=1e-14)
    mean, error = mean_over_points(kind(values[:1]))
    assert mean == values[0]
    assert math.isnan(error)


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray], ids=["tensor", "array"])
def test_differences_are_in_float64_and_paired(kind):
    a, b = kind(np.array([1e6 + 1, 1e6 + 2], np.float32)), kind(np.array([1e6, 1e6], np.float32))
    assert paired_difference(a, b) == (1.5, pytest.approx(0.5))
    near = kind(np.full(3, 2**24, np.float32))
    assert mean_over_points(near)[0] == 2**24
    assert paired_difference(a, a) == (0, 0)
    assert {type(number) for number in paired_difference(a, b)} == {float}


def test_a_fit_without_an_active_unit_is_called_vacuous():
    for active, expected in ((0, True), (1, False), (12, False), (None, False)):
        assert is_vacuous(active) is expected
