"""What is said of a run, in words."""

import made_runs
import pytest

from amortized_bayes.presenting.sentences import sentences


def said(made, *findings):
    return "\n".join(sentences(made.frame(), findings))


def test_a_sweep_in_words():
    text = said(made_runs.sweep(widths=(1, 16, 256)), "sweep")
    assert "A-VI, k = 1 loses 60.0±0.1, A-VI, k = 16 loses 3.8±0.1" in text
    assert "constant VI loses 105.0±0.1 (vacuous)" in text
    assert "the narrowest encoder within 1 nat of the best F-VI is k = 256" in text
    assert (
        "to come within 3 nats of the reference, F-VI needed 1.0× the time and 1.0× the iterations of k = 256" in text
    )
    assert "iterations of k = 1." not in text  # it never got there
    assert "doubling the epochs gains A-VI, k = 256 another 0.4, gains F-VI another 0.4 nats per point" in text
    assert "± over points" in text


def test_no_width_within_a_nat():
    assert "no encoder width tried comes within 1 nat" in said(made_runs.sweep(widths=(1, 16)), "sweep")


def test_a_negative_gap_is_never_a_loss():
    text = said(made_runs.sweep(seeds=(-50,)), "sweep")  # every gap is a nat smaller
    assert "A-VI, k = 256 is 0.8±0.1 better" in text
    assert "loses -" not in text
    text = said(made_runs.gaps(negative=True), "notes")
    assert "The optimization gap of train points is negative: -0.30 ± 0.10 (z = -3.0) nats per point." in text
    assert "negative" not in said(made_runs.gaps(), "notes")


def test_a_vacuous_width_is_not_the_narrowest():
    made = made_runs.sweep(widths=(62, 256))
    assert "the narrowest encoder within 1 nat of the best F-VI is k = 62." in said(made, "sweep")
    frame = made.frame()
    frame.loc[(frame["k"] == 62).fillna(False) & (frame["step"] == 1000), "status"] = "vacuous"
    text = "\n".join(sentences(frame, ("sweep",)))
    assert "the narrowest encoder within 1 nat of the best F-VI is k = 256." in text
    assert "Vacuous, since no latent is active" in text
    assert "A-VI, k = 62" in text.split("Vacuous")[1]


def test_several_seeds_have_their_mean_and_their_own_error():
    text = said(made_runs.sweep(seeds=(0, 50)), "sweep")
    assert "A-VI, k = 1 loses 60.5±0.5" in text
    assert "± over seeds" in text


def test_a_guide_that_nobody_named_is_in_the_sentences():
    assert "mixture loses 0.4±0.1" in said(made_runs.sweep(guides=("mixture",)), "sweep")


def test_failures_say_where_and_why():
    text = said(made_runs.sweep(("mnist", "digits"), failing=("amortized", 16)), "sweep")
    assert "Digits, A-VI, k = 16 failed at step 120 (the loss is inf)." in text
    assert "MNIST, A-VI, k = 16 failed" in text
    assert "Realnvp, wide encoder failed at step 7 (nan)." in said(made_runs.frozen_decoder(failing=True))


def test_a_vacuous_training_says_so():
    text = said(made_runs.train(vacuous=True))
    assert text == "Vacuous, since no latent is active: the model."
    assert said(made_runs.train()) == ""


def test_other_data_are_named_once():
    text = said(made_runs.train(note="using digits instead of MNIST"), "notes")
    assert text == "Using digits instead of MNIST."


def test_each_split_has_its_verdict():
    lines = said(made_runs.gaps(), "notes").splitlines()
    assert lines[0] == "Train points: most nats are lost by the encoder on train points."
    assert "Test points: AIS is within 0.05 nats on simulated points." in lines
    assert not [line for line in lines if line.startswith("AIS")]


def test_what_replaced_a_search_is_said():
    made = made_runs.Made("gaps")
    note = {"note": "q* is a Gaussian: no search for spline"}
    made.job(made_runs.MODEL, [("elbo_star", -91.0, {}, note), ("log_p_lower", -89.0, {}, {})])
    assert "Q* is a Gaussian" not in said(made, "notes")
    assert "q* is a Gaussian: no search for spline." in said(made, "notes")


def test_a_bound_without_certificate_is_doubted():
    made = made_runs.Made("gaps")
    made.job(made_runs.MODEL, made_runs.plain(log_p_lower=-89.0))
    assert said(made) == "AIS has no certificate: it was not checked on points drawn from the model."
    assert "certificate" not in said(made_runs.frozen_decoder())


def test_findings_of_an_experiment_are_functions_too_and_unknown_names_are_refused():
    made = made_runs.train()
    assert list(sentences(made.frame(), (lambda rows: [f"{len(rows) > 0}"],))) == ["True"]
    with pytest.raises(ValueError, match="expected findings among sweep, notes, best_guides, got 'mine'"):
        said(made, "mine")


def test_the_best_rates_of_each_guide():
    text = said(made_runs.tune(), "best_guides")
    assert (
        "MNIST, A-VI, k = 64: the best rates are 0.004 for q(theta), 0.2 for the local factors (ELBO -108.0)." in text
    )
