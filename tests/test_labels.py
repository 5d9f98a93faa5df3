"""Names for readers."""

import pandas as pd
import pytest

from amortized_bayes import labels
from amortized_bayes.guides.registry import GUIDES


def test_what_has_no_entry_keeps_its_own_name():
    assert labels.metric_label("bite_depth").heading == "bite depth"
    assert labels.value_label("family", "sinh") == "sinh"
    assert labels.guide_label("mixture", 4) == "mixture, k = 4"
    assert labels.factor_label("my_knob") == "my knob"
    assert labels.describe({"my_knob": 0.5}) == "my knob 0.5"


def test_a_guide_is_named_by_its_entry_alone(monkeypatch):
    monkeypatch.setitem(GUIDES, "mixture", GUIDES["constant"])
    assert labels.guide_label("mixture", 4) == "constant VI, k = 4"
    assert labels.order("guide", ["mixture", "constant"]) == ["constant", "mixture"]


def test_a_line_is_described_by_what_it_has():
    factors = {"seed": 1, "k": 16, "guide": "amortized", "dataset": "mnist", "annealed": pd.NA, "label": None}
    assert labels.describe(factors) == "MNIST, A-VI, k = 16, seed 1"
    assert labels.describe({"encoder": "wide", "family": "realnvp", "annealed": True, "split": "test"}) == (
        "realnvp, wide encoder, annealed, test points"
    )


@pytest.mark.parametrize(
    ("factor", "values", "ordered"),
    [
        (
            "guide",
            ["mixture", "factorized", "constant", "amortized"],
            ["constant", "amortized", "factorized", "mixture"],
        ),
        ("encoder", ["wide", "huge", "linear", "wide"], ["linear", "wide", "huge"]),
        ("k", [256, 1, None, 16], [1, 16, 256]),
        ("annealed", [True, False], [False, True]),
        ("mine", ["b", "a"], ["b", "a"]),
    ],
)
def test_values_come_in_reading_order(factor, values, ordered):
    assert labels.order(factor, values) == ordered


@pytest.mark.parametrize(("value", "words"), [(0.5, "50%"), (0.95, "95%")])
def test_targets_in_words(value, words):
    assert labels.value_label("share", value) == words


def test_axes_have_units():
    assert labels.axis_label("amortization_gap") == "amortization gap (nats per point)"
    assert labels.axis_label("seconds_per_step") == "time per step (ms)"
    assert labels.axis_label("active_units") == "active units"
