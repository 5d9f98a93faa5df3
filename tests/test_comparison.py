"""The arithmetic of gaps, shares and convergence on hand-made ladders."""

import math

import numpy as np
import pytest
import torch
from sweeps import ADDED

from amortized_bayes.comparing.between import Rung, best_fit, compare_fits, find_reference, share_closed, time_to
from amortized_bayes.comparing.fitting import Evaluation
from amortized_bayes.comparing.measures import Measure, over_points, paired
from amortized_bayes.guides import registry
from amortized_bayes.guides.registry import ALREADY, Fit, list_fits
from amortized_bayes.per_point import PointValues

CONSTANT, NARROW, WIDE = Fit("constant"), Fit("amortized", 1), Fit("amortized", 8)
OWN, FROM = Fit("factorized"), Fit("factorized-from-amortized")
ELBOS = {
    CONSTANT: np.array([-24.5, -26.5, -28.5], np.float32),
    NARROW: np.array([-5.5, -6.5, -7.5], np.float32),
    OWN: np.array([-5.0, -6.0, -7.0], np.float32),
    FROM: np.array([-4.5, -4.5, -4.5], np.float32),
}
BELOW = {CONSTANT: 1.0, NARROW: 6.0, OWN: 14.0, FROM: 2.0}
"""How far the rung below the top lies below it; that of F-VI from A-VI is its start."""


def ladders(elbos=ELBOS, below=BELOW):
    made = {}
    for fit, top in elbos.items():
        lower = Rung(10, 100, 1.0, top - np.float32(below.get(fit, 1.0)))
        made[fit] = [lower, Rung(20, 200, 4.0, top)]
    return made


def found(made=None, vacuous=()):
    findings = list(compare_fits(ladders() if made is None else made, vacuous))
    by_name = {(f.fit, f.metric, f.more.get("share", f.more.get("epochs"))): f.measure for f in findings}
    assert len(by_name) == len(findings)
    return by_name


def test_the_reference_is_the_better_fvi():
    assert find_reference(ladders()) == FROM
    assert found()[FROM, "elbo_reference", None] == (-4.5, 0.0, "points")
    without = ladders({fit: values for fit, values in ELBOS.items() if fit != FROM})
    assert find_reference(without) == OWN
    assert found(without)[OWN, "elbo_reference", None] == (-6.0, pytest.approx(1 / math.sqrt(3)), "points")


def test_no_other_guide_is_the_reference_however_good():
    assert find_reference(ladders(ELBOS | {NARROW: ELBOS[NARROW] + 50, CONSTANT: ELBOS[CONSTANT] + 90})) == FROM


def test_what_ends_below_its_start_is_no_reference():
    assert find_reference(ladders(below=BELOW | {FROM: -0.1})) == OWN
    assert find_reference(ladders({FROM: ELBOS[FROM]}, {FROM: -0.1})) is None
    assert find_reference(ladders({OWN: ELBOS[OWN]}, {OWN: -0.1})) == OWN  # it has no start but its own


def test_gaps_are_paired():
    gap = found(ladders(ELBOS | {FROM: ELBOS[NARROW] + 2}))[NARROW, "family_gap", None]
    assert gap == (2, 0, "points")  # the spread over points drops out
    gap = found()[CONSTANT, "family_gap", None]
    assert gap == (pytest.approx(22), pytest.approx(2 / math.sqrt(3)), "points")


def test_a_guide_that_beats_fvi_has_a_negative_gap():
    assert found(ladders(ELBOS | {NARROW: ELBOS[NARROW] + 5}))[NARROW, "family_gap", None].value == pytest.approx(-3)


def test_without_fvi_nothing_is_compared():
    assert not found(ladders({CONSTANT: ELBOS[CONSTANT], NARROW: ELBOS[NARROW]}))
    assert not found({})


def test_shares_are_of_the_gap_between_constant_vi_and_the_reference():
    numbers = found()
    assert numbers[NARROW, "gap_closed", None].value == pytest.approx(1 - 2 / 22)
    assert numbers[NARROW, "share_closed", 10].value == pytest.approx(1 - 8 / 22)
    assert numbers[FROM, "gap_closed", None].value == 1
    assert (CONSTANT, "gap_closed", None) not in numbers
    assert numbers[CONSTANT, "behind_reference", 10].value == pytest.approx(23)


def test_the_error_of_a_share_is_that_of_a_ratio_of_paired_means():
    generator = np.random.default_rng(0)
    best = generator.normal(0, 30, (400, 200))  # points differ by more than fits
    own = best - generator.normal(2, 1.5, best.shape)
    worst = own - generator.normal(8, 3, best.shape)
    found = [share_closed(*each) for each in zip(best, own, worst, strict=True)]
    spread = np.std([measure.value for measure in found], ddof=1)
    assert np.mean([measure.error for measure in found]) == pytest.approx(spread, rel=0.1)
    noisy = share_closed(PointValues(best[0], 0.2), own[0], PointValues(worst[0], 0.4))
    exact = math.hypot(found[0].error, 0.8 * 0.2 / 10, 0.2 * 0.4 / 10)
    assert noisy.error == pytest.approx(exact, rel=0.05)
    assert share_closed(best[0], best[0], worst[0]) == (1, 0, "points")


def test_shares_of_a_gap_within_its_error_are_not_told():
    near = ELBOS[FROM] - np.array([3, -3, 1], np.float32)  # 0.3 nats below, with an error of 1.8
    numbers = found(ladders(ELBOS | {CONSTANT: near}))
    assert not {metric for _, metric, _ in numbers} & {"gap_closed", "share_closed", "steps_to_share"}


def test_times_are_those_of_fits_that_start_at_the_start():
    numbers = found()
    # 80% is closed at 4.4 nats behind: between 8 and 2 nats behind, on log axes
    part = math.log(8 / 4.4) / math.log(4)
    assert numbers[NARROW, "steps_to_share", 0.8].value == pytest.approx(100 * 2**part)
    assert numbers[NARROW, "seconds_to_share", 0.8].value == pytest.approx(4**part)
    assert numbers[NARROW, "steps_to_share", 0.95] == (None, None, None)
    assert numbers[NARROW, "steps_to_share", 0.5] == (None, None, None)
    notes = {(f.more.get("share")): f.note for f in compare_fits(ladders()) if f.fit == NARROW and "share" in f.more}
    assert notes == {0.5: ALREADY, 0.8: "", 0.9: "", 0.95: ""}  # at 0.5 by the smallest budget already
    assert (FROM, "steps_to_share", 0.8) not in numbers
    assert (CONSTANT, "steps_to_share", 0.8) not in numbers


@pytest.mark.parametrize("dead", [FROM, NARROW])
def test_a_vacuous_fit_closes_nothing_and_a_vacuous_reference_tells_nothing(dead):
    numbers = found(vacuous=[dead])
    closers = {fit for fit, metric, _ in numbers if metric in ("gap_closed", "share_closed", "steps_to_share")}
    assert closers == (set() if dead == FROM else {OWN, FROM})
    assert (NARROW, "family_gap", None) in numbers


def test_without_constant_vi_or_above_the_reference_no_share_is_told():
    few = {fit: values for fit, values in ELBOS.items() if fit != CONSTANT}
    for made in (ladders(few), ladders(ELBOS | {CONSTANT: ELBOS[FROM] + 1})):
        assert not {metric for _, metric, _ in found(made)} & {"gap_closed", "share_closed", "steps_to_share"}


def test_what_is_not_converged_is_what_the_last_doubling_gained_each_point():
    made = ladders()
    lower = made[NARROW][-1].elbo - np.array([0, 1, 2], np.float32)
    made[NARROW] = [made[NARROW][0]._replace(epochs=5), made[NARROW][0]._replace(elbo=lower), made[NARROW][1]]
    assert found(made)[NARROW, "unconverged_by", None] == (1, pytest.approx(1 / math.sqrt(3)), "points")


def test_tensors_and_arrays_give_the_same():
    made = ladders()
    tensors = {fit: [rung._replace(elbo=torch.from_numpy(rung.elbo)) for rung in made[fit]] for fit in made}
    for key, measure in found(tensors).items():
        assert measure == pytest.approx(found()[key]) if measure.error else measure.value == found()[key].value


def test_one_point_has_no_error():
    numbers = found(ladders({fit: values[:1] for fit, values in ELBOS.items()}))
    assert {measure[1:] for measure in numbers.values()} == {(None, None)}


def test_the_best_fit_of_a_guide_is_that_with_the_highest_mean():
    elbos = ELBOS | {WIDE: ELBOS[NARROW] + np.array([9, -4, -4], np.float32)}
    assert best_fit(elbos, "amortized") == WIDE
    assert best_fit(ELBOS, "amortized") == NARROW
    assert best_fit({OWN: ELBOS[OWN]}, "amortized") is None
    close = {NARROW: np.array([2.0**24, 1.0, 0.5], np.float32), WIDE: np.array([2.0**24, 1.0, 1.0], np.float32)}
    assert best_fit(close, "amortized") == WIDE  # in float64


RUNGS = [Rung(1, 100, 0.5, np.zeros(1)), Rung(2, 200, 8.0, np.zeros(1)), Rung(4, 400, 9.0, np.zeros(1))]


@pytest.mark.parametrize(
    ("behind", "target", "expected"),
    [
        ((9, 8, 7), 10.0, None),  # at the smallest budget already
        ((8, 2, 1), 4.0, (100 * 2**0.5, 2.0)),
        ((8, 2, 1), 1.0, (400, 9.0)),
        ((8, 2, 1), 0.9, None),
        ((8, -8, 1), 0.0, (100 * 2**0.5, 2.0)),  # on a linear axis where logarithms end
        ((8, 2, 8), 2.0, (200, 8.0)),  # where it is first reached
    ],
)
def test_times_go_between_rungs_on_log_axes(behind, target, expected):
    at = time_to(RUNGS, behind, target)
    assert at == (None if expected is None else pytest.approx(expected))


def test_measures_say_what_their_error_is_over():
    assert paired(ELBOS[OWN], ELBOS[NARROW]) == Measure(0.5, 0.0, "points")
    assert over_points(torch.tensor([3.0])) == Measure(3.0, None, None)


@pytest.mark.parametrize(("active", "status"), [(0, "vacuous"), (1, "ok"), (None, "ok")])
def test_an_evaluation_is_vacuous_without_an_active_unit(active, status):
    assert Evaluation(1, 1, 0.0, {"active_units": Measure(active)}).status == status
    assert Evaluation(1, 1, 0.0, {"final_kl": Measure(0.1)}).status == "ok"


def test_what_starts_at_another_guide_comes_last_and_only_beside_its_two(monkeypatch):
    assert list_fits(("factorized", "amortized"), (2, 1)) == [OWN, Fit("amortized", 2), NARROW, FROM]
    assert list_fits(("constant", "factorized"), (1,)) == [CONSTANT, OWN]
    assert list_fits(("constant", "amortized"), (1,)) == [CONSTANT, NARROW]
    with pytest.raises(
        ValueError,
        match="expected guides among constant, amortized, semi-amortized, refined, factorized, got 'prototypes'",
    ):
        list_fits(("prototypes",), (1,))
    monkeypatch.setitem(registry.GUIDES, "prototypes", ADDED)
    assert list_fits(("prototypes", "constant"), (1, 8)) == [Fit("prototypes", 1), Fit("prototypes", 8), CONSTANT]
