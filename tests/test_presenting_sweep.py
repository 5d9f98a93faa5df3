"""What is said of a sweep: who closes how much of the gap, how soon, and where nothing may be said."""

import made_runs
import pandas as pd
import pytest

from amortized_bayes.presenting.sentences import sentences

CONTINUED = ("factorized-from-amortized", None)


def said(made):
    frame = made if isinstance(made, pd.DataFrame) else made.frame()
    return "\n".join(sentences(frame, ("sweep",)))


def of(frame, metric, guide, k=None, seed=0):
    """Where a frame has a number of a fit."""
    same_k = frame["k"].isna() if k is None else (frame["k"] == k).fillna(False).astype(bool)
    return (frame["metric"] == metric) & (frame["guide"] == guide) & same_k & (frame["seed"] == seed)


def test_shares_of_the_gap():
    text = said(made_runs.sweep())
    assert "MNIST: the reference is the best F-VI found, F-VI from A-VI; errors are over points, one seed." in text
    assert "constant VI ends 105.0±0.1 nats per point below the reference; of this gap A-VI, k = 1 closes 42.9%" in text
    assert "A-VI, k = 16 closes 96.4% (3.8±0.1 left), A-VI, k = 256 closes 99.8% (0.2±0.1 left)" in text
    assert "F-VI closes 97.1% (3.0±0.1 left)." in text
    assert "F-VI from A-VI closes" not in text  # the reference, or below it


def test_the_narrowest_encoder_of_each_share():
    text = said(made_runs.sweep())
    assert (
        "the narrowest encoder that closes 50%, 80%, 90% and 95% of the gap is k = 16 (96.4%), that closes 99%" in text
    )
    assert "that closes 99% k = 256 (99.8%)." in text
    text = said(made_runs.sweep(widths=(1, 4, 16)))
    assert "closes 50% and 80% of the gap is k = 4 (85.7%), that closes 90% and 95% k = 16 (96.4%)." in text
    assert "no width tried closes 99% of the gap" in text
    text = said(made_runs.sweep(widths=(1,)))
    assert "narrowest" not in text
    assert "no width tried closes 50% of the gap" in text


def test_a_width_that_may_close_a_share_is_named_with_its_error():
    frame = made_runs.sweep(widths=(1, 4, 16)).frame()  # k = 4 closes 85.7%
    share = of(frame, "gap_closed", "amortized", 4)
    frame.loc[share, ["value", "standard_error"]] = 0.902, 0.002
    assert "90% and 95%" not in said(frame)
    assert "that closes 90% k = 16 (96.4%) or, within its error, k = 4 (90.2±0.2%)" in said(frame)
    frame.loc[of(frame, "gap_closed", "amortized", 16), ["value", "standard_error"]] = 0.985, 0.004
    assert "it is uncertain whether any width tried closes 99% of the gap: k = 16 (98.5±0.4%)." in said(frame)


def test_a_guide_that_is_dead_with_some_seeds_is_named_with_them():
    frame = made_runs.sweep(seeds=(0, 1, 2)).frame()
    frame.loc[(frame["k"] == 16).fillna(False) & (frame["seed"] == 1) & frame["epochs"].isna(), "status"] = "vacuous"
    assert "Vacuous, since no latent is active: A-VI, k = 16 with seed 1." in said(frame)


@pytest.mark.parametrize("why", ["vacuous", "failing", "missing"])
def test_no_narrowest_encoder_rests_on_a_fit_that_says_nothing(why):
    if why == "vacuous":
        text = said(made_runs.sweep(seeds=(0, 1), vacuous=(("amortized", 16),)))
    elif why == "failing":
        text = said(made_runs.sweep(seeds=(0, 1), failing=("amortized", 16)))
    else:
        frame = made_runs.sweep(seeds=(0, 1)).frame()
        text = said(frame[~((frame["k"] == 16).fillna(False) & (frame["seed"] == 1)).astype(bool)])
    assert "of the gap is k = 256 (99.8±0.0%)" in text
    assert "k = 16 closes" not in text
    assert "left out, since not every seed has a fit with an active latent: A-VI, k = 16." in text


def test_a_fit_that_is_dead_with_one_seed_alone_is_left_out():
    frame = made_runs.sweep(seeds=(0, 1)).frame()
    dead = (frame["k"] == 16).fillna(False) & (frame["seed"] == 1)
    frame.loc[dead & frame["epochs"].isna(), "status"] = "vacuous"
    assert "of the gap is k = 256 (99.8±0.0%)" in said(frame)
    frame.loc[dead, "status"] = "ok"
    frame.loc[dead & (frame["epochs"] == 5).fillna(False), "status"] = "vacuous"  # it came to life
    assert "of the gap is k = 16 (96.4±0.0%)" in said(frame)
    assert "Vacuous" not in said(frame)


def test_a_vacuous_reference_tells_nothing():
    frame = made_runs.sweep(("mnist", "digits"), vacuous=(CONTINUED,)).frame()
    frame.loc[(frame["dataset"] == "digits") & (frame["metric"] == "elbo_reference"), "status"] = "ok"
    mnist = [line for line in said(frame).splitlines() if line.startswith("MNIST:")]
    assert mnist == ["MNIST: no latent of the reference is active; gaps and times mean nothing."]
    assert "digits: the narrowest encoder" in said(frame)


def test_a_reference_that_is_dead_or_missing_with_one_seed_tells_nothing():
    frame = made_runs.sweep(seeds=(0, 1, 2)).frame()
    row = of(frame, "elbo_reference", "reference", seed=2)
    frame.loc[row, "status"] = "vacuous"
    text = said(frame)
    assert "MNIST: no latent of the reference is active with seed 2; gaps and times mean nothing." in text
    assert "closes" not in text
    text = said(frame[~row])
    assert "MNIST: there is no reference with seed 2, since fits are not compared yet; gaps and times" in text
    assert "closes" not in text
    without = frame[~row & ~((frame["metric"] == "final_elbo") & frame["guide"].isin(["factorized", CONTINUED[0]]))]
    sentence = "there is no reference with seed 2, since no F-VI succeeded; gaps and times are unavailable."
    assert sentence in said(without)
    unasked = frame[~frame["guide"].isin(["factorized", CONTINUED[0], "reference"])]
    assert "there is no reference, since F-VI was not fitted; gaps and times are unavailable." in said(unasked)


def test_equal_histories():
    text = said(made_runs.sweep())
    assert "F-VI continued from k = 256's solution ends 0.2±0.1 nats per point above k = 256 continued" in text
    assert "k = 256 continued for as many steps; longer fits may differ, since the last doubling gained A-VI" in text
    frame = made_runs.sweep().frame()
    frame.loc[frame["metric"] == "unconverged_by", "value"] = 0.1
    assert "k = 256 continued for as many steps." in said(frame)
    frame.loc[of(frame, "family_gap", "amortized", 256), "value"] = -0.4
    assert "ends 0.4±0.1 nats per point below k = 256" in said(frame)


def test_f_vi_goes_on_from_the_best_width_of_half_the_budget():
    frame = made_runs.sweep(seeds=(0, 1)).frame()
    half = of(frame, "elbo", "amortized", 16, seed=1) & (frame["epochs"] == 20).fillna(False)
    frame.loc[half, "value"] = -1.0  # with seed 1 alone
    text = said(frame)  # 0.23 with seed 0, of k = 256, and 3.77 with seed 1, of k = 16
    assert "F-VI continued from the best A-VI's solution ends 2.0±1.8 nats per point above the best A-VI" in text


def test_the_reference_may_be_a_run_of_f_vi_s_own():
    frame = made_runs.sweep().frame()
    frame.loc[of(frame, "elbo_reference", "reference"), "note"] = "F-VI"
    frame.loc[of(frame, "family_gap", *CONTINUED), "value"] = 0.1
    text = said(frame)
    assert "the reference is the best F-VI found, F-VI; errors" in text
    assert "ends 0.13 nats per point above k = 256 continued" in text  # 0.23 less 0.1, no error being known
    frame = made_runs.sweep(seeds=(0, 1)).frame()
    frame.loc[of(frame, "elbo_reference", "reference", seed=1), "note"] = "F-VI"
    assert "the best F-VI found, F-VI with seed 1 or F-VI from A-VI with seed 0; errors are over 2 seeds" in said(frame)


def test_times_are_ratios_with_their_target():
    text = said(made_runs.sweep(seeds=(0, 1), widths=(1, 64, 256)))  # seconds 2.5 and 2.55 times those of A-VI at 90%
    sentence = "F-VI needed 2.00±0.00× the steps and 2.52±0.02× the time of k = 256 and 2.00±0.00× the steps"
    assert f"{sentence} and 2.52±0.02× the time of k = 64 to close 90% of the gap" in text
    text = said(made_runs.sweep(widths=(1, 256)))
    assert "F-VI needed 2.00× the steps and 2.50× the time of k = 256 to close 90% of the gap." in text


def test_a_share_that_a_seed_never_closed_has_no_time():
    frame = made_runs.sweep(seeds=(0, 1)).frame()
    late = of(frame, "steps_to_share", "factorized", seed=1) | of(frame, "seconds_to_share", "factorized", seed=1)
    frame.loc[late & frame["share"].isin([0.9, 0.95]).astype(bool), "value"] = None
    text = said(frame)
    assert "F-VI did not close 90% or 95% of the gap with seed 1: its time to that share is unknown." in text
    assert "to close 80% of the gap" in text
    assert "to close 90% of the gap" not in text
    frame.loc[late, "value"] = None
    assert "cannot be told: for no share of the gap are the times of both known with every seed" in said(frame)


@pytest.mark.slow
def test_a_row_that_is_missing_for_one_seed_leaves_no_mean_of_the_others():
    frame = made_runs.sweep(seeds=(0, 1, 2)).frame()
    for metric in ("gap_closed", "unconverged_by", "steps_to_share"):
        gone = frame[~of(frame, metric, "factorized", seed=2)]
        known, left = said(frame), said(gone)
        assert known != left, metric
        assert {"gap_closed": "F-VI closes", "unconverged_by": "; F-VI: 8", "steps_to_share": "F-VI needed"}[
            metric
        ] not in left
    assert "F-VI closes" in known
    assert "; F-VI: 8" in known
    assert "F-VI needed" in known


@pytest.mark.slow
def test_whether_wide_encoders_close_the_gap():
    claim = "that A-VI closes the gap for k ≥ 64 (Margossian & Blei 2024)"
    frame = made_runs.sweep(widths=(1, 64, 256)).frame()  # 1% of the gap is 1.05 nats
    wide = of(frame, "family_gap", "amortized", 64)
    assert f"{claim} cannot be told here: k = 64 leaves 0.9% of it (0.9±0.1 nats)" in said(frame)
    frame.loc[wide, "standard_error"] = 0.05
    assert f"{claim} holds here: k = 64 leaves 0.9% of it (0.94±0.05 nats), k = 256 leaves 0.2% of it" in said(frame)
    frame.loc[wide, ["value", "standard_error"]] = 1.2, 0.1
    assert f"{claim} cannot be told here: k = 64 leaves 1.1% of it (1.2±0.1 nats)" in said(frame)
    frame.loc[wide, "value"] = 1.3
    assert f"{claim} does not hold here: k = 64 leaves 1.2% of it (1.3±0.1 nats)" in said(frame)
    assert "longer fits may differ, since the last doubling gained F-VI 8.0±0.1" in said(frame)
    frame.loc[wide, "standard_error"] = 0.7
    assert f"{claim} cannot be told here" in said(frame)
    frame.loc[wide, ["value", "standard_error"]] = -0.5, 0.1
    assert "k = 64 ends 0.5±0.1 nats above the reference" in said(frame)
    assert f"{claim} cannot be told" in said(made_runs.sweep(widths=(1, 16)))
    assert f"{claim} cannot be told" in said(made_runs.sweep(widths=(1, 64), vacuous=(("amortized", 64),)))


def test_whether_a_vi_is_two_to_three_times_faster():
    text = said(made_runs.sweep(seeds=(0, 1, 2), widths=(1, 256)))
    claim = "that A-VI is 2 to 3 times faster than F-VI, in seconds,"
    assert f"{claim} does not hold here to close 50% (1.28±0.01×), 80% (1.28±0.01×) and 95% (1.28±0.01×) of" in text
    assert "of the gap, holds here to close 90% (2.55±0.03×) of the gap, with k = 256." in text
    alone = said(made_runs.sweep(widths=(1, 256)))
    assert "with one seed, ratios have no error" in alone
    assert "faster than F-VI, in seconds, cannot be told here" in alone
    text = said(made_runs.sweep(seeds=(0, 20), widths=(1, 256)))  # 2.5 and 3.5
    assert "90% (3.0±0.5×)" in text.split("cannot be told here to close")[1]


def test_the_last_doubling_of_every_family():
    text = said(made_runs.sweep(seeds=(0, 1), guides=("mixture",), widths=(1,)))
    gains = "constant VI: 8.00±0.00; A-VI, k = 1: 8.00±0.00; F-VI: 8.00±0.00; mixture: 8.00"
    assert f"the last doubling of the budget gained, in nats per point, {gains}" in text


def test_a_guide_that_nobody_named_and_one_above_the_reference():
    text = said(made_runs.sweep(guides=("mixture", "better")))
    assert "mixture closes 99.6% (0.4±0.1 left)" in text
    assert "better closes 100.2% (0.2±0.1 above)" in text


def test_a_guide_behind_constant_vi_closes_none():
    frame = made_runs.sweep().frame()
    frame.loc[of(frame, "gap_closed", "amortized", 1), "value"] = -0.1
    assert "A-VI, k = 1 closes none (60.0±0.1 left)" in said(frame)


def test_without_constant_vi_gaps_are_in_nats():
    frame = made_runs.sweep().frame()
    frame = frame[(frame["guide"] != "constant") & ~frame["metric"].isin(["gap_closed", "share_closed"])]
    frame = frame[~frame["metric"].str.endswith("_to_share")].drop(columns="share")
    text = said(frame)
    assert "relative to the reference, in nats per point, A-VI, k = 1 ends 60.0±0.1 below" in text
    assert "narrowest" not in text
    assert "cannot be told" in text


def test_several_seeds_have_their_own_error():
    assert "A-VI, k = 1 closes 42.7±0.2% (60.5±0.5 left)" in said(made_runs.sweep(seeds=(0, 50)))
