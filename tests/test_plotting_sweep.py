"""Figures of a width sweep: what they show, and what they refuse."""

from __future__ import annotations

import made_runs
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sweep_rows import STAND_IN, WIDTHS, legend_labels, make, make_images, words

from amortized_bayes.plotting import (
    curve_figure,
    family_gap_figure,
    reconstruction_figure,
)
from amortized_bayes.plotting.curves import CURVES


def drawn(figure: Figure, label: str) -> np.ndarray:
    """Steps and heights of the marks of a line, (n, 2)."""
    (line,) = [line for line in figure.axes[0].get_lines() if str(line.get_label()).startswith(f"{label}:")]
    return np.stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)], 1)


@pytest.mark.parametrize("metric", CURVES)
@pytest.mark.parametrize("seeds", [1, 3])
def test_curves(metric: str, seeds: int) -> None:
    figure = curve_figure(make(seeds), "mnist", metric)
    left, right = figure.axes
    assert "iterations" in left.get_xlabel()
    assert "seconds" in right.get_xlabel()
    assert left.get_ylabel() == CURVES[metric].label
    assert left.get_ylim() == right.get_ylim()
    assert left.get_xscale() == right.get_xscale() == "log"
    assert left.get_yscale() == ("log" if metric.startswith("mse") else "symlog")
    constant = [] if metric == "share_closed" else ["constant VI (vacuous)"]
    assert [label.partition(":")[0] for label in legend_labels(figure)] == [
        *constant,
        *(f"A-VI, k = {k}" for k in WIDTHS),
        "F-VI",
        "F-VI from A-VI",
    ]
    assert len(left.collections) == (len(legend_labels(figure)) if seeds > 1 else 0)
    assert ("one seed" if seeds == 1 else "mean of 3 seeds") in figure.legends[0].get_title().get_text()


def test_nats_behind_the_reference_have_plain_ticks_and_a_mark_for_each_budget() -> None:
    figure = curve_figure(make(3), "mnist", "behind_reference")
    np.testing.assert_allclose(drawn(figure, "F-VI"), [[125, 59.02], [250, 27.02], [500, 11.02], [1000, 3.02]])
    np.testing.assert_allclose(drawn(figure, "F-VI from A-VI"), [[500, 8], [1000, 0]])  # from its start on
    (dashed,) = [line for line in figure.axes[0].get_lines() if str(line.get_label()).startswith("F-VI from")]
    assert dashed.get_linestyle() == "--"
    low, high = figure.axes[0].get_ylim()
    ticks = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    places = figure.axes[0].get_yticks()
    shown = [text for text, place in zip(ticks, places, strict=True) if low <= place <= high]
    assert shown == ["0", "0.3", "1", "3", "10", "30", "100"]
    assert "F-VI: 3.02" in legend_labels(figure)


def test_a_budget_that_one_seed_does_not_have_is_no_mark() -> None:
    frame = make(3)
    frame = frame[~((frame["guide"] == "factorized") & (frame["epochs"] == 40).fillna(False) & (frame["seed"] == 2))]
    assert drawn(curve_figure(frame, "mnist", "behind_reference"), "F-VI")[:, 0].tolist() == [125, 250, 500]


def test_small_gaps_have_smaller_ticks_and_a_guide_above_the_reference_is_in_sight() -> None:
    frame = make(1)
    frame.loc[frame["metric"] == "behind_reference", "value"] /= 1000
    better = (frame["k"] == 256).fillna(False) & (frame["metric"] == "behind_reference") & (frame["epochs"] == 40)
    frame.loc[better, "value"] = -0.02
    figure = curve_figure(frame, "mnist", "behind_reference")
    low, high = figure.axes[0].get_ylim()
    assert low < -0.02 < 0.16 < high
    assert {-0.03, 0.03, 0.1} <= {round(place, 6) for place in figure.axes[0].get_yticks()}


def test_the_share_of_the_gap_has_a_scale_of_what_is_left() -> None:
    figure = curve_figure(make(1), "mnist", "share_closed")
    (axes, _) = figure.axes
    np.testing.assert_allclose(drawn(figure, "A-VI, k = 16")[-1], [1000, 3.75 / 105])
    bottom, top = axes.get_ylim()
    assert bottom > 1 > 0 > top  # upwards: less is left
    labels = dict(zip(axes.get_yticks(), (label.get_text() for label in axes.get_yticklabels()), strict=True))
    at = {text: axes.transData.transform((500, place))[1] for place, text in labels.items()}
    assert at["0%"] < at["50%"] < at["80%"] < at["90%"] < at["95%"] < at["99%"] < at["100%"]
    assert at["99%"] - at["95%"] > at["80%"] - at["50%"]
    assert "A-VI, k = 16: 96.4%" in legend_labels(figure)


def test_a_guide_that_ends_behind_constant_vi_is_in_sight_and_worse_budgets_take_no_room() -> None:
    frame = make(1)
    first = (frame["metric"] == "share_closed") & (frame["epochs"] == 5)
    frame.loc[first, "value"] = -10.0
    frame.loc[(frame["metric"] == "share_closed") & (frame["k"] == 1).fillna(False), "value"] = -0.5
    axes = curve_figure(frame, "mnist", "share_closed").axes[0]
    assert 1.5 < axes.get_ylim()[0] < 3
    assert 100 < axes.get_xlim()[0] < 125  # k = 1 is in sight with its first budget
    frame.loc[first, "value"] = -10.0
    assert 150 < curve_figure(frame, "mnist", "share_closed").axes[0].get_xlim()[0] < 250


def test_vacuous_fits_close_no_gap() -> None:
    frame = made_runs.sweep(vacuous=(("amortized", 1),)).frame()
    assert not [label for label in legend_labels(curve_figure(frame, "mnist", "share_closed")) if "k = 1:" in label]


def test_failed_and_vacuous_fits_are_said() -> None:
    figure = curve_figure(make(3, failing=True), "mnist", "behind_reference")
    assert "failed: A-VI, k = 256, seed 2 at step 200 (the loss is inf)" in words(figure)
    assert "A-VI, k = 256 (failed)" in legend_labels(figure)
    by_label = {str(line.get_label()).partition(":")[0]: line for line in figure.axes[0].get_lines()}
    assert by_label["constant VI (vacuous)"].get_linewidth() < 1 < by_label["A-VI, k = 1"].get_linewidth()
    assert np.asarray(by_label["A-VI, k = 256 (failed)"].get_xdata())[-1] == 125
    assert "mean of 2 to 3 seeds" in figure.legends[0].get_title().get_text()


def test_a_fit_that_failed_at_once_is_still_named() -> None:
    frame = make(1, failing=True)
    frame = frame[(frame["k"] != 256) | (frame["metric"] == "failure")]
    assert "k = 256, seed 0 at step 200" in words(curve_figure(frame, "mnist", "behind_reference"))
    assert "k = 256, seed 0 at step 200" in words(family_gap_figure(frame))


def test_other_data_are_named_below_the_panels() -> None:
    figure = curve_figure(make(1, datasets=("fashion-mnist",)), "fashion-mnist", "mse_test")
    assert figure.get_suptitle() == "FashionMNIST: reconstruction of test data"
    assert STAND_IN in words(figure)


@pytest.mark.parametrize("seeds", [1, 3])
def test_gaps(seeds: int) -> None:
    figure = family_gap_figure(make(seeds, datasets=("mnist", "fashion-mnist")))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["MNIST", "FashionMNIST"]
    axes = figure.axes[0]
    assert "nats" in axes.get_ylabel()
    assert "linear within" in axes.get_ylabel()
    assert axes.get_yscale() == "symlog"
    assert axes.get_ylim()[0] < -0.25
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [*map(str, WIDTHS), "F-VI", "F-VI\nfrom A-VI"]
    assert list(axes.get_xticks()[:3]) == [0, 4, 8]
    text = words(figure)
    assert "constant VI (vacuous): +105" in text
    assert ("+0.25" if seeds == 3 else "+0.23") in text
    assert ("mean of 3 seeds" in text) == (seeds == 3)
    assert f"FashionMNIST: {STAND_IN}" in text


def test_gaps_of_like_size_have_a_linear_axis_and_one_width_is_enough() -> None:
    frame = make(1, all_widths=(16,))
    frame = frame[frame["guide"].isin(["amortized", "factorized"])]
    figure = family_gap_figure(frame)
    assert len(figure.axes) == 1
    assert figure.axes[0].get_yscale() == "linear"
    without = family_gap_figure(frame[frame["guide"] == "factorized"])
    assert [label.get_text() for label in without.axes[0].get_xticklabels()] == ["F-VI"]


def test_gap_of_a_vacuous_width_is_hollow() -> None:
    frame = make(1)
    frame.loc[frame["k"] == 1, "status"] = "vacuous"
    assert "(vacuous)" in [text.get_text() for text in family_gap_figure(frame).axes[0].texts]


def test_reconstructions() -> None:
    figure = make_images()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["original", "F-VI\nMSE 0.002", "constant VI"]
    (image,) = axes.get_images()
    mosaic = np.asarray(image.get_array())
    originals = np.random.default_rng(0).random((6, 8, 8))
    np.testing.assert_array_equal(mosaic[:8, 9:17], originals[1])
    np.testing.assert_array_equal(mosaic[9:17, 45:53], originals[5] * 0.9)
    assert image.get_clim() == (0, 1)


def test_colour_images_are_drawn_in_colour() -> None:
    originals = 4 * np.random.default_rng(0).random((6, 8, 8, 3)) - 2  # beyond [0, 1]: scaled into it
    originals[0, 0, 0], originals[0, 0, 1] = -2, 2
    figure = reconstruction_figure(originals, {"F-VI": originals * 0.5}, "t")
    (image,) = figure.axes[0].get_images()
    mosaic = np.asarray(image.get_array())
    assert mosaic.shape == (18, 54, 3)
    np.testing.assert_allclose(mosaic[:8, 9:17], (originals[1] + 2) / 4)
    np.testing.assert_allclose(mosaic[9:17, 45:53], (originals[5] * 0.5 + 2) / 4)
    assert (mosaic[8] == 1).all()


def test_reconstructions_refuse_what_does_not_fit() -> None:
    originals = np.zeros((4, 8, 8))
    with pytest.raises(ValueError, match=r"shape \(4, 8, 8\) as the originals, got \(3, 8, 8\) for 'F-VI'"):
        reconstruction_figure(originals, {"F-VI": originals[:3]}, "t")
    with pytest.raises(ValueError, match=r"\(n, height, width\) or .*, got \(8, 8\)"):
        reconstruction_figure(originals[0], {}, "t")
    with pytest.raises(ValueError, match="mse for A-VI"):
        reconstruction_figure(originals, {"F-VI": originals}, "t", {"A-VI": 0.1})


def test_missing_metrics_are_named() -> None:
    frame = make(1)
    with pytest.raises(ValueError, match=r"no rows of metric 'mse_test' for data set 'mnist'; there are: active_units"):
        curve_figure(frame[frame["metric"] != "mse_test"], "mnist", "mse_test")
    with pytest.raises(ValueError, match=r"no rows of data set 'cifar10'; there are: mnist"):
        curve_figure(frame, "cifar10", "behind_reference")
    with pytest.raises(ValueError, match=r"a metric with a curve \(behind_reference, .*\), got 'family_gap'"):
        curve_figure(frame, "mnist", "family_gap")
    with pytest.raises(ValueError, match="no rows of metric 'family_gap'"):
        family_gap_figure(frame[frame["metric"] != "family_gap"])
    with pytest.raises(ValueError, match="these columns are missing: note"):
        family_gap_figure(frame.drop(columns="note"))


def test_rows_of_two_runs_are_not_averaged() -> None:
    frame = make(1)
    both = pd.concat([frame, frame.assign(k=frame["k"])])
    with pytest.raises(ValueError, match=r"more than one 'behind_reference' row for .*, seed 0, step 125"):
        curve_figure(both, "mnist", "behind_reference")
    with pytest.raises(ValueError, match="more than one 'family_gap' row"):
        family_gap_figure(both)
