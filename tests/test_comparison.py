"""The arithmetic of gaps, targets and convergence on hand-made numbers."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from amortized_bayes.experiments.comparison import compare_fits
from amortized_bayes.experiments.measure import Measure, over_points, paired_difference, steps_to_target
from amortized_bayes.experiments.sweep import Fit
from amortized_bayes.types import ROW_FIELDS, Row

CONSTANT, NARROW = Fit("digits", 0, "constant"), Fit("digits", 0, "amortized", 1)
OWN, FROM = Fit("digits", 0, "factorized"), Fit("digits", 0, "factorized-from-amortized")


def rows_of(fit, curve, final, status="ok"):
    base = Row("sweep", fit.dataset, "m", fit.guide, fit.k, fit.seed, 0, 0.0, "elbo", None, status=status)
    rows = [base._replace(step=s, seconds=s / 10, value=v) for s, v in curve]
    return [*rows, base._replace(step=100, seconds=10.0, metric="final_elbo", value=final)]


def frame_of(*rows):
    return pd.DataFrame([r for part in rows for r in part], columns=pd.Index(ROW_FIELDS)).astype({"k": "Int64"})


def found(frame, elbos, gains=None):
    rows = list(compare_fits(frame, elbos, gains or {}))
    return {(r.guide, r.k, r.metric): r for r in rows}


@pytest.fixture
def hand_made():
    elbos = {
        CONSTANT: np.array([-10.0, -12.0, -14.0], np.float32),
        NARROW: np.array([-5.0, -6.0, -7.0], np.float32),
        OWN: np.array([-4.0, -5.0, -6.0], np.float32),
        FROM: np.array([-4.5, -4.5, -4.5], np.float32),
    }
    curve = [(1, -30.0), (10, -9.0), (100, -5.0)]
    frame = frame_of(*(rows_of(f, curve, float(e.mean())) for f, e in elbos.items()))
    return frame, elbos


def test_the_reference_is_the_better_fvi(hand_made):
    frame, elbos = hand_made
    row = found(frame, elbos)["reference", None, "elbo_reference"]
    assert row.value == -4.5
    assert row.note == "F-VI from the best A-VI"
    assert row.standard_error == 0.0
    del elbos[FROM]
    row = found(frame, elbos)["reference", None, "elbo_reference"]
    assert (row.value, row.note) == (-5.0, "F-VI from its own start")
    assert row.standard_error == pytest.approx(1 / math.sqrt(3))
    assert row.error_over == "points"


def test_gaps_are_paired(hand_made):
    frame, elbos = hand_made
    gap = found(frame, elbos | {FROM: elbos[NARROW] + 2})["amortized", 1, "family_gap"]
    assert gap.value == 2
    assert gap.standard_error == 0  # the points are paired: the spread over points goes out
    gap = found(frame, elbos)["constant", None, "family_gap"]
    assert gap.value == pytest.approx(7.5)
    assert gap.standard_error == pytest.approx(2 / math.sqrt(3))


def test_a_guide_that_beats_fvi_has_a_negative_gap(hand_made):
    frame, elbos = hand_made
    assert found(frame, elbos | {NARROW: elbos[NARROW] + 5})["amortized", 1, "family_gap"].value == pytest.approx(-3.5)


def test_without_fvi_nothing_is_compared(hand_made):
    frame, elbos = hand_made
    assert not found(frame, {CONSTANT: elbos[CONSTANT], NARROW: elbos[NARROW]})
    assert not found(frame, {})


def test_times_are_those_of_fits_that_start_at_the_start(hand_made):
    frame, elbos = hand_made
    rows = found(frame, elbos)
    # reference -4.5: within 1 nat, at -5.5, is 7/8 of the way from -9 at step 10 to -5 at step 100, on a log axis
    assert rows["amortized", 1, "steps_to_1_nat"].value == pytest.approx(10 ** (1 + 3.5 / 4))
    assert rows["amortized", 1, "seconds_to_1_nat"].value == pytest.approx(10 ** (3.5 / 4))
    assert rows["amortized", 1, "steps_to_3_nats"].value == pytest.approx(10 ** (1 + 1.5 / 4))
    assert ("factorized-from-amortized", None, "steps_to_1_nat") not in rows
    assert ("factorized-from-amortized", None, "family_gap") in rows


def test_a_target_that_is_never_reached_is_none(hand_made):
    frame, elbos = hand_made
    frame.loc[frame["metric"] == "elbo", "value"] = -50.0
    assert found(frame, elbos)["constant", None, "steps_to_3_nats"].value is None


def test_unconverged_by_is_what_doubling_gained(hand_made):
    frame, elbos = hand_made
    rows = found(frame, elbos, {NARROW: Measure(0.25, 0.1, "points"), OWN: Measure(None)})
    assert rows["amortized", 1, "unconverged_by"][9:12] == (0.25, 0.1, "points")
    assert ("factorized", None, "unconverged_by") not in rows
    assert ("constant", None, "unconverged_by") not in rows


def test_comparisons_keep_the_fate_of_their_fit(hand_made):
    _, elbos = hand_made
    frame = frame_of(*(rows_of(f, [(1, -9.0)], 0.0, "vacuous" if f is CONSTANT else "ok") for f in elbos))
    rows = found(frame, elbos)
    assert rows["constant", None, "family_gap"].status == "vacuous"
    assert rows["amortized", 1, "family_gap"].status == "ok"


def test_one_point_has_no_error(hand_made):
    frame, elbos = hand_made
    rows = found(frame, {f: e[:1] for f, e in elbos.items()})
    assert {r.standard_error for r in rows.values()} == {None}
    assert rows["amortized", 1, "family_gap"].error_over is None


@pytest.mark.parametrize(
    ("target", "expected"),
    [(-20.0, (1.0, 0.5)), (-10.0, (1.0, 0.5)), (-4.0, (100.0, 8.0)), (-7.0, (10.0, 2.0)), (-3.9, None)],
)
def test_steps_to_target_go_between_reports_on_log_axes(target, expected):
    at = steps_to_target(np.array([1.0, 100.0]), np.array([0.5, 8.0]), np.array([-10.0, -4.0]), target)
    assert at == (None if expected is None else pytest.approx(expected))


def test_steps_to_target_is_where_it_is_first_reached():
    steps = np.array([1.0, 2.0, 4.0, 8.0])
    assert steps_to_target(steps, steps, np.array([-9.0, -1.0, -9.0, 0.0]), -1.0) == pytest.approx((2, 2))
    assert steps_to_target(steps[:0], steps[:0], steps[:0], 0.0) is None


def test_differences_are_in_float64_and_paired():
    a, b = np.array([1e6 + 1, 1e6 + 2], np.float32), np.array([1e6, 1e6], np.float32)
    assert paired_difference(a, b) == Measure(1.5, pytest.approx(0.5), "points")
    assert over_points(torch.tensor([3.0])) == Measure(3.0, None, None)
