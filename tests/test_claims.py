"""Published claims: each is decided by rows of a run, abstains where they do not suffice, and the page is of today."""

import math
from pathlib import Path

import made_runs
import pytest

from amortized_bayes import labels
from amortized_bayes.cli import main
from amortized_bayes.experiments import EXPERIMENTS
from amortized_bayes.guides.registry import Fit
from amortized_bayes.presenting.claim_list import CLAIMS
from amortized_bayes.presenting.claim_tests import (
    Dead,
    Largest,
    Less,
    Quotient,
    Shown,
    Signed,
    Term,
    Times,
    Told,
    verdict,
)
from amortized_bayes.presenting.claims import claims_found
from amortized_bayes.presenting.claims_page import claims_page
from amortized_bayes.presenting.tables import plain_console, print_claims
from amortized_bayes.results.rows import to_frame
from amortized_bayes.results.summary import summarise

ROOT = Path(__file__).parents[1]


def rows(values, metric="gap", factor="family"):
    """``values``: the value and error of each level of a factor, one per seed."""
    made = made_runs.Made("model-gaps")
    all_rows = [
        made.row({"dataset": "mnist", factor: level, "seed": seed}, metric, *found)
        for level, seeds in values.items()
        for seed, found in enumerate(seeds)
    ]
    return to_frame(row._asdict() for row in all_rows)


def term(level, factor="family", **more):
    return Term("gap", {factor: level}, **more)


def only(told):
    (one,) = told
    return one


def lines(experiment, made, preset=""):
    return {(line.dataset, line.claim.text): line for line in claims_found(experiment, summarise(made.frame()), preset)}


@pytest.mark.parametrize(
    ("a", "b", "holds"),
    [
        ([(1.0, 0.1)], [(2.0, 0.1)], True),
        ([(2.0, 0.1)], [(1.0, 0.1)], False),
        ([(1.0, 0.3)], [(1.5, 0.3)], None),  # 0.5 apart, with an error of 0.42
        ([(1.0, 9.0), (5.0, 9.0)], [(2.0, 9.0), (6.1, 9.0)], True),  # paired by seed: 1.05±0.05
        ([(1.0, 0.1), (5.0, 0.1)], [(2.0, 0.1), (6.2, 0.1)], None),  # 1.1±0.1: two seeds tell only 12.7 errors
        ([(1.0, 0.1), (5.0, 0.1), (3.0, 0.1)], [(2.0, 0.1), (6.2, 0.1), (4.1, 0.1)], True),  # 1.1±0.06, and 4.3
        ([(1.0, 0.1), (5.0, 0.1)], [(2.0, 0.1)], None),  # a seed is missing
        ([(1.0, None)], [(2.0, None)], None),  # no errors
    ],
)
def test_a_smaller_number_is_smaller_by_the_interval_of_the_paired_difference(a, b, holds):
    assert only(Less(term("a"), term("b")).told(rows({"a": a, "b": b}))).holds is holds


def test_a_vacuous_fit_decides_nothing_unless_it_is_meant():
    found = rows({"a": [(1.0, 0.1)], "b": [(2.0, 0.1)]})
    found.loc[found["family"] == "a", "status"] = "vacuous"
    assert only(Less(term("a"), term("b")).told(found)) == Told(None, "not measured with every seed")
    assert only(Less(term("a", sound=False), term("b")).told(found)).holds is True


@pytest.mark.parametrize(("value", "holds"), [(2.5, True), (9.0, False), (3.0, None)])
def test_a_ratio_lies_in_a_range_with_its_interval(value, holds):
    found = rows({"a": [(value, 0.1), (2 * value + 0.02, 0.1)], "b": [(1.0, 0.1), (2.0, 0.1)]})
    assert only(Quotient(term("a"), term("b"), 2, 3).told(found)).holds is holds
    one = rows({"a": [(value, 0.1)], "b": [(1.0, 0.1)]})  # one seed has no error
    assert only(Quotient(term("a"), term("b"), 2, 3).told(one)).holds is None


@pytest.mark.parametrize(("fifth", "holds"), [((5.0, 0.1), True), ((1.0, 0.1), False), ((3.1, 0.3), None)])
def test_the_hardest_class_is_harder_than_every_other(fifth, holds):
    found = rows({3: [(3.0, 0.1)], 5: [fifth], 8: [(2.9, 0.1)]}, factor="label")
    told = only(Largest(Term("gap"), "label", 5).told(found))
    assert told.holds is holds
    assert told.words.endswith("largest other 3: 3.00±0.10")


@pytest.mark.parametrize(("value", "holds"), [(0.5, True), (-0.5, False), (0.1, None)])
def test_a_number_has_a_sign_if_its_interval_has(value, holds):
    found = rows({"a": [(value, 0.1)]})
    told = only(Signed(term("a")).told(found))
    assert told.holds is holds
    assert told.words.startswith(f"a: {value:.2f}±0.10")
    opposite = only(Signed(term("a"), -1).told(found)).holds
    assert opposite is (None if holds is None else not holds)


def test_a_sign_needs_every_seed_and_an_error():
    assert only(Signed(term("b")).told(rows({"a": [(1.0, 0.1)]}))).holds is None
    assert only(Signed(term("a")).told(rows({"a": [(1.0, None)]}))).holds is None


def test_parts_come_to_one_verdict():
    parts = {name: Told(name, "") for name in (True, False, None)}
    assert verdict([parts[True]] * 2) == "holds"
    assert verdict([parts[False]] * 2) == "does not hold"
    assert verdict([parts[True], parts[False]]) == verdict([parts[True], parts[None]]) == "holds in part"
    assert verdict([parts[False], parts[None]]) == verdict([parts[None]]) == verdict([]) == "cannot be told yet"


def test_a_sweep_decides_what_was_claimed_of_its_data_sets():
    found = lines("sweep", made_runs.sweep(("fashion-mnist",), widths=(1, 64)))
    assert {dataset for dataset, _ in found} == {"fashion-mnist"}
    closing = found["fashion-mnist", "A-VI closes the gap to F-VI from k = 64 on"]
    assert closing.verdict == "cannot be told yet"  # 0.94±0.10 nats are left, and 1% is 1.05; k = 256 was not tried
    assert closing.measured.startswith("k = 64: 0.9% left, 0.94±0.10 nats")
    steps, seconds = (found["fashion-mnist", f"A-VI is 2 to 3 times faster in {c}"] for c in ("iterations", "seconds"))
    assert "2.00× to 90% of the gap (k = 64)" in steps.measured
    assert "2.50× to 90% of the gap (k = 64)" in seconds.measured
    assert seconds.verdict == "cannot be told yet"  # one seed
    three = lines("sweep", made_runs.sweep(("fashion-mnist",), (0, 1, 2), (1, 64, 256)))
    assert three["fashion-mnist", "A-VI closes the gap to F-VI from k = 64 on"].verdict == "holds"
    assert three["fashion-mnist", "Test MSE of F-VI"].verdict == "nothing claimed"
    assert not lines("sweep", made_runs.sweep(("digits",)))


def test_claims_abstain_where_a_seed_is_missing_or_vacuous():
    made = made_runs.sweep(("fashion-mnist",), (0, 1), (1, 64), failing=("factorized", None))
    found = lines("sweep", made)
    assert "of the gap (" not in found["fashion-mnist", "A-VI is 2 to 3 times faster in seconds"].measured
    assert found["fashion-mnist", "Test MSE of F-VI"].measured == "not measured with every seed"
    dead = lines("sweep", made_runs.sweep(("fashion-mnist",), widths=(1, 64), vacuous=(("amortized", 64),)))
    closing = dead["fashion-mnist", "A-VI closes the gap to F-VI from k = 64 on"]
    assert (closing.measured, closing.verdict) == ("no fit with an active latent", "cannot be told yet")


def test_a_fit_that_still_moves_is_not_called_dead():
    frame = summarise(made_runs.sweep(vacuous=(("factorized", None),)).frame())
    told = only(Dead(Fit("factorized")).told(frame))  # the last doubling gained 8 nats
    assert told.holds is None
    assert "not converged by 8.00" in told.words
    frame.loc[frame["metric"] == "unconverged_by", "value"] = 0.1
    assert only(Dead(Fit("factorized")).told(frame)).holds is True
    assert only(Dead(Fit("amortized", 16)).told(frame)).holds is False


def test_claims_about_another_preset_are_left_out():
    made = made_runs.sweep()
    everything, quick = lines("sweep", made), lines("sweep", made, "quick")
    assert {key[1] for key in everything.keys() - quick.keys()} == {
        "In the published setting A-VI and F-VI both ignore z"
    }


def test_models_and_decoders_decide_theirs():
    found = lines("model-gaps", made_runs.model_gaps())
    larger = found["binarized-mnist", "The encoder loses as much as the family, or more"]
    assert (larger.measured, larger.verdict) == ("1.50±0.10 against 1.20±0.10", "does not hold")
    found = lines("frozen-decoder", made_runs.frozen_decoder())
    assert found["binarized-mnist", "A wider encoder lowers the amortization gap"].verdict == "holds"


def test_every_claim_can_be_computed():
    for claim in CLAIMS:
        assert claim.experiment in EXPERIMENTS
        assert claim.published
        assert claim.tests
        for test in claim.tests:
            for name in ("smaller", "larger", "over", "under", "term"):
                if isinstance(one := getattr(test, name, None), Term):
                    assert one.metric in labels.METRICS
                    assert one.where.keys() <= labels.FACTORS.keys()
            assert isinstance(test, Shown | Signed | Times | Less | Quotient | Largest | Dead) or hasattr(test, "k")
    assert {d for c in CLAIMS for d in c.published if "19%" in c.text} == {"saw"}  # never quoted for images


def test_a_table_of_claims_is_printed_for_each_data_set(capsys):
    found = list(claims_found("sweep", summarise(made_runs.sweep(("mnist", "fashion-mnist")).frame())))
    console = plain_console()
    console.width = 250
    print_claims(found, console)
    text = capsys.readouterr().out
    assert "compare orderings), FashionMNIST" in text
    assert "1.7-2.2, to train MSE < 0.07" in text


def test_the_page_names_runs_and_says_where_there_is_none(tmp_path):
    made = made_runs.sweep(("mnist",), (0, 1, 2), (1, 16, 64, 256))
    made.save(tmp_path / "unnamed")
    page = claims_page(tmp_path / "unnamed")  # of a run without a preset nothing is said
    assert "no run yet | **cannot be told yet** |" in page
    run = made.save(tmp_path / "quick", preset="quick")
    page = claims_page(tmp_path / "quick")
    closing = next(line for line in page.splitlines() if line.startswith("| A-VI closes the gap to F-VI from k = 64"))
    assert closing.endswith("[1] | **holds** |")
    assert f"`sweep/{run.name}`" in page


def test_a_later_run_of_fewer_seeds_does_not_answer(tmp_path):
    many = made_runs.sweep(("mnist",), (0, 1, 2), (1, 16, 64, 256)).save(tmp_path, preset="quick")
    for seeds, answers in (((0,), False), ((3, 4, 5), True)):
        later = made_runs.sweep(("mnist",), seeds, (1, 16, 64)).save(tmp_path, preset="quick")
        page = claims_page(tmp_path)
        assert (f"`sweep/{later.name}`" in page) == answers
        assert (f"`sweep/{many.name}`" in page) != answers


def test_a_later_run_of_fewer_points_does_not_answer(tmp_path):
    made = made_runs.sweep(("mnist",), (0, 1, 2), (1, 16, 64))
    many = made.save(tmp_path, {"points": 5_000}, preset="quick")
    for points, answers in ((300, False), (5_000, True)):
        later = made.save(tmp_path, {"points": points}, preset="quick")
        page = claims_page(tmp_path)
        assert (f"`sweep/{later.name}`" in page) == answers
        assert (f"`sweep/{many.name}`" in page) != answers


def test_a_damaged_run_is_not_left_out(tmp_path):
    run = made_runs.sweep(("mnist",)).save(tmp_path, preset="quick")
    about = run.path / "environment.json"
    about.write_text(about.read_text().replace("quick", "paper"))
    with pytest.raises(ValueError, match=rf"{run.name}.*environment\.json"):
        claims_page(tmp_path)


def test_the_command_writes_the_page_or_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["claims", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "expected finished runs under" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["claims", "--out", str(ROOT / "results/reported"), "--into", str(tmp_path / "claims.md")])
    assert stop.value.code == 0
    assert (tmp_path / "claims.md").read_text().startswith("# Published claims")


def test_the_page_in_the_docs_is_that_of_the_reported_runs():
    assert (ROOT / "docs/claims.md").read_text() == claims_page(ROOT / "results/reported")


def test_numbers_without_a_value_are_missing():
    found = rows({"a": [(math.nan, None)], "b": [(2.0, 0.1)]})
    assert only(Less(term("a"), term("b")).told(found)).words == "not measured with every seed"
