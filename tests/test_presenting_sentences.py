"""What is said of a run, in words."""

import made_runs
import pytest

from amortized_bayes.presenting.sentences import sentences


def said(made, *findings):
    return "\n".join(sentences(made.frame(), findings))


def test_a_negative_gap_is_said():
    text = said(made_runs.gaps(negative=True), "notes")
    assert "The optimization gap of train points is negative: -0.30 ± 0.10 (z = -3.0) nats per point." in text
    assert "negative" not in said(made_runs.gaps(), "notes")


def test_failures_say_where_and_why():
    text = said(made_runs.sweep(("mnist", "digits"), failing=("amortized", 16)), "sweep")
    assert "Digits, A-VI, k = 16 failed at step 200 (the loss is inf)." in text
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
    names = "sweep, notes, best_guides, encoder_or_family, what_f_must_see, bent_decoder, drifting_images"
    with pytest.raises(ValueError, match=f"expected findings among {names}, got 'mine'"):
        said(made, "mine")


def test_the_best_rates_of_each_guide():
    text = said(made_runs.tune(), "best_guides")
    assert (
        "MNIST, A-VI, k = 64: the best rates are 0.004 for q(theta), 0.2 for the local factors (ELBO -108.0)." in text
    )


def taken_apart(encoder, family, error=0.1):
    made = made_runs.Made("model-gaps")
    for dataset in ("mnist", "digits"):
        rows = [
            ("amortization_gap", encoder, {}, {"error": error}),
            ("approximation_gap", family, {}, {"error": error}),
        ]
        rows += [(metric, 99.0, {"label": 3}, more) for metric, _, _, more in rows]  # of a class
        made.job({**made_runs.MODEL, "dataset": dataset}, rows)
    return made


@pytest.mark.parametrize(
    ("encoder", "family", "words"),
    [
        (2.25, 1.14, "the encoder loses more than the family, 2.25±0.10 against 1.14±0.10 nats per point."),
        (1.0, 3.0, "the family loses more than the encoder, 3.00±0.10 against 1.00±0.10 nats per point."),
        (1.2, 1.0, "it is uncertain whether encoder or family loses more: 1.20±0.10 and 1.00±0.10 nats per point."),
    ],
)
def test_a_model_is_told_what_loses_more(encoder, family, words):
    lines = said(taken_apart(encoder, family), "encoder_or_family").splitlines()
    assert lines == [f"MNIST: this model: {words}", f"digits: this model: {words}"]
    shown = said(made_runs.model_gaps(("digits",)), "encoder_or_family").splitlines()
    assert len(shown) == 4
    assert shown[0].startswith("Gaussian, plain: the family loses more")
