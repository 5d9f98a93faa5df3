"""Figures from declarations: what they draw, what they are called, and that one that fails harms no other."""

import itertools
from types import SimpleNamespace

import made_runs
import numpy as np
import pytest

from amortized_bayes.experiments.spec import Bars, Drawn, Gaps, Ladder, Lines, Points, Scatter, Table
from amortized_bayes.presenting import figures as figures_module
from amortized_bayes.presenting import present, tell
from amortized_bayes.presenting.figures import draw_figures
from amortized_bayes.presenting.view import RunView

PARTS = made_runs.GAPS[:2]


@pytest.fixture
def drawn(tmp_path, monkeypatch, capsys):
    """Draw figures of a made-up run; what came out, by name."""
    kept = {}
    save = figures_module.save_figure

    def keep(figure, folder, name, dpi=180):
        kept[name] = figure
        return save(figure, folder, name, 60)

    monkeypatch.setattr(figures_module, "save_figure", keep)

    def draw(made, figures, expected=()):
        run = RunView(made.save(tmp_path / made.experiment))
        paths = draw_figures(figures, run, run.rows, tmp_path / "figures")
        assert capsys.readouterr().out.splitlines() == list(expected)
        for path in paths:
            assert path.stat().st_size > 2_000
        kinds = ("pdf", "png")
        assert sorted(path.name for path in paths) == sorted(f"{name}.{kind}" for name in kept for kind in kinds)
        return kept

    return draw


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def ticks(axes):
    return [text.get_text() for text in axes.get_xticklabels()]


SWEEP = {
    "{dataset}_elbo": Drawn("curves", {"metric": "behind_reference"}),
    "{dataset}_comp": Drawn("curves", {"metric": "share_closed"}),
    "re{number}": Drawn("reconstructions"),
    "family_gap": Drawn("family_gap"),
    "memory": Drawn("memory"),
}


@pytest.mark.slow
def test_figures_of_a_sweep_have_their_names(drawn):
    kept = drawn(made_runs.sweep(("mnist", "fashion-mnist"), widths=(1, 16), guides=("mixture",)), SWEEP)
    each = ["elbo", "comp"]
    names = [f"{dataset}_{name}" for name in each for dataset in ("mnist", "fmnist")]
    assert list(kept) == [*names, "re1", "re2", "family_gap", "memory"]
    assert any("mixture" in text.get_text() for text in kept["mnist_elbo"].legends[0].get_texts())
    assert "mixture" in ticks(kept["family_gap"].axes[0])
    assert "mixture\nMSE 0.03" in [text.get_text() for text in kept["re1"].axes[0].get_yticklabels()]
    (memory,) = kept["memory"].axes
    (own,) = [line for line in memory.get_lines() if line.get_label() == "F-VI"]
    np.testing.assert_allclose(own.get_ydata(), np.array([1, 10, 100, 1000]) * 3.2e7 / 2**20)
    assert memory.get_ylabel() == "memory (MiB)"


@pytest.mark.slow
def test_a_data_set_named_like_a_formula_is_drawn(drawn):
    names = ("{dataset}_elbo", "{dataset}_comp", "re{number}", "family_gap")
    kept = drawn(made_runs.sweep((r"$\frac$.npz",), widths=(1,)), {name: SWEEP[name] for name in names})
    assert "frac_elbo" in kept
    assert r"$\frac$.npz" in kept["family_gap"].axes[0].get_title("left")


def test_points_are_means_with_errors(drawn):
    encoders = ("linear", "small", "standard", "wide")
    made = made_runs.frozen_decoder()
    left = Points("encoder", "amortization_gap", hue="family", log="y", title="{dataset}")
    right = Points("label", "amortization_gap", hue="encoder", log="y", where={"family": "gaussian"})
    figure = drawn(made, {"frozen_decoder": (left, right)})["frozen_decoder"]
    assert figure.get_suptitle() == "binarized MNIST"
    by_encoder, by_class = figure.axes
    assert ticks(by_encoder) == list(encoders)
    assert texts(by_encoder) == ["gaussian", "realnvp", "auxiliary"]
    assert texts(by_class) == list(encoders)
    assert ticks(by_class) == [str(label) for label in range(10)]
    assert by_class.get_xlabel() == "class, gaussian"
    assert "nats per point" in by_encoder.get_ylabel()
    frame = made.frame()
    wanted = frame[(frame["metric"] == "amortization_gap") & (frame["family"] == "realnvp") & frame["label"].isna()]
    line = by_encoder.containers[1][0]
    np.testing.assert_allclose(line.get_ydata(), wanted["value"])
    assert by_encoder.get_yscale() == "log"
    for axes in figure.axes:  # no mark is cut off
        low, high = axes.get_ylim()
        assert all(low < y < high for container in axes.containers for y in container[0].get_ydata())


@pytest.mark.parametrize("panel", [Points("budget", "optimization_gap"), Bars(("budget",), ("optimization_gap",))])
def test_a_mean_without_some_seed_is_not_drawn(drawn, panel):
    made = made_runs.Made("mine")
    for seed, budgets in ((0, (1, 10)), (1, (1,))):
        for budget in budgets:
            made.job({"dataset": "digits", "seed": seed, "budget": budget}, made_runs.plain(optimization_gap=2.0))
    (axes,) = drawn(made, {"mine": (panel,)})["mine"].axes
    marks = axes.patches if isinstance(panel, Bars) else axes.containers[0][0].get_xdata()
    assert len(marks) == 1


def test_points_below_zero_bend_the_axis(drawn):
    made = made_runs.Made("mine")
    for place, value in enumerate((-0.5, 3.0, 50.0)):
        made.job({"dataset": "digits", "seed": 0, "budget": 10**place}, made_runs.plain(optimization_gap=value))
    (axes,) = drawn(made, {"mine": (Points("budget", "optimization_gap", log="y"),)})["mine"].axes
    assert axes.get_yscale() == "symlog"
    assert axes.get_ylim()[0] < -0.5 < 50 < axes.get_ylim()[1]
    assert axes.get_legend() is None


def test_several_seeds_are_one_point(drawn):
    made = made_runs.Made("mine")
    for seed, layers in ((s, n) for s in (0, 1) for n in (0, 2)):
        made.job({"dataset": "digits", "seed": seed, "decoder_layers": layers}, made_runs.plain(elbo=-90.0 + seed))
    (axes,) = drawn(made, {"mine": (Points("decoder_layers", "elbo"),)})["mine"].axes
    np.testing.assert_allclose(axes.containers[0][0].get_ydata(), [-89.5, -89.5])
    (segments,) = (collection.get_segments() for collection in axes.containers[0][2])
    np.testing.assert_allclose([s[1, 1] - s[0, 1] for s in segments], 2 * 0.5)


def test_lines_are_curves_by_split(drawn):
    panels = (Lines("step", ("elbo",), hue="split", log="x"), Lines("step", ("kl",), hue="split", log="x"))
    bounds, divergence = drawn(made_runs.train(), {"training": panels})["training"].axes
    assert texts(bounds) == ["train", "validation", "test"]
    assert bounds.get_xscale() == "log"
    line = bounds.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata()[-1], -100 - 400 / (1 + 10000 / 3))
    low, high = bounds.get_ylim()
    assert low < -104 < -100 < high
    assert len(bounds.collections) == 3  # a band each
    assert divergence.get_ylim()[0] < 1
    assert divergence.get_ylabel() == "KL of z from its prior (nats per point)"


def test_a_style_is_a_kind_of_line_and_a_hue_a_colour(drawn):
    made = made_runs.Made("mine")
    for variant, split, step in itertools.product(("small", "large"), ("test", "train"), (1, 10, 100)):
        if (variant, split) != ("large", "train"):
            value = step + 1000 * (variant == "large") + 0.5 * (split == "test")
            place = {"dataset": "digits", "seed": 0, "variant": variant}
            made.job(place, [("kl", value, {"split": split}, {"step": step})], name=f"{split}-{step}")
    panel = Lines("step", ("kl",), hue="variant", style="split", log="x")
    (axes,) = drawn(made, {"mine": (panel,)})["mine"].axes
    assert texts(axes) == ["small", "large", "train", "test"]
    looks = {float(line.get_ydata()[0]): line for line in axes.get_lines() if len(line.get_ydata())}
    assert {value: line.get_linestyle() for value, line in looks.items()} == {1.0: "-", 1.5: "--", 1001.5: "--"}
    colors = {value: line.get_color() for value, line in looks.items()}
    assert colors[1.0] == colors[1.5] != colors[1001.5]


def test_lines_over_an_unnamed_factor_are_refused(drawn):
    wrong = {"training": (Lines("step", ("elbo",)),)}
    said = "figure training cannot be drawn: expected one elbo at each step, got several: they differ in split"
    assert not drawn(made_runs.train(), wrong, [said])


def test_bars_are_stacked_and_negative_ones_hang_below(drawn):
    made = made_runs.Made("gaps")
    for split, parts in {"train": (2.0, 1.0), "test": (-1.0, 3.0)}.items():
        values = dict(zip(PARTS, parts, strict=True))
        made.job(
            {**made_runs.MODEL, "split": split},
            made_runs.plain(**values),
            {k: np.full(5, v) for k, v in values.items()},
        )
    bars, dots = drawn(made, {"gaps": (Bars(("split",), PARTS), Gaps("split", PARTS))})["gaps"].axes
    boxes = [(p.get_x() + p.get_width() / 2, p.get_y(), p.get_height()) for p in bars.patches]
    np.testing.assert_allclose(boxes, [(0, 0, 2), (0, 2, 1), (1, 0, -1), (1, 0, 3)])
    assert bars.get_ylim()[0] < -1
    assert ticks(bars) == ["train", "test"]
    assert texts(bars) == texts(dots) == ["approximation gap", "amortization gap"]
    points = np.concatenate([np.asarray(c.get_offsets())[:, 1] for c in dots.collections])
    assert sorted(points) == sorted([2.0] * 5 + [1.0] * 5 + [-1.0] * 5 + [3.0] * 5)


def test_panels_apart_share_their_axis(drawn):
    figure = drawn(made_runs.gaps(), {"gaps_by_class": (Bars(("label",), PARTS, apart="split", title="by class"),)})
    train, test = figure["gaps_by_class"].axes
    assert [axes.get_title("left") for axes in (train, test)] == ["train points", "test points"]
    assert train.get_ylim() == test.get_ylim()
    assert len(train.patches) == 20


def test_models_are_told_apart_by_what_varies(drawn):
    panel = Bars(("family", "encoder", "annealed"), PARTS, apart="dataset")
    axes = drawn(made_runs.model_gaps(), {"model_gaps": (panel,)})["model_gaps"].axes
    assert len(axes) == 2
    assert ticks(axes[0]) == ["gaussian\nplain", "gaussian\nannealed", "auxiliary\nplain", "auxiliary\nannealed"]


def test_searches_are_drawn(drawn):
    kept = drawn(made_runs.qstar(), {"qstar": Drawn("qstar")})
    course, truth = kept["qstar"].axes
    assert texts(course) == [f"{s}, {n} scales away" for s in ("encoder", "prior") for n in ("0.5", "2")]
    assert texts(truth) == ["30 steps", "100 steps", "300 steps", "equal"]


@pytest.mark.slow
def test_restarts_are_counted_behind_the_best_of_their_point(drawn):
    made = made_runs.qstar()
    axes = drawn(made, {"restarts": Drawn("restarts")})["restarts"].axes
    shown = [one for one in axes if one.get_visible()]
    assert shown[0].get_title("left").startswith("encoder, 30 steps\nmean ")
    assert len(shown) == 6
    for one in shown:
        heights = [bar.get_height() for bar in one.patches]
        assert sum(heights) == 2 * 3 * 20  # both spreads, all restarts of all points
        assert heights[0] >= 2 * 20  # the best of each point is 0 behind
        assert min(bar.get_x() for bar in one.patches) == pytest.approx(0)


@pytest.mark.parametrize("colours", [(), (3,)])
def test_images_that_jobs_left_are_rows(drawn, colours):
    made = made_runs.Made("mine")
    for place, split in enumerate(("train", "test")):
        pictures = np.full((4, 6, 6, *colours), float(place))
        pictures[0, 0, 0] = (1, 0, 0) if colours else 0.5
        made.job(
            {"dataset": "cifar10", "seed": 0, "split": split},
            made_runs.plain(elbo=-9.0),
            {"picture_largest_gap": pictures},
        )
    figure = drawn(made, {"images": Drawn("pictures", {"heading": "Extremes"})})["images"]
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "train points, largest gap",
        "test points, largest gap",
    ]
    assert figure.get_suptitle() == "Extremes: CIFAR-10, seed 0"
    (image,) = axes.get_images()
    assert image.get_array().shape[2:] == colours
    assert np.allclose(image.get_array()[0, 0], (1, 0, 0) if colours else 0.5)


def test_without_images_there_is_no_figure_of_them(drawn):
    assert not drawn(made_runs.gaps(), {"images": Drawn("pictures", {"heading": "Extremes"})})


@pytest.mark.slow
def test_posteriors_are_drawn(drawn):
    kept = drawn(made_runs.toy_posteriors(), {"toy_posteriors": Drawn("toy_posteriors")})
    assert len(kept["toy_posteriors"].axes) == 4 * 7
    assert kept["toy_posteriors"].axes[3].get_title("left") == "realnvp,\namortized"


@pytest.mark.slow
def test_data_sets_whose_files_have_like_names_have_figures_of_their_own(drawn):
    kept = drawn(
        made_runs.sweep(("a b.npz", "a-b.npz")), {"{dataset}_elbo": Drawn("curves", {"metric": "behind_reference"})}
    )
    assert list(kept) == ["a-b_elbo", "a-b-2_elbo"]


def test_dots_are_drawn_alike_each_time_and_draw_from_no_stream(drawn):
    before = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    figures = {"gaps": Gaps("split", PARTS)}
    first, second = (drawn(made_runs.gaps(), figures)["gaps"].axes[0].collections for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.get_offsets(), b.get_offsets())
    np.testing.assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], before)  # noqa: NPY002


BOUNDS = ("elbo", "elbo_star", "log_p_lower")


def with_bounds(made):
    """Leave bounds of each point: 3 and 1 nats below log p(x), which varies a hundredfold more over points."""
    for _, _, arrays, _ in made.jobs:
        log_p = made.random.normal(-90, 30, 60)
        noise = made.random.normal(0, 0.3, (2, 60))
        noise -= noise.mean(1, keepdims=True)
        arrays.update(elbo=log_p - 3 + noise[0], elbo_star=log_p - 1 + noise[1], log_p_lower=log_p)
        arrays["k_hat"] = np.linspace(0.2, 1.4, 60)
    return made


def test_a_ladder_shows_paired_distances_to_the_last_bound(drawn):
    (axes,) = drawn(with_bounds(made_runs.gaps()), {"bounds": (Ladder(BOUNDS, "split"),)})["bounds"].axes
    assert ticks(axes) == ["ELBO", "L(q*)", "log p (AIS)"]
    assert texts(axes) == ["train", "test"]
    for bars in axes.containers:
        line, _, (spread,) = bars
        np.testing.assert_allclose(line.get_ydata(), [-3, -1, 0], atol=1e-9)
        lengths = [np.ptp(segment[:, 1]) / 2 for segment in spread.get_segments()]
        np.testing.assert_allclose(lengths, [0.3 / np.sqrt(60)] * 2 + [0], rtol=0.3)  # not 30 / sqrt(60)


def test_one_metric_of_each_point_is_drawn_against_another(drawn):
    scatter = Scatter("k_hat", "inference_gap", "split", edge=(0.7, "unreliable beyond"))
    (axes,) = drawn(with_bounds(made_runs.gaps()), {"k_hat": (scatter,)})["k_hat"].axes
    train, test, edge = axes.get_lines()
    assert len(train.get_xdata()) == len(test.get_xdata()) == 60
    assert list(edge.get_xdata()) == [0.7, 0.7]
    assert texts(axes) == ["train", "test", "unreliable beyond"]
    assert train.get_marker() != test.get_marker()


def test_points_without_these_arrays_are_not_drawn(drawn):
    assert not drawn(made_runs.gaps(), {"bounds": (Ladder(BOUNDS, "split"), Scatter("k_hat", "elbo", "split"))})


def test_a_point_figure_has_a_panel_for_three_widths_with_the_mean_over_all_points(drawn):
    made = made_runs.sweep(widths=(1, 4, 16, 64))
    for key, _, arrays, _ in made.jobs:
        if arrays:
            behind = {"k=1": 60.0, "k=16": 4.0, "k=64": 1.0}.get(key.split("+")[-1], 0.0)
            arrays["elbo_40"] = np.linspace(-200, -50, 5000) - behind
    found = drawn(made, {"{dataset}_points": Drawn("point_elbos")})["mnist_points"]
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in found.axes]
    assert titles == ["A-VI, k = 1: 60.0 behind", "A-VI, k = 16: 4.0 behind", "A-VI, k = 64: 1.0 behind"]
    dots, diagonal = found.axes[1].get_lines()
    np.testing.assert_allclose(np.asarray(dots.get_xdata()) - np.asarray(dots.get_ydata()), 4.0)
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())


def test_what_has_no_rows_is_not_drawn(drawn):
    everything = {**SWEEP, "qstar": Drawn("qstar"), "toy": Drawn("toy_posteriors"), "p": (Points("encoder", "elbo"),)}
    everything |= {"g": (Gaps("split", PARTS),), "b": (Bars(("label",), PARTS),)}
    assert not drawn(made_runs.tune(), everything)


@pytest.mark.slow
def test_tables_come_before_figures_and_survive_them(tmp_path, capsys, monkeypatch):
    def fail(run, rows):
        raise ValueError("no such thing\nat all")

    monkeypatch.setitem(figures_module.drawn.DRAWN, "family_gap", fail)
    experiment = SimpleNamespace(
        TABLES=(Table(("split",), ("elbo",)), Table(("guide", "k"), ("final_elbo",), "elbos")),
        FIGURES={"family_gap": Drawn("family_gap"), "memory": Drawn("memory")},
        FINDINGS=("sweep",),
    )
    run = made_runs.sweep().save(tmp_path)
    paths = present(experiment, run)
    said = capsys.readouterr().out
    assert [path.name for path in paths] == ["memory.png", "memory.pdf"]
    assert "figure family_gap cannot be drawn: no such thing at all\n" in said
    assert said.index("the best F-VI found") < said.index("elbos") < said.index("figure family_gap")
    tell(experiment, run)
    assert "figure" not in capsys.readouterr().out


def test_an_empty_run_says_so(tmp_path, capsys):
    run = made_runs.Made("sweep").save(tmp_path)
    assert present(SimpleNamespace(TABLES=(), FIGURES={}), run) == []
    assert "has no rows yet" in capsys.readouterr().out
