"""Figures of ``train``, ``gaps`` and ``qstar`` from synthetic numbers, and the lines that tell how far a stage is."""

import time

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from amortized_bayes.commands.stages import StageProgress
from amortized_bayes.plotting import (
    Curve,
    Decomposed,
    class_gap_figure,
    convergence_figure,
    decomposition_figure,
    save_figure,
    training_figure,
)
from amortized_bayes.plotting.decomposition import PARTS
from amortized_bayes.types import Row

APPROXIMATION, AMORTIZATION = (label for label, _, _ in PARTS.values())


@pytest.fixture(autouse=True)
def _untouched():
    """No figure may change matplotlib's global state."""
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before


def drawn(figure: Figure, tmp_path) -> list[Axes]:
    """The panels of a figure, once it was rendered."""
    for path in save_figure(figure, tmp_path, "figure"):
        assert path.stat().st_size > 2_000
    return figure.axes


def bars(axes: Axes) -> list[tuple[float, float, float]]:
    """Place, foot and height of every bar, in the order of drawing."""
    patches = [p for c in axes.containers if isinstance(c, BarContainer) for p in c.patches]
    return [(p.get_x() + p.get_width() / 2, p.get_y(), p.get_height()) for p in patches]


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def labels_at(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_xticklabels()]


def gaps(approximation, amortization, labels=None):
    values = {"approximation_gap": np.array(approximation, float), "amortization_gap": np.array(amortization, float)}
    return Decomposed(values | {"inference_gap": sum(values.values())}, None if labels is None else np.array(labels))


# Decomposition --------------------------------------------------------------------------------------------------------


def test_gaps_are_stacked_from_zero(tmp_path):
    splits = {"train": gaps([1, 2, 3], [3, 4, 5]), "test": gaps([2, 2, 5], [6, 7, 8])}
    panel, points = drawn(decomposition_figure(splits, "A heading"), tmp_path)
    expected = [(0, 0, 2), (0, 2, 4), (1, 0, 3), (1, 3, 7)]
    np.testing.assert_allclose(bars(panel), expected)
    assert labels_at(panel) == ["train points", "test points"]
    assert legend(panel) == [APPROXIMATION, AMORTIZATION]
    assert panel.get_ylim()[1] > 10
    curves = {str(line.get_label()): line for line in points.lines}
    assert [n for n in curves if not n.startswith("_")] == [
        f"{part}, {split}" for split in splits for part in (APPROXIMATION, AMORTIZATION)
    ]
    line = curves[f"{AMORTIZATION}, test"]
    np.testing.assert_allclose(line.get_xdata(), [6, 7, 8])
    np.testing.assert_allclose(line.get_ydata(), [1 / 6, 3 / 6, 5 / 6])
    assert curves[f"{AMORTIZATION}, test"].get_linestyle() != curves[f"{AMORTIZATION}, train"].get_linestyle()


def error_bars(axes: Axes) -> list[float]:
    """Half lengths of the error bars, in the order of drawing."""
    found = [c.errorbar for c in axes.containers if isinstance(c, BarContainer) and c.errorbar is not None]
    segments = [segment for each in found for collection in each[2] for segment in collection.get_segments()]
    return [float(s[1, 1] - s[0, 1]) / 2 for s in segments]


def test_errors_are_those_over_points(tmp_path):
    panel, _ = drawn(decomposition_figure({"train": gaps([1, 2, 3], [0, 0, 6])}, "h"), tmp_path)
    np.testing.assert_allclose(error_bars(panel), [1 / 3**0.5, 12**0.5 / 3**0.5])


@pytest.mark.parametrize(
    ("approximation", "amortization", "expected"),
    [
        ([-1, -1], [3, 3], [(0, 0, -1), (0, 0, 3)]),
        ([2, 2], [-1, -1], [(0, 0, 2), (0, 0, -1)]),
        ([-2, -2], [-1, -1], [(0, 0, -2), (0, -2, -1)]),
    ],
)
def test_negative_gaps_hang_below_zero(tmp_path, approximation, amortization, expected):
    splits = {"train": gaps(approximation, amortization, [0, 0])}
    for figure in (decomposition_figure(splits, "h"), class_gap_figure(splits, "h")):
        panel = drawn(figure, tmp_path)[0]
        np.testing.assert_allclose(bars(panel), expected)
        low, high = panel.get_ylim()
        assert low <= min(foot + height for _, foot, height in expected)
        assert high >= max(foot + height for _, foot, height in expected)


def test_one_split_and_one_point(tmp_path):
    panel, points = drawn(decomposition_figure({"test": gaps([1], [2])}, "h"), tmp_path)
    np.testing.assert_allclose(bars(panel), [(0, 0, 1), (0, 1, 2)])
    assert labels_at(panel) == ["test points"]
    np.testing.assert_allclose(points.lines[0].get_ydata(), [0.5])


def test_gaps_by_class(tmp_path):
    labels = [7, 3, 7, 3, 9]
    splits = {
        "train": gaps([1, 2, 3, 4, 5], [1, 1, 1, 3, 0.5], labels),
        "test": gaps([1, 1], [2, 2], [1, 1]),
        "other": gaps([1, 1], [2, 2]),  # has no labels
    }
    train, test = drawn(class_gap_figure(splits, "A heading"), tmp_path)
    np.testing.assert_allclose(bars(train), [(0, 0, 3), (0, 3, 2), (1, 0, 2), (1, 2, 1), (2, 0, 5), (2, 5, 0.5)])
    assert labels_at(train) == ["3", "7", "9"]
    assert train.get_title("left") == "train points"
    np.testing.assert_allclose(bars(test), [(0, 0, 1), (0, 1, 2)])
    assert labels_at(test) == ["1"]
    assert legend(train) == [APPROXIMATION, AMORTIZATION]
    assert legend(test) == []
    assert train.get_ylim() == test.get_ylim()
    assert train.get_ylim()[1] > 5.5


def test_ten_classes_of_one_split(tmp_path):
    labels = np.repeat(np.arange(10, dtype=np.uint8), 3)
    values = np.random.default_rng(0).normal(2, 1, (2, 30))
    (panel,) = drawn(class_gap_figure({"test": gaps(*values, labels)}, "h"), tmp_path)
    assert labels_at(panel) == [str(c) for c in range(10)]
    assert len(bars(panel)) == 20


# Convergence ----------------------------------------------------------------------------------------------------------


def curve(start, spread, steps, level=1.0, seed=0, shape=(3, 8)):
    generator = np.random.default_rng(seed)
    behind = [level * 100 / n + 0.01 * generator.standard_normal(shape) for n in steps]
    residual = [np.abs(b) * 0.5 for b in behind]
    return Curve(start, spread, steps, [12.0 * n for n in steps], behind, residual)


def texts(figure: Figure) -> str:
    return " ".join(t.get_text() for axes in figure.axes for t in axes.get_legend().get_texts())


def test_every_search_and_every_budget_appears(tmp_path):
    budgets = [30, 100, 300, 1_000]
    curves = [curve(s, p, budgets, level) for level, s in ((1, "encoder"), (3, "prior")) for p in (0.5, 2.0)]
    course, truth = drawn(convergence_figure(curves, "A heading"), tmp_path)
    assert legend(course) == [f"{s}, {p} scales off" for s in ("encoder", "prior") for p in ("0.5", "2")]
    assert legend(truth) == [*(f"{b:,} steps" for b in budgets), "equal"]
    for made, container in zip(curves, course.containers, strict=True):
        line = container[0]
        np.testing.assert_allclose(np.asarray(line.get_xdata(), float), made.evaluations)
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [v.mean() for v in made.behind])
        low, high = course.get_ylim()
        assert low < min(line.get_ydata())
        assert high > max(line.get_ydata())
    dots = {str(line.get_label()): line for line in truth.lines}
    for place, budget in enumerate(budgets):  # of the encoder's start alone, over both spreads
        x = np.concatenate([c.behind[place].ravel() for c in curves if c.start == "encoder"])
        y = np.concatenate([c.residual[place].ravel() for c in curves if c.start == "encoder"])
        np.testing.assert_allclose(dots[f"{budget:,} steps"].get_xdata(), x)
        np.testing.assert_allclose(dots[f"{budget:,} steps"].get_ydata(), y)
    assert len({line.get_color() for name, line in dots.items() if name.endswith("steps")}) == len(budgets)


def test_errors_of_searches_are_over_points(tmp_path):
    made = curve("encoder", 1.0, [30, 100])
    course, _ = drawn(convergence_figure([made], "h"), tmp_path)
    segments = course.containers[0][2][0].get_segments()
    found = [float(s[1, 1] - s[0, 1]) / 2 for s in segments]
    np.testing.assert_allclose(found, [b.mean(0).std(ddof=1) / 8**0.5 for b in made.behind])


@pytest.mark.parametrize(
    "curves",
    [
        [curve("prior", 0.5, [30, 100])],
        [curve("encoder", 0.0, [10])],
        [curve("encoder", 0.5, [10, 20], level=-1.0)],  # ahead of the reference
        [curve("encoder", 0.5, [30, 100]), curve("prior", 0.5, [])],  # an unfinished run
        [curve("encoder", p, [30, 100, 300, 1_000, 3_000, 10_000, 30_000]) for p in (0.1, 0.2, 0.5, 1, 2)],
    ],
    ids=["prior alone", "one search", "ahead", "unfinished", "many"],
)
def test_whatever_was_searched_is_drawn(tmp_path, curves):
    figure = convergence_figure(curves, "h")
    course, truth = drawn(figure, tmp_path)
    for steps in {n for c in curves for n in c.steps}:
        assert f"{steps:,} steps" in texts(figure)
    low, high = course.get_ylim()
    means = [v.mean() for c in curves for v in c.behind]
    assert low < min(means)
    assert high > max(means)
    assert np.isfinite(truth.get_xlim()).all()


# Training -------------------------------------------------------------------------------------------------------------


def training_frame(steps, metrics=("elbo", "test_elbo", "kl")):
    levels = {"elbo": -100.0, "test_elbo": -104.0, "validation_elbo": -102.0, "kl": 20.0}
    start = ("train", "binarized-mnist", "VAE, standard encoder", "amortized", None, 3)
    return pd.DataFrame(
        [
            Row(*start, step, 0.1 * step, name, levels[name] - 300 / (1 + step), 0.5, "points")
            for step in steps
            for name in metrics
        ]
    )


def test_the_course_of_training(tmp_path):
    steps = [1, 10, 100, 1_000, 5_000]
    frame = training_frame(steps, ("elbo", "validation_elbo", "test_elbo", "kl"))
    final = Row(*frame.iloc[0])._replace(metric="final_elbo", value=-1.0)
    figure = training_figure(pd.concat([frame, pd.DataFrame([final])], ignore_index=True))
    bounds, divergence = drawn(figure, tmp_path)
    assert legend(bounds) == ["training points", "validation points", "test points"]
    for line, level in zip(bounds.lines, (-100, -102, -104), strict=True):
        np.testing.assert_allclose(line.get_xdata(), steps)
        np.testing.assert_allclose(line.get_ydata(), [level - 300 / (1 + s) for s in steps])
    assert len(bounds.collections) == 3  # a band each
    low, high = bounds.get_ylim()
    assert low < -104 < -100 < high
    np.testing.assert_allclose(divergence.lines[0].get_ydata(), [20 - 300 / (1 + s) for s in steps])
    assert divergence.get_xscale() == "log"
    written = " ".join(t.get_text() for t in figure.findobj(mpl.text.Text))
    assert "VAE, standard encoder, seed 3" in written
    assert "MNIST" in written


@pytest.mark.parametrize("steps", [[8], [1, 2], [1, 2, 3, 4]])
def test_a_short_training_is_drawn(tmp_path, steps):
    bounds, _ = drawn(training_figure(training_frame(steps)), tmp_path)
    assert legend(bounds) == ["training points", "test points"]
    low, high = bounds.get_ylim()
    assert low < -100 - 300 / (1 + steps[-1]) < high


# Progress -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_away_from_a_terminal_a_line_comes_every_30_seconds(capsys, clock):
    with StageProgress(file_is_terminal=False) as progress:
        for second in range(100):
            clock[0] = 1_000.0 + second
            progress("training", 10 * second, 2_000, "ELBO -90.0")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == "[    30 s] training: 300/2,000  ELBO -90.0  about 3 min left"
    assert lines[2].startswith("[    90 s] training: 900/2,000")


def test_a_stage_that_starts_again_is_timed_from_there(capsys, clock):
    """AIS runs its stage again with more temperatures, so that its count falls."""
    with StageProgress(file_is_terminal=False) as progress:
        for second in range(0, 26):
            clock[0] = 1_000.0 + second
            progress("AIS", 100 * second, 2_500)
        for second in range(26, 61):
            clock[0] = 1_000.0 + second
            progress("AIS", second - 25, 100)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0] == "[    30 s] AIS: 5/100  about 2 min left"
    assert lines[1] == "[    60 s] AIS: 35/100  about 65 s left"


def test_a_stage_that_starts_again_below_its_first_count_is_timed_from_there(capsys, clock):
    with StageProgress(file_is_terminal=False) as progress:
        progress("AIS", 500, 1_000)
        clock[0] += 20
        progress("AIS", 10, 100)
        clock[0] += 10
        progress("AIS", 20, 100)
    assert capsys.readouterr().out == "[    30 s] AIS: 20/100  about 80 s left\n"


def test_stages_do_not_share_their_clocks(capsys, clock):
    with StageProgress(file_is_terminal=False) as progress:
        progress("slow", 0, 10)
        clock[0] += 20
        progress("quick", 0, 10)
        clock[0] += 10
        progress("quick", 5, 10)
        clock[0] += 30
        progress("slow", 6, 10)
    assert capsys.readouterr().out.splitlines() == [
        "[    30 s] quick: 5/10  about 10 s left",
        "[    60 s] slow: 6/10  about 40 s left",
    ]


def test_the_rate_of_a_resumed_stage_counts_what_was_done_here(capsys, clock):
    with StageProgress(file_is_terminal=False) as progress:
        progress("training", 900, 1_000)
        clock[0] += 30
        progress("training", 930, 1_000)
    assert capsys.readouterr().out == "[    30 s] training: 930/1,000  about 70 s left\n"


def test_what_is_said_is_a_line_of_its_own(capsys, clock):
    with StageProgress(file_is_terminal=False) as progress:
        progress.say("test_inference_gap: 1.234 nats")
    assert capsys.readouterr().out == "test_inference_gap: 1.234 nats\n"


def test_at_a_terminal_there_is_a_bar_a_stage(capsys):
    with StageProgress(file_is_terminal=True) as progress:
        for stage in ("train q*", "train AIS"):
            for done in range(4):
                progress(stage, done, 3)
        progress.say("a line above")
        assert [(t.description, t.completed, t.total) for t in progress.progress.tasks] == [
            ("train q*", 3, 3),
            ("train AIS", 3, 3),
        ]
    said = capsys.readouterr().out
    assert "a line above" in said
    assert "train q*" in said


def test_an_error_ends_the_bars():
    shown = StageProgress(file_is_terminal=True)

    def fail():
        with shown as progress:
            progress("training", 1, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not shown.progress.live.is_started
