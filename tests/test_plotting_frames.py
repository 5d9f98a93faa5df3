"""Data frames as figures take them."""

from __future__ import annotations

import pandas as pd
import pytest
from sweep_rows import STAND_IN, WIDTHS, make

from amortized_bayes.plotting.frames import by_guide, failures, notes, select, tidy, widths


@pytest.mark.parametrize("dtype", ["Int64", "float64", "object"])
def test_frames_take_k_as_it_comes_and_leave_it_alone(dtype: str) -> None:
    frame = make(2, failing=True)
    frame["k"] = frame["k"].astype(dtype)
    before = frame.copy(deep=True)
    rows = tidy(frame)
    pd.testing.assert_frame_equal(frame, before)
    assert widths(rows) == WIDTHS
    labels = [group.label for group in by_guide(select(rows, "elbo", "mnist", curve=True))]
    assert labels[3:5] == ["A-VI, k = 256", "A-VI, k = 256 (failed)"]
    assert failures(rows, "mnist") == ["A-VI, k = 256, seed 1 at step 200 (the loss is inf)"]
    assert failures(rows, "digits") == []


def test_only_the_end_of_a_fit_says_it_is_vacuous() -> None:
    frame = make(1)
    frame.loc[(frame["guide"] == "amortized") & (frame["epochs"] == 5).fillna(False), "status"] = "vacuous"
    assert {group.fate for group in by_guide(tidy(frame)) if group.guide == "amortized"} == {"ok"}


def test_each_note_is_said_once_and_none_of_failed_fits() -> None:
    rows = tidy(make(1, datasets=("fashion-mnist",)))
    assert notes(select(rows, "mse_test", "fashion-mnist", curve=True)) == [STAND_IN]
    rows.loc[rows["metric"] == "kl", ["status", "note"]] = "failed", "inf"
    assert notes(select(rows, "kl", "fashion-mnist", curve=True)) == []
