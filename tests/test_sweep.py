"""The sweep as a library: what a run leaves on disk, whatever happens to it on the way."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from amortized_bayes.commands import drawing
from amortized_bayes.commands.drawing import draw_all
from amortized_bayes.commands.findings import claims, print_table, sentences
from amortized_bayes.configuration import to_mapping
from amortized_bayes.experiments import fitting, problem, sweep_run
from amortized_bayes.experiments.estimate import estimate_seconds
from amortized_bayes.experiments.sweep import PRESETS, Fit, SettingError, SweepConfig, grid, report_steps
from amortized_bayes.experiments.sweep_run import run
from amortized_bayes.results import RunFolder
from amortized_bayes.types import ROW_FIELDS

CPU = torch.device("cpu")
TINY = SweepConfig(
    dataset=("digits",),
    widths=(1, 2),
    hidden=(4,),
    latent_dim=2,
    epochs=2,
    batch_size=50,
    num_train=100,
    num_test=20,
    compile_step="off",
    elbo_draws=2,
    iwae_particles=4,
    iwae_points=10,
)
TIMES = ("seconds", "capture_seconds")


@pytest.fixture
def _unsaved(monkeypatch):
    """Make figures and do not write them: what takes the time."""
    monkeypatch.setattr(drawing, "save_figure", lambda figure, folder, name: [Path(f"{name}.png")])


@pytest.fixture(autouse=True)
def _few_visits(monkeypatch):
    monkeypatch.setattr(fitting, "FRESH_VISITS", 2)
    monkeypatch.setattr(fitting, "FRESH_REPORTS", 2)


def sweep(tmp_path, config=TINY, name="run", note="", watch=lambda _: None):
    folder = RunFolder.create(tmp_path, "sweep", to_mapping(config), {"device": "cpu"}, name)
    with folder:
        rows = list(run(config, folder, device=CPU, note=note, watch=watch))
        folder.finish()
    return folder, rows


def numbers(frame):
    """What must be equal between two runs: everything but times."""
    timed = frame["metric"].str.startswith(TIMES)
    return frame[~timed].drop(columns=["seconds"]).reset_index(drop=True)


def assert_equal(first, second):
    """Two frames of rows, equal bit for bit but for times; the order of writing is that of the run."""
    one, two = numbers(first), numbers(second)
    assert len(one) == len(two)
    for column in one:
        same = (one[column] == two[column]) | (one[column].isna() & two[column].isna())
        assert same.fillna(False).all(), column


def values(frame, metric):
    rows = frame[frame["metric"] == metric]
    widths = [None if pd.isna(k) else int(k) for k in rows["k"]]
    return dict(zip(zip(rows["guide"], widths, strict=True), rows["value"], strict=True))


def of(frame, metric, guide, k=None):
    rows = frame[(frame["metric"] == metric) & (frame["guide"] == guide)]
    return rows[rows["k"].isna() if k is None else (rows["k"] == k).fillna(False).astype(bool)]


def test_a_run_holds_every_fit_gap_and_column(tmp_path):
    folder, rows = sweep(tmp_path, note="a note")
    frame = folder.rows()
    assert tuple(frame.columns) == ROW_FIELDS
    assert len(frame) == len(rows)
    assert folder.verify() == []
    assert frame["note"].str.contains("a note").all()
    finals = frame[frame["metric"] == "final_elbo"]
    assert list(zip(finals["guide"], finals["k"].fillna(0), strict=True)) == [
        ("constant", 0),
        ("amortized", 1),
        ("amortized", 2),
        ("factorized", 0),
        ("factorized-from-amortized", 0),
    ]
    for metric in ("final_kl", "active_units", "final_iwae", "log_predictive", "final_mse_test", "num_parameters"):
        assert (frame["metric"] == metric).sum() == 5, metric
    gaps = frame[frame["metric"] == "family_gap"]
    reference = frame[frame["metric"] == "elbo_reference"]["value"].item()
    best = finals[finals["guide"].str.startswith("factorized")]["value"].max()
    assert reference == pytest.approx(best)
    np.testing.assert_allclose(gaps["value"], reference - finals["value"], atol=1e-4)
    assert set(gaps["error_over"]) == {"points"}
    assert sorted(frame[frame["metric"] == "unconverged_by"]["guide"]) == ["amortized", "factorized"]
    finished = json.loads((folder.path / "FINISHED").read_text())["sha256"]
    assert {"config.yaml", "rows.jsonl", "summary.csv"} <= set(finished)
    summary = (folder.path / "summary.csv").read_text().splitlines()[0]
    assert summary == ",".join(ROW_FIELDS)


@pytest.mark.parametrize("step", ["off", pytest.param("replay", marks=pytest.mark.slow)])
def test_two_runs_of_a_seed_are_equal_to_the_bit_and_another_seed_is_not(tmp_path, step):
    config = replace(TINY, widths=(2,), compile_step=step, epochs=1)
    first, second = (sweep(tmp_path, config, name)[0].rows() for name in ("a", "b"))
    assert_equal(first, second)
    other = sweep(tmp_path, replace(config, seeds=(1,)), "c")[0].rows()
    assert values(other, "final_elbo") != values(first, "final_elbo")


def test_an_interrupted_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    whole = sweep(tmp_path, name="whole")[0]

    def stop(progress):
        if progress.fit.guide == "amortized" and progress.fit.k == 2 and progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, name="cut", watch=stop)
    folder = RunFolder.open(tmp_path / "sweep" / "cut")
    assert folder.done() == {"digits_seed0_constant", "digits_seed0_amortized-k1"}
    kept = (folder.path / "rows.jsonl").read_bytes()
    rows_kept = folder.rows()
    assert len(rows_kept) < len(folder.rows(unfinished=True))
    with folder:
        again = list(run(TINY, folder, device=CPU))
        folder.finish()
    assert {(r.guide, r.k) for r in again if r.metric == "final_elbo"} == {
        ("amortized", 2),
        ("factorized", None),
        ("factorized-from-amortized", None),
    }
    lines = (folder.path / "rows.jsonl").read_bytes()
    assert lines.startswith(b"".join(kept.splitlines(keepends=True)[: len(rows_kept)]))
    assert_equal(folder.rows(), whole.rows())


@pytest.mark.parametrize("where", ["doubled", "comparison"])
def test_a_run_cut_after_its_fits_goes_on(tmp_path, monkeypatch, where):
    config = replace(TINY, widths=(1,), epochs=1)
    whole = sweep(tmp_path, config, "whole")[0]

    def stop(progress):
        if progress.doubled and where == "doubled" and progress.fit.guide == "factorized":
            raise KeyboardInterrupt

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "comparison":
            patch.setattr(sweep_run, "compare_fits", cut)
        with pytest.raises(KeyboardInterrupt):
            sweep(tmp_path, config, "cut", watch=stop)
    folder = RunFolder.open(tmp_path / "sweep" / "cut")
    with folder:
        again = list(run(config, folder, device=CPU))
    assert not [r for r in again if r.metric == "final_elbo"]
    assert_equal(folder.rows(), whole.rows())


@pytest.mark.usefixtures("_unsaved")
def test_a_family_that_diverges_is_recorded_and_the_others_go_on(tmp_path):
    config = replace(TINY, widths=(1,), rates_constant=(1e6, 1e6), epochs=3)
    folder, rows = sweep(tmp_path, config)
    failed = [row for row in rows if row.status == "failed"]
    assert [(r.guide, r.metric, r.value) for r in failed] == [("constant", "failure", None)]
    assert failed[0].step > 0
    assert failed[0].note
    frame = folder.rows()
    assert set(values(frame, "final_elbo")) == {
        ("amortized", 1),
        ("factorized", None),
        ("factorized-from-amortized", None),
    }
    # a failure belongs to its fit: figures match the two by their columns, the model among them
    assert frame[frame["guide"] == "constant"]["model"].nunique() == 1
    print_table(frame)
    assert any("constant VI failed at step" in s for s in sentences(frame))
    assert draw_all(folder, frame, tmp_path / "figures")


def poison(monkeypatch, is_bad):
    """Make the guides of some fits diverge at once."""
    build = problem.build_guide

    def poisoned(config, data, sites, fit, start=None):
        guide = build(config, data, sites, fit, start)
        if is_bad(fit):
            with torch.no_grad():
                for parameter in guide.parameters():
                    parameter.fill_(1e4)
        return guide

    for module in (fitting, problem):
        monkeypatch.setattr(module, "build_guide", poisoned)


def test_a_poisoned_width_fails_and_no_other(tmp_path, monkeypatch):
    poison(monkeypatch, lambda fit: fit.k == 2)
    folder, _ = sweep(tmp_path, replace(TINY, epochs=1))
    frame = folder.rows()
    failure = frame[frame["status"] == "failed"]
    assert failure["k"].tolist() == [2]
    assert failure["step"].item() == 1
    assert ("amortized", 1) in values(frame, "family_gap")
    assert ("amortized", 2) not in values(frame, "family_gap")


def test_without_amortized_fits_there_is_no_fvi_from_them(tmp_path, monkeypatch):
    poison(monkeypatch, lambda fit: fit.guide == "amortized")
    folder, _ = sweep(tmp_path, replace(TINY, epochs=1))
    frame = folder.rows()
    notes = of(frame, "failure", "factorized-from-amortized")["note"]
    assert notes.tolist() == ["no amortized fit succeeded to start from"]
    assert set(values(frame, "family_gap")) == {("constant", None), ("factorized", None)}
    assert not any("nan" in s for s in sentences(frame) if "failed" not in s)


@pytest.mark.usefixtures("_unsaved")
def test_when_all_fail_there_is_no_gap_and_no_crash(tmp_path, monkeypatch):
    poison(monkeypatch, lambda fit: True)
    folder, _ = sweep(tmp_path, replace(TINY, epochs=1))
    frame = folder.rows()
    assert (frame["metric"] == "failure").sum() == 5
    assert not values(frame, "family_gap")
    print_table(frame)
    assert list(sentences(frame))
    assert list(claims(frame))
    draw_all(folder, frame, tmp_path / "figures")


def test_a_value_that_is_not_finite_fails_its_fit_and_saves_nothing(tmp_path, monkeypatch):
    held_out = fitting.measure.held_out_measures

    def broken(config, model, guide, *data):
        found = held_out(config, model, guide, *data)
        if type(guide).__name__ == "Constant":
            found["log_predictive"] = fitting.Measure(float("-inf"))
        return found

    monkeypatch.setattr(fitting.measure, "held_out_measures", broken)
    folder, _ = sweep(tmp_path, replace(TINY, widths=(1,), epochs=1))
    frame = folder.rows()
    assert of(frame, "failure", "constant")["note"].item().startswith("log_predictive of -inf")
    assert ("constant", None) not in values(frame, "family_gap")
    assert not (folder.path / "arrays" / "digits_seed0_constant.npz").exists()


def test_a_continuation_that_diverges_takes_nothing_from_its_fit(tmp_path, monkeypatch):
    def diverge(config, problem, fitted, folder, watch):
        raise fitting.Divergence(7, float("inf"))
        yield

    monkeypatch.setattr(sweep_run, "go_on", diverge)
    folder, _ = sweep(tmp_path, replace(TINY, widths=(1,), epochs=1))
    frame = folder.rows()
    assert not (frame["status"] == "failed").any()
    assert len(values(frame, "family_gap")) == 4
    assert any("trained as long again it diverged" in s for s in sentences(frame))


def test_the_estimate_survives_a_widest_encoder_that_diverges():
    text = estimate_seconds(replace(TINY, rates_amortized=(1e6, 1e6)), CPU, None, 5)
    assert text.startswith("time: about")


@pytest.mark.parametrize(
    "changes",
    [
        {"likelihood": "gaussian"},
        {"likelihood": "gaussian", "gaussian_scale": "learned"},
        {"decoder": "point"},
        {"init": "published"},
        {"depth": 0},
        {"depth": 2},
        {"hidden": ()},
        {"batch_size": 5_000},
        {"elbo_draws": 1, "iwae_points": 1, "num_test": 1, "iwae_particles": 1},
        pytest.param({"num_train": 1}, marks=pytest.mark.filterwarnings("ignore:var")),
        {"weight_prior": "standard", "local_reparametrization": False},
        pytest.param({"compile_step": "replay"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_setting_runs(tmp_path, changes):
    folder, _ = sweep(tmp_path, replace(TINY, widths=(2,), epochs=1, **changes))
    frame = folder.rows()
    assert len(values(frame, "final_elbo")) == 4, frame[frame["status"] == "failed"]["note"].tolist()
    assert len(values(frame, "family_gap")) == 4


def test_vacuous_fits_are_marked_in_every_final_row(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting.measure, "VACUOUS_KL", 1e9)
    folder, rows = sweep(tmp_path, replace(TINY, widths=(1,), epochs=1))
    assert {row.status for row in rows} == {"vacuous"}
    frame = folder.rows()
    assert any("vacuous" in s and "constant VI" in s for s in sentences(frame))


def test_latents_that_carry_nothing_are_called_vacuous():
    for kl, expected in ((0.0, True), (0.999, True), (1.0, False), (12.0, False), (None, False)):
        assert fitting.measure.vacuous({"final_kl": fitting.Measure(kl)}) is expected


def test_several_seeds_share_nothing_but_the_data_set(tmp_path):
    folder, _ = sweep(tmp_path, replace(TINY, widths=(1,), epochs=1, seeds=(0, 3)))
    frame = folder.rows()
    assert frame[frame["metric"] == "elbo_reference"]["seed"].tolist() == [0, 3]
    assert frame[frame["metric"] == "final_elbo"]["value"].nunique() == 8
    assert any("± over seeds" in s for s in sentences(frame))


@pytest.mark.usefixtures("_unsaved")
@pytest.mark.parametrize("shape", [(40, 7), (40, 9), (40, 3, 4)], ids=["vectors", "square", "images"])
def test_arrays_of_the_users_go_through_to_figures(tmp_path, shape):
    path = tmp_path / "a very long folder name, with spaces" / ("x" * 60) / "my images.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, train=np.random.default_rng(0).random(shape, dtype=np.float32))
    folder, _ = sweep(tmp_path, replace(TINY, dataset=(str(path),), widths=(1,), epochs=1))
    frame = folder.rows()
    assert set(frame["dataset"]) == {"my images.npz"}
    assert len(values(frame, "family_gap")) == 4
    drawn = {p.name for p in draw_all(folder, frame, tmp_path / "figures") if p.suffix == ".png"}
    assert {"my images_elbo.png", "family_gap.png", "memory.png"} <= drawn
    assert ("re1.png" in drawn) == (shape[1:] != (7,))


def test_keys_are_names_of_files_and_differ():
    paths = ("a/b.npz", "a-b.npz", "/a/b.npz", "b.npy", "ü.npz", "digits", "digits.npz", "mnist.npz")
    keys = [Fit(path, 0, "amortized", 4).key for path in paths]
    assert len(set(keys)) == len(keys)
    assert all(key.isascii() and key[0].isalnum() and len(key) < 120 for key in keys)
    assert Fit("fashion-mnist", 1, "factorized").key == "fashion-mnist_seed1_factorized"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (0,)}, "expected --widths of 1 or more, got [0]"),
        ({"widths": ()}, "expected --widths with one or more different values, got []"),
        ({"seeds": (1, 1)}, "expected --seeds with one or more different values, got [1, 1]"),
        ({"seeds": (-1,)}, "expected --seeds of 0 or more, got [-1]"),
        ({"epochs": -1}, "expected --epochs of 1 or more, got -1"),
        ({"depth": -1}, "expected --depth of 0 or more, got -1"),
        ({"rates_constant": (1e-3,)}, "expected --rates-constant with two learning rates above 0, got [0.001]"),
        ({"rates_amortized": (float("nan"), 1)}, "expected --rates-amortized with two learning rates above 0"),
        ({"dataset": ("a/x.npy", "b/x.npz")}, "expected --dataset with files of different names"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(SettingError) as refused:
        replace(TINY, **changes)
    assert str(refused.value).startswith(message)


def test_the_grid_ends_with_fvi_from_avi_and_presets_are_as_published():
    fits = list(grid(replace(TINY, seeds=(0, 1))))
    assert len(fits) == len({f.key for f in fits}) == 10
    assert [f.guide for f in fits[:5]] == [
        *("constant", "amortized", "amortized", "factorized", "factorized-from-amortized")
    ]
    paper = PRESETS["paper"]
    assert (paper.preset, paper.epochs, len(paper.seeds), paper.latent_dim) == ("paper", 5_000, 5, 64)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 100, 12_345])
def test_reports_are_at_rising_steps_from_first_to_last(num_steps):
    steps = report_steps(num_steps)
    assert steps[0] == 1
    assert steps[-1] == num_steps
    assert steps == sorted(set(steps))
    assert len(steps) <= 28
