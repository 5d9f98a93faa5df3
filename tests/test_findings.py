"""What is said of a run, in words and tables, on hand-made rows."""

import io

import pandas as pd
import pytest
from rich.console import Console

from amortized_bayes.commands.findings import claims, fits_of, print_claims, print_table, sentences, value_of
from amortized_bayes.types import ROW_FIELDS, Row


def row(guide, metric, value, k=None, seed=0, error=0.1, status="ok", step=100, dataset="mnist", note=""):
    place = ("sweep", dataset, "m", guide, k, seed, step, 1.0)
    return Row(*place, metric, value, error, "points", status, note)


def frame_of(*rows):
    frame = pd.DataFrame(rows, columns=pd.Index(ROW_FIELDS))
    return frame.astype({"k": "Int64", "value": "float64", "standard_error": "float64"})


def fit(guide, k=None, seed=0, *, elbo, gap, steps=100.0, seconds=10.0, dataset="mnist"):
    finals = {"final_elbo": elbo, "family_gap": gap, "final_kl": 12.0, "final_mse_train": 0.02, "final_mse_test": 0.03}
    finals |= {"steps_to_3_nats": steps, "seconds_to_3_nats": seconds, "seconds_per_step": 0.001}
    return [row(guide, metric, value, k, seed, dataset=dataset) for metric, value in finals.items()]


def run(seed=0, shift=0.0, dataset="mnist"):
    at = {"seed": seed, "dataset": dataset}
    return [
        *fit("constant", elbo=-200, gap=100 + shift, **at),
        *fit("amortized", 1, elbo=-124, gap=24 + shift, steps=None, seconds=None, **at),
        *fit("amortized", 64, elbo=-99, gap=-1 + shift, **at),
        *fit("factorized", elbo=-100, gap=0.0, steps=150.0, seconds=12.0, **at),
    ]


def said(frame):
    return "\n".join(sentences(frame))


def table(frame):
    out = io.StringIO()
    print_table(frame, Console(file=out, width=250))
    return out.getvalue()


def test_gaps_in_words():
    text = said(frame_of(*run()))
    assert (
        "k = 1 loses 24.0±0.1, k = 64 is 1.0±0.1 better; constant VI loses 100.0 (nats a point, ± over points)" in text
    )
    assert "the narrowest encoder within 1 nat of F-VI is k = 64" in text
    assert "F-VI took 1.2 times the seconds and 1.5 times the iterations of k = 64" in text
    assert "iterations of k = 1." not in text  # it never got there


def test_no_width_within_a_nat():
    rows = [r for r in run() if r.k != 64]
    assert "no width tried comes within 1 nat of F-VI" in said(frame_of(*rows))


def test_several_seeds_give_their_mean_and_their_own_error():
    frame = frame_of(*run(0, 0.0), *run(1, 2.0))
    assert value_of(frame, "amortized", 1, "family_gap") == pytest.approx((25.0, 1.0))
    assert "k = 1 loses 25.0±1.0" in said(frame)
    assert "± over seeds" in said(frame)
    assert "over 2 seeds" in table(frame)


def test_one_seed_of_several_has_no_error_over_seeds():
    frame = frame_of(*run(0), *(r for r in run(1) if r.k != 1))
    value, error = value_of(frame, "amortized", 1, "family_gap")
    assert value == 24
    assert error != error
    assert "k = 1 loses 24.0," in said(frame)
    assert "nan" not in said(frame) + table(frame) + str(list(claims(frame)))


def test_failed_and_vacuous_fits_are_named():
    failed = row("amortized", "failure", None, 16, error=None, status="failed", step=37, note="loss of inf")
    dead = row("constant", "final_kl", 0.2, status="vacuous")
    kept = [r for r in run() if (r.guide, r.metric) != ("constant", "final_kl")]
    frame = frame_of(*kept, failed, dead)
    assert "A-VI, k = 16 failed at step 37 (loss of inf)" in said(frame)
    assert "vacuous, since the latents carry less than 1 nat: constant VI" in said(frame)
    text = table(frame)
    assert "k = 16 (failed)" in text
    assert "constant VI (vacuous)" in text
    assert "not reached" in text


def test_nothing_is_said_of_nothing():
    assert not list(sentences(frame_of()))
    assert all(found == "not run" for _, _, found in claims(frame_of()))
    failed = row("amortized", "failure", None, 16, error=None, status="failed", dataset="fashion-mnist")
    assert {f for _, _, f in claims(frame_of(failed))} <= {"not run", "no amortized fit"}


def test_continuations_in_words():
    rows = [row("amortized", "unconverged_by", 0.4, 64), row("factorized", "unconverged_by", 1.6)]
    bad = row("factorized", "doubled_elbo", None, error=None, note="trained as long again it diverged")
    text = said(frame_of(*run(), *rows, bad))
    assert "unconverged (what as many epochs again still gain): A-VI, k = 64 by 0.4, F-VI by 1.6 nats a point" in text
    assert "F-VI: trained as long again it diverged (step 100)" in text


def test_the_last_value_counts_and_guides_come_in_reading_order():
    frame = frame_of(
        row("factorized", "final_elbo", -3.0, step=5), row("factorized", "final_elbo", -1.0, step=9), *run()
    )
    assert fits_of(frame) == [("constant", None), ("amortized", 1), ("amortized", 64), ("factorized", None)]
    assert value_of(frame.head(2), "factorized", None, "final_elbo") == (-1.0, 0.1)
    assert value_of(frame, "factorized", None, "nothing") is None


def test_claims_beside_what_was_found():
    frame = frame_of(*run(dataset="fashion-mnist"))
    found = {claim: ours for claim, _, ours in claims(frame)}
    assert found["F-VI's iterations over A-VI's, MNIST"] == "not run"
    assert found["F-VI's iterations over A-VI's, FashionMNIST"].startswith("1.5 to within 3 nats of elbo_reference")
    assert found["F-VI's time a step over A-VI's, FashionMNIST"] == "1.00 (k = 64)"
    assert found["k = 1 closes the gap, FashionMNIST"] == "no: family gap 24.0±0.1 nats a point"
    assert found["k = 64 closes the gap, FashionMNIST"] == "yes: family gap -1.0±0.1 nats a point"
    assert found["test MSE of F-VI"] == "0.0300±0.1000, fresh factors with q(theta) frozen"
    out = io.StringIO()
    print_claims(frame, Console(file=out, width=200))
    assert "none published" in out.getvalue()
