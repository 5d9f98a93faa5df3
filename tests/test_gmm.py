"""``gmm`` from start to tables and figures, and the protocol behind it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wing

from amortized_bayes.experiments.protocol import Bounds, Stage, Subject, follow
from amortized_bayes.presenting.claims import claims_found
from amortized_bayes.presenting.mixture import bent_decoder
from amortized_bayes.results import RunFolder, list_runs
from amortized_bayes.results.rows import to_frame
from amortized_bayes.results.summary import summarise
from amortized_bayes.types import Row

SMALL = [
    *("--skews", "0", "1", "--points", "100", "--population", "2000", "--width", "16", "--encoder-steps", "150"),
    *("--joint-steps", "150", "--encoder-rate", "0.01", "--joint-rate", "0.01", "--batch-size", "250"),
    *("--checkpoints", "3", "--device", "cpu", "--jobs", "1"),
]


@pytest.mark.slow
def test_gmm_from_start_to_figures(call, place):
    ran = call("gmm", *SMALL)
    assert ran.code == 0, ran.err
    (info,) = list_runs(place / "results")
    folder = RunFolder.open(info.path)
    assert folder.verify() == []
    rows = folder.rows()
    assert {path.name for path in folder.path.glob("*.png")} == {"gmm.png", "gmm_training.png", "gmm_skew.png"}

    def value(metric, error=False, **factors):
        row = wing.one(summarise(rows), f"exact_{metric}", **{"skew": 1.0, "scale": 1.0, **factors})
        return row["standard_error"] if error else row["value"]

    for split in ("train", "test"):
        for stage in ("encoder", "joint"):
            here = {"stage": stage, "split": split}
            log_p, best, elbo = (value(name, **here) for name in ("log_p", "elbo_star", "elbo"))
            assert value("approximation_gap", **here) == pytest.approx(log_p - best)
            assert value("amortization_gap", **here) == pytest.approx(best - elbo)
            assert elbo <= best <= log_p
            assert value("approximation_gap", True, **here) < 0.1 * value("elbo", True, **here)  # paired by point
    encoder, joint = ({"stage": stage, "split": "test"} for stage in ("encoder", "joint"))
    assert value("log_p_lost", **encoder) == 0  # the decoder has not moved
    assert value("kl_to_original", **encoder) == pytest.approx(value("log_p", **encoder) - value("elbo", **encoder))
    assert value("elbo_gained", **joint) == pytest.approx(value("elbo", **joint) - value("elbo", **encoder))
    assert value("log_p_lost", **joint) == pytest.approx(value("log_p", **encoder) - value("log_p", **joint))
    assert value("kl_to_original", **joint) > value("kl_to_original", **encoder)
    gaps = [value("approximation_gap", stage=stage, split="train") for stage in ("encoder", "joint")]
    assert gaps[1] < 0.3 * gaps[0]
    # what training climbs to
    true, optimum = ({"decoder": name, "split": "train", "stage": None} for name in ("true", "joint optimum"))
    assert value("elbo", stage="joint", split="train") < value("elbo_star", **optimum)
    assert value("elbo_gained", **optimum) == pytest.approx(value("elbo_star", **optimum) - value("elbo_star", **true))
    assert value("log_p", **true) == pytest.approx(value("log_p", stage="encoder", split="train"), abs=1e-5)
    for place in ({"skew": 0.0}, {"scale": 0.01}):
        assert value("approximation_gap", **true, **place) == pytest.approx(0, abs=1e-9)
    steps = {split: wing.only(rows, "exact_elbo", split=split)["step"].tolist() for split in ("train", "test")}
    assert steps == {"train": [150, 300], "test": [0, 50, 100, 150, 150, 200, 250, 300]}
    for line in ("Skew 0, scale 1: the true posterior factorizes", "Skew 1, scale 0.01: the true posterior factorizes"):
        assert line in ran.out
    assert "on new points the optimum of joint training raises the ELBO and lowers the likelihood" in ran.out
    assert "published" in ran.out
    assert "-3.3700 [" in ran.out
    found = {line.claim.text: line for line in claims_found("gmm", summarise(rows), "quick")}
    assert len(found) == 4
    bent = found["Joint training bends the decoder until its posterior fits the encoder's family"]
    assert bent.verdict == "holds"
    printed = next(line for text, line in found.items() if "0.01" in text)
    assert printed.verdict != "holds"
    assert printed.measured.startswith("ELBO gained on new points: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("gmm --skews 2", "expected --skews of at most 1"),
        ("gmm --skews 0 0", "--skews"),
        ("gmm --skews 0 --trained 1", "expected --trained among --skews, got 1"),
        ("gmm --scales 0", "expected --scales of 0.001 or more, got"),
        ("gmm --points 1", "expected --points of 10 or more, got 1"),
        ("gmm --points 10 --batch-size 41", "expected --batch-size of at most 40 points, got 41"),
        ("gmm --encoder-rate 0", "expected --encoder-rate above 0, got 0"),
        ("gmm --checkpoints 0", "expected --checkpoints of 1 or more, got 0"),
        ("gmm --joint-steps none", "--joint-steps"),
    ],
)
def test_bad_input_is_one_line(refused, arguments, message):
    assert message in refused(*arguments.split())


@pytest.mark.parametrize(
    ("gained", "lost", "words"),
    [
        (0.05, 0.01, "raises the ELBO and lowers the likelihood: ELBO +0.0500"),
        (0.05, -0.01, "raises ELBO and likelihood: ELBO +0.0500"),
        (-0.05, 0.01, "lowers ELBO and likelihood: ELBO -0.0500"),
        (0.0005, 0.01, "has an uncertain effect: ELBO +0.0005"),
    ],
)
def test_words_have_the_signs_of_the_numbers(gained, lost, words):
    numbers = {"exact_approximation_gap": 0.002, "exact_elbo_gained": gained, "exact_log_p_lost": lost}
    places = {"exact_approximation_gap": {"decoder": "true", "split": "train"}}
    optimum = {"decoder": "joint optimum", "split": "population"}
    mixture = {"dataset": "gaussian-mixture", "seed": 0, "skew": 0.1, "scale": 1.0, "stage": None}
    rows = [
        Row("gmm", {**mixture, **places.get(metric, optimum)}, 0, 0.0, metric, value, 0.0004, "points")
        for metric, value in numbers.items()
    ]
    frame = to_frame({**row._asdict(), "factors": dict(row.factors)} for row in rows)
    (line,) = bent_decoder(frame)
    assert line.startswith(f"Skew 0.1, scale 1: on new points the optimum of joint training {words}")


# The protocol, on a model that is a number ----------------------------------------------------------------------------


class Number:
    def __init__(self, value):
        self.value = value


def subject(exact=False):
    model, guide = Number(0.0), Number(-5.0)
    found = Bounds(
        lambda model, guide, x: x + model.value + guide.value,
        lambda model, guide, x: x + model.value - 1,
        lambda model, guide, x: x + model.value,
        exact=exact,
    )
    data = {"train": torch.arange(4.0), "test": torch.arange(5.0)}
    return Subject(model, Number(0.0), guide, data, found)


def stages(of):
    def run(part, to, steps):
        def go(marks):
            start = part.value
            for step in range(1, steps + 1):
                part.value = start + (to - start) * step / steps
                if step in marks:
                    yield SimpleNamespace(step=step, seconds=step / 10)

        return go

    return [
        Stage("encoder", 10, run(of.guide, -2.0, 10)),
        Stage("joint", 4, run(of.model, 0.5, 4)),
        Stage("more", 2, run(of.model, 0.5, 2)),
    ]


def test_the_protocol_measures_at_every_checkpoint():
    told, one = [], subject()
    checks = list(follow(one, stages(one), 2, lambda *what: told.append(what)))
    assert [(c.stage, c.step, round(c.seconds, 3)) for c in checks] == [
        ("encoder", 0, 0.0),
        ("encoder", 5, 0.5),
        ("encoder", 10, 1.0),
        ("joint", 10, 1.0),
        ("joint", 12, 1.2),
        ("joint", 14, 1.4),
        ("more", 14, 1.4),
        ("more", 15, 1.5),
        ("more", 16, 1.6),
    ]
    assert told == [
        ("encoder", 5, 10),
        ("encoder", 10, 10),
        ("joint", 2, 4),
        ("joint", 4, 4),
        ("more", 1, 2),
        ("more", 2, 2),
    ]
    last = {row.metric: row for row in checks[5].rows if row.factors["split"] == "test"}
    assert {name: round(row.value, 6) for name, row in last.items()} == {
        "elbo": 0.5,
        "log_p": 2.5,
        "elbo_star": 1.5,
        "approximation_gap": 1.0,
        "amortization_gap": 1.0,
        "kl_to_original": 2.0,  # log p of the truth, less its ELBO with the guide of today
        "log_p_lost": -0.5,
        "elbo_gained": 0.5,  # since the start of this stage
    }
    assert last["elbo"].error == pytest.approx(np.std(np.arange(5), ddof=1) / np.sqrt(5))
    assert last["amortization_gap"].error == 0
    assert (last["elbo"].factors, last["elbo"].step) == ({"split": "test", "stage": "joint"}, 14)
    gained = [row.value for c in checks for row in c.rows if row.metric == "elbo_gained"][1::2]
    assert gained == pytest.approx([0, 1.5, 3, 0, 0.25, 0.5, 0, 0, 0])


def test_exact_numbers_say_so():
    one = subject(exact=True)
    first = next(follow(one, stages(one), 1, lambda *_: None))
    assert all(row.metric.startswith("exact_") for row in first.rows)
