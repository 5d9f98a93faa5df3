"""The arithmetic of gaps, targets and convergence on hand-made numbers."""

import math

import numpy as np
import pytest
import torch
from sweeps import ADDED

from amortized_bayes.comparing.between import Curve, best_fit, compare_fits, find_reference, steps_to_target
from amortized_bayes.comparing.fitting import Evaluation, report_steps
from amortized_bayes.comparing.measures import Measure, over_points, paired
from amortized_bayes.guides import registry
from amortized_bayes.guides.registry import Fit, list_fits

CONSTANT, NARROW, WIDE = Fit("constant"), Fit("amortized", 1), Fit("amortized", 8)
OWN, FROM = Fit("factorized"), Fit("factorized-from-amortized")
ELBOS = {
    CONSTANT: np.array([-10.0, -12.0, -14.0], np.float32),
    NARROW: np.array([-5.0, -6.0, -7.0], np.float32),
    OWN: np.array([-4.0, -5.0, -6.0], np.float32),
    FROM: np.array([-4.5, -4.5, -4.5], np.float32),
}
CURVE = Curve(np.array([1.0, 10, 100]), np.array([0.1, 1, 10]), np.array([-30.0, -9, -5]))


def found(elbos=ELBOS, doubled=None, curve=CURVE):
    findings = list(compare_fits(elbos, doubled or {}, dict.fromkeys(elbos, curve)))
    by_name = {(f.fit, f.metric, f.within): f.measure for f in findings}
    assert len(by_name) == len(findings)
    return by_name


def test_the_reference_is_the_better_fvi():
    assert find_reference(ELBOS) == FROM
    assert found()[FROM, "elbo_reference", None] == (-4.5, 0.0, "points")
    without = {fit: values for fit, values in ELBOS.items() if fit != FROM}
    assert find_reference(without) == OWN
    assert found(without)[OWN, "elbo_reference", None] == (-5.0, pytest.approx(1 / math.sqrt(3)), "points")


def test_no_other_guide_is_the_reference_however_good():
    assert find_reference(ELBOS | {NARROW: ELBOS[NARROW] + 50, CONSTANT: ELBOS[CONSTANT] + 90}) == FROM


def test_gaps_are_paired():
    gap = found(ELBOS | {FROM: ELBOS[NARROW] + 2})[NARROW, "family_gap", None]
    assert gap == (2, 0, "points")  # the spread over points drops out
    gap = found()[CONSTANT, "family_gap", None]
    assert gap == (pytest.approx(7.5), pytest.approx(2 / math.sqrt(3)), "points")


def test_a_guide_that_beats_fvi_has_a_negative_gap():
    assert found(ELBOS | {NARROW: ELBOS[NARROW] + 5})[NARROW, "family_gap", None].value == pytest.approx(-3.5)


def test_without_fvi_nothing_is_compared():
    assert not found({CONSTANT: ELBOS[CONSTANT], NARROW: ELBOS[NARROW]})
    assert not found({})


def test_times_are_those_of_fits_that_start_at_the_start():
    numbers = found()
    # reference -4.5: within 1 nat, at -5.5, is 7/8 of the way from -9 at step 10 to -5 at step 100, on a log axis
    assert numbers[NARROW, "steps_to_target", 1.0].value == pytest.approx(10 ** (1 + 3.5 / 4))
    assert numbers[NARROW, "seconds_to_target", 1.0].value == pytest.approx(10 ** (3.5 / 4))
    assert numbers[NARROW, "steps_to_target", 3.0].value == pytest.approx(10 ** (1 + 1.5 / 4))
    assert (FROM, "steps_to_target", 1.0) not in numbers
    assert (FROM, "family_gap", None) in numbers


def test_a_target_that_is_never_reached_is_none():
    low = CURVE._replace(elbo=np.full(3, -50.0))
    assert found(curve=low)[CONSTANT, "steps_to_target", 3.0] == (None, None, None)


def test_what_is_not_converged_is_what_doubling_gained_each_point():
    numbers = found(doubled={NARROW: ELBOS[NARROW] + np.array([0, 1, 2], np.float32)})
    assert numbers[NARROW, "unconverged_by", None] == (1, pytest.approx(1 / math.sqrt(3)), "points")
    assert (OWN, "unconverged_by", None) not in numbers


def test_tensors_and_arrays_give_the_same():
    tensors = {fit: torch.from_numpy(values) for fit, values in ELBOS.items()}
    for key, measure in found(tensors).items():
        assert measure == pytest.approx(found()[key]) if measure.error else measure.value == found()[key].value


def test_one_point_has_no_error():
    numbers = found({fit: values[:1] for fit, values in ELBOS.items()})
    assert {measure[1:] for measure in numbers.values()} == {(None, None)}


def test_the_best_fit_of_a_guide_is_that_with_the_highest_mean():
    elbos = ELBOS | {WIDE: ELBOS[NARROW] + np.array([9, -4, -4], np.float32)}
    assert best_fit(elbos, "amortized") == WIDE
    assert best_fit(ELBOS, "amortized") == NARROW
    assert best_fit({OWN: ELBOS[OWN]}, "amortized") is None
    close = {NARROW: np.array([2.0**24, 1.0, 0.5], np.float32), WIDE: np.array([2.0**24, 1.0, 1.0], np.float32)}
    assert best_fit(close, "amortized") == WIDE  # in float64


@pytest.mark.parametrize(
    ("target", "expected"),
    [(-20.0, (1.0, 0.5)), (-10.0, (1.0, 0.5)), (-4.0, (100.0, 8.0)), (-7.0, (10.0, 2.0)), (-3.9, None)],
)
def test_steps_to_target_go_between_reports_on_log_axes(target, expected):
    at = steps_to_target(Curve(np.array([1.0, 100.0]), np.array([0.5, 8.0]), np.array([-10.0, -4.0])), target)
    assert at == (None if expected is None else pytest.approx(expected))


def test_steps_to_target_is_where_it_is_first_reached():
    steps = np.array([1.0, 2.0, 4.0, 8.0])
    assert steps_to_target(Curve(steps, steps, np.array([-9.0, -1.0, -9.0, 0.0])), -1.0) == pytest.approx((2, 2))
    assert steps_to_target(Curve(steps[:0], steps[:0], steps[:0]), 0.0) is None


def test_measures_say_what_their_error_is_over():
    assert paired(ELBOS[OWN], ELBOS[NARROW]) == Measure(1.0, 0.0, "points")
    assert over_points(torch.tensor([3.0])) == Measure(3.0, None, None)


@pytest.mark.parametrize(("units", "status"), [(0, "vacuous"), (1, "ok"), (None, "ok")])
def test_an_evaluation_without_an_active_unit_is_vacuous(units, status):
    assert Evaluation(1, 0.0, {"active_units": Measure(units), "final_kl": Measure(0.5)}).status == status
    assert Evaluation(1, 0.0, {"doubled_elbo": Measure(-3.0)}).status == "ok"


@pytest.mark.parametrize("num_steps", [1, 2, 5, 100, 12_345])
def test_reports_are_at_rising_steps_from_first_to_last(num_steps):
    steps = report_steps(num_steps)
    assert steps[0] == 1
    assert steps[-1] == num_steps
    assert steps == sorted(set(steps))
    assert len(steps) <= 28


def test_what_starts_at_another_guide_comes_last_and_only_beside_its_two(monkeypatch):
    assert list_fits(("factorized", "amortized"), (2, 1)) == [OWN, Fit("amortized", 2), NARROW, FROM]
    assert list_fits(("constant", "factorized"), (1,)) == [CONSTANT, OWN]
    assert list_fits(("constant", "amortized"), (1,)) == [CONSTANT, NARROW]
    with pytest.raises(ValueError, match="expected guides among constant, amortized, factorized, got 'prototypes'"):
        list_fits(("prototypes",), (1,))
    monkeypatch.setitem(registry.GUIDES, "prototypes", ADDED)
    assert list_fits(("prototypes", "constant"), (1, 8)) == [Fit("prototypes", 1), Fit("prototypes", 8), CONSTANT]
