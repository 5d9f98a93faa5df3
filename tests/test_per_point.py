"""Mean ± standard error over points, paired differences, and the rule for what is vacuous."""

import math

import numpy as np
import pytest
import torch

from amortized_bayes.per_point import ACTIVE_VARIANCE, PointValues, is_vacuous, mean_over_points, paired_difference


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


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray], ids=["tensor", "array"])
def test_what_points_share_is_in_the_error_once_for_each_side(kind):
    values = np.array([1.0, 3.0], np.float32)
    own = mean_over_points(kind(values))[1]
    a, b = PointValues(kind(values), 0.3), PointValues(kind(values - 1), 0.4)
    assert mean_over_points(a) == (2.0, pytest.approx(math.hypot(own, 0.3)))
    assert paired_difference(a, b) == (1.0, pytest.approx(0.5))
    assert paired_difference(a, kind(values)) == (0.0, pytest.approx(0.3))
    unknown = PointValues(kind(values), math.nan)
    assert math.isnan(mean_over_points(unknown)[1])
    assert math.isnan(paired_difference(a, unknown)[1])


def test_a_fit_without_an_active_unit_is_called_vacuous():
    assert ACTIVE_VARIANCE == 0.01
    for units, expected in ((0, True), (0.0, True), (1, False), (12.0, False), (None, False)):
        assert is_vacuous(units) is expected
