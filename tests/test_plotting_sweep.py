"""Figures of a width sweep: what they show, and what they refuse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sweep_rows import FRESH, STAND_IN, STEPS, WIDTHS, legend_labels, make, make_images, words

from amortized_bayes.plotting import (
    curve_figure,
    family_gap_figure,
    reconstruction_figure,
    time_to_target_figure,
)
from amortized_bayes.plotting.curves import CURVES


@pytest.mark.parametrize("metric", CURVES)
@pytest.mark.parametrize("seeds", [1, 3])
def test_curves(metric: str, seeds: int) -> None:
    figure = curve_figure(make(seeds), "mnist", metric)
    left, right = figure.axes
    assert left.get_xlabel() == "iterations"
    assert "seconds" in right.get_xlabel()
    assert left.get_ylabel() == CURVES[metric].label
    assert ("nats" in left.get_ylabel()) == (metric in ("elbo", "kl"))
    assert left.get_ylim() == right.get_ylim()
    assert left.get_xscale() == right.get_xscale() == "log"
    assert left.get_yscale() == ("linear" if metric == "kl" else "log")
    assert [label.partition(":")[0] for label in legend_labels(figure)] == [
        "constant VI (vacuous)",
        *(f"A-VI, k = {k}" for k in WIDTHS),
        "F-VI",
        "F-VI from A-VI",
    ]
    assert len(left.collections) == (6 if seeds > 1 else 0)
    assert ("one seed" if seeds == 1 else "mean of 3 seeds") in figure.legends[0].get_title().get_text()


def test_elbo_is_drawn_as_its_negative() -> None:
    line = curve_figure(make(1), "mnist", "elbo").axes[0].get_lines()[1]
    steps = [step for step in STEPS if step > 0]
    assert list(np.asarray(line.get_xdata())) == steps
    np.testing.assert_allclose(np.asarray(line.get_ydata()), [160 + 400 * (1 + s / 20) ** -1.5 for s in steps])


def test_negative_elbo_below_zero_has_a_linear_axis() -> None:
    frame = make(1)
    frame.loc[frame["metric"] == "elbo", "value"] += 300.0
    assert curve_figure(frame, "mnist", "elbo").axes[0].get_yscale() == "linear"


def test_few_points_of_test_error_are_marked_each() -> None:
    frame = make(1)
    figure = curve_figure(frame, "mnist", "mse_test")
    (line,) = [line for line in figure.axes[0].get_lines() if str(line.get_label()).startswith("F-VI:")]
    assert list(np.asarray(line.get_xdata())) == [30, 1000]
    assert line.get_markevery() == 1
    assert FRESH in words(figure)


def test_failed_and_vacuous_fits_are_said() -> None:
    figure = curve_figure(make(3, failing=True), "mnist", "elbo")
    assert "failed: A-VI, k = 256, seed 2 at step 120 (nan)" in words(figure)
    assert "A-VI, k = 256 (failed)" in legend_labels(figure)
    by_label = {str(line.get_label()).partition(":")[0]: line for line in figure.axes[0].get_lines()}
    assert by_label["constant VI (vacuous)"].get_linewidth() < 1 < by_label["A-VI, k = 1"].get_linewidth()
    assert np.asarray(by_label["A-VI, k = 256 (failed)"].get_xdata())[-1] == 100
    assert "mean of 2 to 3 seeds" in figure.legends[0].get_title().get_text()


def test_a_fit_that_failed_at_once_is_still_named() -> None:
    frame = make(1, failing=True)
    frame = frame[(frame["k"] != 256) | (frame["metric"] == "failure")]
    assert "k = 256, seed 0 at step 120" in words(curve_figure(frame, "mnist", "elbo"))
    assert "k = 256, seed 0 at step 120" in words(family_gap_figure(frame))


def test_other_data_are_named_below_the_panels() -> None:
    figure = curve_figure(make(1, datasets=("fashion-mnist",)), "fashion-mnist", "mse_test")
    assert figure.get_suptitle() == "Reconstruction of test data, FashionMNIST"
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
    assert ("-0.23" if seeds == 3 else "-0.25") in text
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


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_times(seeds: int) -> None:
    figure = time_to_target_figure(make(seeds), "mnist")
    seconds, steps, cost = figure.axes
    assert "(seconds)" in seconds.get_xlabel()
    assert "iterations" in steps.get_xlabel()
    assert "(ms)" in cost.get_xlabel()
    assert cost.get_xlim()[0] == 0
    assert next(label.get_text() for label in seconds.get_yticklabels()) == "constant VI (vacuous)"
    assert "not reached" in [text.get_text() for text in seconds.texts]
    missed = [line for line in seconds.get_lines() if line.get_marker() == ">"]
    assert len(missed) == 6  # both targets of k = 1, k = 16 (3.75 nats away) and constant VI
    arrived = [np.asarray(line.get_xdata()) for line in seconds.get_lines() if line not in missed]
    edge = np.concatenate(arrived).max()
    assert all(np.asarray(line.get_xdata())[0] > edge for line in missed)
    assert len(seconds.patches) - 1 == (6 if seeds >= 5 else 0)


def test_times_when_all_arrived_and_when_none_did() -> None:
    frame = make(3)
    good = frame[frame["guide"].isin(["factorized", "factorized-from-amortized"])]
    assert "not reached" not in words(time_to_target_figure(good, "mnist"))
    bad = frame[frame["guide"] == "constant"]
    assert "3 of 3" in words(time_to_target_figure(bad, "mnist"))


def test_a_box_is_not_drawn_over_seeds_that_never_arrived() -> None:
    frame = make(6, all_widths=(16,))
    frame = frame[frame["guide"] == "factorized"].copy()
    late = (frame["seed"] == 0) & (frame["within"] == 1.0).fillna(False)
    frame.loc[late, "value"] = None
    figure = time_to_target_figure(frame, "mnist")
    assert "1 of 6" in words(figure)
    assert len(figure.axes[0].patches) - 1 == 1  # the box of 3 nats, none of 1 nat, beside the strip


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
    with pytest.raises(ValueError, match=r"no rows of metric 'mse_test' for data set 'mnist'; there are: elbo"):
        curve_figure(frame[frame["metric"] != "mse_test"], "mnist", "mse_test")
    with pytest.raises(ValueError, match=r"no rows of data set 'cifar10'; there are: mnist"):
        curve_figure(frame, "cifar10", "elbo")
    with pytest.raises(ValueError, match=r"a metric with a curve \(elbo, .*\), got 'family_gap'"):
        curve_figure(frame, "mnist", "family_gap")
    with pytest.raises(ValueError, match="no rows of metric 'family_gap'"):
        family_gap_figure(frame[frame["metric"] != "family_gap"])
    with pytest.raises(ValueError, match="no rows of metric 'seconds_per_step'"):
        time_to_target_figure(frame[frame["metric"] != "seconds_per_step"], "mnist")
    with pytest.raises(ValueError, match="these columns are missing: note"):
        family_gap_figure(frame.drop(columns="note"))


def test_rows_of_two_runs_are_not_averaged() -> None:
    frame = make(1)
    both = pd.concat([frame, frame.assign(k=frame["k"])])
    with pytest.raises(ValueError, match=r"more than one 'elbo' row for .*, seed 0, step 0"):
        curve_figure(both, "mnist", "elbo")
    with pytest.raises(ValueError, match="more than one 'family_gap' row"):
        family_gap_figure(both)
