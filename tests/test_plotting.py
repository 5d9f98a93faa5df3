"""Figures from synthetic rows: what they show, what they refuse, and that they leave no trace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from amortized_bayes.plotting import (
    curve_figure,
    dataset_label,
    family_gap_figure,
    guide_label,
    guide_style,
    memory_figure,
    reconstruction_figure,
    save_figure,
    style,
    time_to_target_figure,
)
from amortized_bayes.plotting.curves import CURVES
from amortized_bayes.plotting.frames import by_guide, failures, notes, select, tidy, widths
from amortized_bayes.plotting.furniture import format_tick, format_value
from amortized_bayes.types import ROW_FIELDS, Row

WIDTHS = (1, 16, 256)
STEPS = (0, 1, 3, 10, 30, 100, 300, 1000)
STAND_IN = "digits stand in for FashionMNIST"
FRESH = "fresh factors, q(theta) frozen"
OTHERS = ("factorized", "factorized-from-amortized", "constant")


def gap_of(guide: str, k: int | None) -> float:
    return 60.0 / k if k is not None else {"factorized": 0.0, "factorized-from-amortized": -0.25}.get(guide, 105.0)


def fit_rows(dataset: str, guide: str, k: int | None, seed: int, failed: bool) -> list[Row]:
    gap = gap_of(guide, k) + 0.02 * seed
    status = "vacuous" if guide == "constant" else "ok"
    note = STAND_IN if dataset == "fashion-mnist" else ""
    rows = []

    def add(metric: str, step: int, value: float | None, error: float | None = None, more: str = "") -> None:
        text = "; ".join(filter(None, (note, more)))
        seconds = 0.002 * step
        rows.append(
            Row("sweep", dataset, "dgm", guide, k, seed, step, seconds, metric, value, error, None, status, text)
        )

    for step in (s for s in STEPS if not (failed and s > 100)):
        distance = (1 + step / 20) ** -1.5
        add("elbo", step, -(100 + gap + 400 * distance))
        add("kl", step, 25 * (1 - distance))
        add("mse_train", step, 0.01 + 0.2 * distance)
        if guide != "factorized" or step in (30, 1000):
            add("mse_test", step, 0.011 + 0.2 * distance, more=FRESH if guide == "factorized" else "")
    if failed:
        return [
            *rows,
            Row("sweep", dataset, "dgm", guide, k, seed, 120, 0.2, "failure", None, status="failed", note="nan"),
        ]
    add("family_gap", 1000, gap, 0.1)
    add("seconds_per_step", 1000, 0.002)
    for name, target in (("1_nat", 1.0), ("3_nats", 3.0)):
        reached = 500.0 + 50 * seed if gap < target else None
        add(f"steps_to_{name}", 1000, reached)
        add(f"seconds_to_{name}", 1000, reached and 0.002 * reached)
    return rows


def make(
    seeds: int = 3, all_widths: tuple[int, ...] = WIDTHS, failing: bool = False, datasets: tuple[str, ...] = ("mnist",)
) -> pd.DataFrame:
    rows = []
    for dataset in datasets:
        for guide, k in [*(("amortized", k) for k in all_widths), *((guide, None) for guide in OTHERS)]:
            for seed in range(seeds):
                rows += fit_rows(dataset, guide, k, seed, failed=failing and k == all_widths[-1] and seed == seeds - 1)
        rows.append(Row("sweep", dataset, "dgm", "reference", None, 0, 1000, 2.0, "elbo_reference", -100.0))
    return pd.DataFrame(rows, columns=list(ROW_FIELDS))


def make_table() -> pd.DataFrame:
    rows = [("amortized", k, n, 800 * k) for k in WIDTHS for n in (100, 1000, 60000)]
    rows += [(guide, None, n, 20 if guide == "constant" else 20 * n) for guide in OTHERS for n in (100, 1000, 60000)]
    table = pd.DataFrame(rows, columns=["guide", "k", "N", "num_parameters"])
    return table.assign(memory_bytes=16 * table["num_parameters"])


def make_images() -> Figure:
    originals = np.random.default_rng(0).random((6, 8, 8))
    return reconstruction_figure(
        originals, {"F-VI": originals * 0.9, "constant VI": originals * 0}, "t", {"F-VI": 0.002}
    )


FIGURES: dict[str, Callable[[], Figure]] = {
    "curve": lambda: curve_figure(make(failing=True), "mnist", "elbo"),
    "gap": lambda: family_gap_figure(make(failing=True)),
    "time": lambda: time_to_target_figure(make(failing=True), "mnist"),
    "images": make_images,
    "memory": lambda: memory_figure(make_table()),
}


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize("name", FIGURES)
def test_saved_figures_are_whole_and_the_same_twice(name: str, tmp_path: Path) -> None:
    figure = FIGURES[name]()
    first = {path.name: path.read_bytes() for path in save_figure(figure, tmp_path / "new", name)}
    assert sorted(first) == [f"{name}.pdf", f"{name}.png"]
    assert first[f"{name}.png"].startswith(b"\x89PNG")
    assert first[f"{name}.pdf"].startswith(b"%PDF")
    assert first[f"{name}.pdf"].rstrip().endswith(b"%%EOF")
    again = {path.name: path.read_bytes() for path in save_figure(figure, tmp_path / "new", name)}
    built_again = {path.name: path.read_bytes() for path in save_figure(FIGURES[name](), tmp_path / "new", name)}
    assert first == again == built_again
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(first)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
def test_figures_leave_no_trace(name: str, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 31, "axes.grid": False}):
        figure = FIGURES[name]()
        save_figure(figure, tmp_path, name)
        assert mpl.rcParams["font.size"] == 31
    assert dict(mpl.rcParams) == before
    if name != "images":
        assert figure.axes[0].xaxis.label.get_size() < 12


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = FIGURES["memory"]()
    save_figure(figure, tmp_path, "memory")
    before = (tmp_path / "memory.png").read_bytes()

    def break_off(self: Path, content: bytes) -> None:
        self.open("wb").write(content[:10])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", break_off)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, tmp_path, "memory")
    assert (tmp_path / "memory.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory.pdf", "memory.png"]


def test_style_puts_back_what_was_there_after_an_error() -> None:
    before = dict(mpl.rcParams)
    inside = {}

    @style()
    def break_off() -> None:
        inside.update(mpl.rcParams)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert inside != before
    assert dict(mpl.rcParams) == before


def test_plotting_imports_neither_torch_nor_pyplot() -> None:
    unwanted = "{'torch', 'pyro', 'matplotlib.pyplot'}"
    code = f"import sys, amortized_bayes.plotting; print(sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_labels() -> None:
    assert guide_label("amortized", 16) == "A-VI, k = 16"
    assert [guide_label(guide) for guide in OTHERS] == ["F-VI", "F-VI from A-VI", "constant VI"]
    assert guide_label("flow") == "flow"
    assert [dataset_label(name) for name in ("mnist", "fashion-mnist", "digits")] == ["MNIST", "FashionMNIST", "digits"]
    assert dataset_label("/some/where/heights.npy") == "heights.npy"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (98.26, None, "98.3"),
        (0.1125, None, "0.113"),
        (0.0123, None, "0.0123"),
        (2e-5, None, "2e-05"),
        (0.0, None, "0"),
        (2.816, 0.12, "+2.82"),
        (-0.0727, 0.03, "-0.07"),
        (104.9, 5.0, "+105"),
        (3.0, float("nan"), "3.00"),
    ],
)
def test_values_are_written_to_what_is_known(value: float, error: float | None, text: str) -> None:
    assert format_value(value, error) == text


def test_ticks_are_plain_numbers() -> None:
    assert [format_tick(v) for v in (0.02, 500, 20_000, 100_000, 3e6, 2e9)] == [
        "0.02",
        "500",
        "20k",
        "100k",
        "3M",
        "2G",
    ]


def to_lab(color: str, cones: np.ndarray) -> np.ndarray:
    rgb = np.array(to_rgb(color))
    linear = np.clip(cones @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ linear / (0.9505, 1.0, 1.089), 1e-6))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Machado, Oliveira & Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009,
# severity 1.
EYES = {
    "three cones": np.eye(3),
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


@pytest.mark.parametrize("eyes", EYES)
def test_guides_are_told_apart(eyes: str) -> None:
    all_widths = (1, 4, 16, 64, 256)
    ramp = [to_lab(guide_style("amortized", k, all_widths).color, np.array(EYES[eyes])) for k in all_widths]
    factorized = to_lab(guide_style("factorized").color, np.array(EYES[eyes]))
    assert min(np.linalg.norm(lab - factorized) for lab in ramp) > 50
    lightness = np.array([lab[0] for lab in ramp])
    assert (np.diff(lightness) < -8).all()
    assert len({guide_style("amortized", k, all_widths).marker for k in all_widths}) == len(all_widths)


def test_factorized_guides_share_a_hue_and_differ_in_line() -> None:
    own, from_amortized, constant = (guide_style(guide) for guide in OTHERS)
    assert own.color == from_amortized.color != constant.color
    assert [own.linestyle, from_amortized.linestyle, constant.linestyle] == ["-", "--", ":"]
    assert own.filled
    assert not from_amortized.filled


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
        *(f"A-VI, k = {k}" for k in WIDTHS),
        "F-VI",
        "F-VI from A-VI",
        "constant VI (vacuous)",
    ]
    assert len(left.collections) == (6 if seeds > 1 else 0)
    assert ("one seed" if seeds == 1 else "mean of 3 seeds") in figure.legends[0].get_title().get_text()


def test_elbo_is_drawn_as_its_negative() -> None:
    line = curve_figure(make(1), "mnist", "elbo").axes[0].get_lines()[0]
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
    assert f"F-VI: {FRESH}" in words(figure)


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


def test_stand_in_data_is_named_in_the_title() -> None:
    figure = curve_figure(make(1, datasets=("fashion-mnist",)), "fashion-mnist", "mse_test")
    assert figure.get_suptitle() == f"Reconstruction of test data, FashionMNIST [{STAND_IN}]"


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
    assert "milliseconds" in cost.get_xlabel()
    assert cost.get_xlim()[0] == 0
    assert [label.get_text() for label in seconds.get_yticklabels()][-1] == "constant VI (vacuous)"
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
    late = (frame["seed"] == 0) & frame["metric"].str.endswith("_to_1_nat")
    frame.loc[late, "value"] = None
    figure = time_to_target_figure(frame, "mnist")
    assert "1 of 6" in words(figure)
    assert len(figure.axes[0].patches) - 1 == 1  # the box of 3 nats, none of 1 nat, beside the strip


def test_reconstructions() -> None:
    figure = make_images()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["original", "F-VI\nMSE 0.002", "constant VI"]
    (image,) = axes.get_images()
    mosaic = np.ma.getdata(image.get_array())
    originals = np.random.default_rng(0).random((6, 8, 8))
    np.testing.assert_array_equal(mosaic[:8, 9:17], originals[1])
    np.testing.assert_array_equal(mosaic[9:17, 45:53], originals[5] * 0.9)
    assert image.get_clim() == (0, 1)


def test_reconstructions_refuse_what_does_not_fit() -> None:
    originals = np.zeros((4, 8, 8))
    with pytest.raises(ValueError, match=r"shape \(4, 8, 8\) as the originals, got \(3, 8, 8\) for 'F-VI'"):
        reconstruction_figure(originals, {"F-VI": originals[:3]}, "t")
    with pytest.raises(ValueError, match=r"\(n, height, width\), got \(8, 8\)"):
        reconstruction_figure(originals[0], {}, "t")
    with pytest.raises(ValueError, match="mse for A-VI"):
        reconstruction_figure(originals, {"F-VI": originals}, "t", {"A-VI": 0.1})


def test_memory() -> None:
    figure = memory_figure(make_table())
    parameters, memory = figure.axes
    assert {axes.get_xscale() for axes in figure.axes} | {axes.get_yscale() for axes in figure.axes} == {"log"}
    assert parameters.get_xlabel() == "data points N"
    assert memory.get_ylabel() == "memory (MiB)"
    assert "F-VI; F-VI from A-VI" in legend_labels(figure)
    with pytest.raises(ValueError, match="missing: memory_bytes"):
        memory_figure(make_table().drop(columns="memory_bytes"))


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
    with pytest.raises(ValueError, match="these are missing: note"):
        family_gap_figure(frame.drop(columns="note"))


def test_rows_of_two_models_are_not_averaged() -> None:
    frame = make(1)
    both = pd.concat([frame, frame.assign(model="other")])
    with pytest.raises(ValueError, match="more than one 'elbo' row for A-VI, k = 1, seed 0, step 0"):
        curve_figure(both, "mnist", "elbo")
    with pytest.raises(ValueError, match="more than one 'family_gap' row"):
        family_gap_figure(both)


@pytest.mark.parametrize("dtype", ["Int64", "float64", "object"])
def test_frames_take_k_as_it_comes_and_leave_it_alone(dtype: str) -> None:
    frame = make(2, failing=True)
    frame["k"] = frame["k"].astype(dtype)
    before = frame.copy(deep=True)
    rows = tidy(frame)
    pd.testing.assert_frame_equal(frame, before)
    assert widths(rows) == WIDTHS
    labels = [group.label for group in by_guide(select(rows, "elbo", "mnist", curve=True))]
    assert labels[2:4] == ["A-VI, k = 256", "A-VI, k = 256 (failed)"]
    assert failures(rows, "mnist") == ["A-VI, k = 256, seed 1 at step 120 (nan)"]
    assert failures(rows, "digits") == []


def test_only_the_end_of_a_fit_says_it_is_vacuous() -> None:
    frame = make(1)
    frame.loc[(frame["guide"] == "amortized") & (frame["step"] == 0), "status"] = "vacuous"
    assert {group.fate for group in by_guide(tidy(frame)) if group.guide == "amortized"} == {"ok"}


def test_notes_are_for_all_or_for_some() -> None:
    rows = tidy(make(1, datasets=("fashion-mnist",)))
    common, partial = notes(select(rows, "mse_test", "fashion-mnist", curve=True))
    assert (common, partial) == ([STAND_IN], [f"F-VI: {FRESH}"])
    rows.loc[rows["guide"] == "amortized", "note"] = "captured"
    assert notes(select(rows, "kl", "fashion-mnist", curve=True))[1][0] == "A-VI: captured"
