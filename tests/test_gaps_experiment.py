"""``gaps``: rows, arrays and reports agree, belong to the points that they name, and survive an interruption."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from wing import TINY, cut, go, loaded, one, only, resume, stop_at, values

from amortized_bayes.diagnosis import Diagnosis
from amortized_bayes.evaluation.bounds import elbo
from amortized_bayes.experiments.bounds import GAPS, class_rows
from amortized_bayes.experiments.gaps import Config
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.results import RunFolder, find_run

SPLITS = ("train", "test")
FEW = Config(
    points=16,
    particles=50,
    restarts=2,
    local_steps=10,
    chains=2,
    temperatures=10,
    max_temperatures=10,
    leapfrog=1,
    simulated=2,
)


@pytest.fixture(scope="module")
def run(trained_results, tmp_path_factory):
    out = tmp_path_factory.mktemp("gaps") / "results"
    shutil.copytree(trained_results, out)
    return go("gaps", FEW, out)


@pytest.fixture(scope="module")
def model(trained_results):
    return loaded(RunFolder.open(find_run(trained_results, "latest", "train")))


@pytest.mark.slow
def test_extreme_points_are_kept_as_images(run, model):
    for split in ("train", "test"):
        arrays = run.load_arrays(key_of(run, split))
        for name in ("largest", "smallest"):
            pictures = arrays[f"picture_{name}_gap"]
            assert pictures.shape[1:] == (8, 8)
            assert arrays[f"picture_{name}_gap_reconstruction"].shape == pictures.shape
            assert 0 < arrays[f"picture_{name}_gap_reconstruction"].std() < 0.5
        worst = arrays["places"][arrays["inference_gap"].argmax()]
        pixels = getattr(model.data, split)[int(worst)].reshape(8, 8)
        assert (arrays["picture_largest_gap"][0] == pixels.numpy()).all()


def key_of(folder, split):
    (key,) = (key for key in folder.done() if key.endswith(f"split={split}"))
    return key


def test_rows_arrays_and_reports_agree(run, model):
    rows = run.rows()
    assert set(run.done().values()) == {"ok"}
    assert run.verify() == []
    for split in SPLITS:
        arrays = run.load_arrays(key_of(run, split))
        places = arrays["places"]
        assert len(places) == len(np.unique(places)) == 16
        assert places.max() < len(getattr(model.data, split))
        report = Diagnosis.load(run.path / f"diagnosis_{split}.safetensors")
        assert report.num_points == 16
        points = report.to_frame()
        points = points[points["kind"] == "real"]
        for name in (*GAPS, "elbo", "elbo_star", "iwae", "log_p_lower", "k_hat", "elbo_error"):
            np.testing.assert_allclose(arrays[name], points[name], err_msg=name)
        whole = arrays["approximation_gap"] + arrays["amortization_gap"]
        np.testing.assert_allclose(arrays["inference_gap"], whole, atol=1e-5)
        np.testing.assert_allclose(arrays["amortization_gap"], arrays["elbo_star"] - arrays["elbo"], atol=1e-5)
        for name in (*GAPS, "elbo", "elbo_star"):
            row = one(rows, name, split=split, label=None)
            assert row["value"] == pytest.approx(arrays[name].mean(), abs=1e-5)
            assert row["standard_error"] == pytest.approx(arrays[name].std(ddof=1) / 4, rel=1e-4)
            assert row["error_over"] == "points"
        assert one(rows, "doubtful", split=split)["value"] == pytest.approx(report.doubtful)
        assert one(rows, "inference_gap", split=split, label=None)["note"] == report.verdict.words != ""
        assert {"certificate_gap", "residual", "acceptance"} <= set(rows[rows["split"] == split]["metric"])


def test_rows_say_which_model_was_measured(run):
    rows = run.rows()
    for name, value in {"dataset": "digits", "family": "gaussian", "encoder": "small", "seed": 0}.items():
        assert set(rows[name]) == {value}
    assert not rows["annealed"].any()
    assert set(rows["split"]) == set(SPLITS)


@pytest.mark.slow
def test_points_are_those_that_were_diagnosed(run, model):
    """The ELBO in the arrays belongs to the images at the places beside it, of its split, with their labels."""
    for split in SPLITS:
        arrays = run.load_arrays(key_of(run, split))
        images = getattr(model.data, split)
        x = images[torch.from_numpy(arrays["places"])].float()
        again = elbo(model.model, model.guide, x, num_draws=300)
        error = np.hypot(arrays["elbo_error"], again.standard_error.numpy())
        assert (np.abs(arrays["elbo"] - again.value.numpy()) / error).max() < 5
        assert (np.abs(arrays["elbo"] - again.value.flip(0).numpy()) / error).max() > 10
        labels = getattr(model.data.source, split).labels
        np.testing.assert_array_equal(arrays["labels"], labels[arrays["places"]])


def test_rows_of_classes_are_means_by_hand(run):
    rows = run.rows()
    seen = 0
    for split in SPLITS:
        arrays = run.load_arrays(key_of(run, split))
        labels, counts = np.unique(arrays["labels"], return_counts=True)
        of_classes = rows[(rows["split"] == split) & rows["label"].notna()]
        assert len(of_classes) == 3 * (counts > 1).sum()
        for label in labels[counts > 1]:
            for name in GAPS:
                here = [float(v) for v, c in zip(arrays[name], arrays["labels"], strict=True) if c == label]
                mean = sum(here) / len(here)
                variance = sum((v - mean) ** 2 for v in here) / (len(here) - 1)
                row = one(of_classes, name, label=label)
                assert row["value"] == pytest.approx(mean)
                assert row["standard_error"] == pytest.approx((variance / len(here)) ** 0.5)
                seen += 1
    assert seen >= 12


def test_classes_without_labels_and_of_single_points():
    arrays = {name: np.array([1.0, 3.0, 7.0]) for name in GAPS}
    assert not list(class_rows(arrays, None))
    found = [(r.metric, r.value, r.error, r.factors) for r in class_rows(arrays, np.array([4, 4, 2], dtype=np.uint8))]
    assert found == [(name, 2.0, 1.0, {"label": 4}) for name in GAPS]


def test_the_summary_keeps_splits_and_classes(run):
    summary = pd.read_csv(run.path / "summary.csv")
    assert len(summary) == len(run.rows())
    assert len(summary[(summary["metric"] == "inference_gap") & summary["label"].isna()]) == 2


@pytest.mark.slow
def test_a_run_whose_folder_was_moved_resumes_with_the_split_that_is_left(results, run, monkeypatch):
    folder = cut("gaps", FEW, results, stop_at("test q*"))
    assert list(folder.done()) == [key_of(run, "train")]
    kept = (folder.path / "rows.jsonl").read_bytes()
    before = (folder.path / "diagnosis_train.safetensors").read_bytes()
    measured = []
    watch = Lab.watch
    monkeypatch.setattr(
        Lab, "watch", lambda self, stage, *a: measured.append(stage[:5].strip()) or watch(self, stage, *a)
    )
    moved = results.parent / "elsewhere" / "kept"
    moved.parent.mkdir()
    results.rename(moved)
    folder = resume("gaps", moved)
    assert folder.path.is_relative_to(moved)
    assert folder.finished
    assert set(measured) == {"test"}
    assert (folder.path / "rows.jsonl").read_bytes().startswith(kept)
    assert (folder.path / "diagnosis_train.safetensors").read_bytes() == before
    assert values(folder.rows()) == values(run.rows())
    assert not results.exists()


def test_other_seeds_measure_other_points_and_splits_can_be_chosen(results, run):
    few = replace(FEW, splits=("test",), seed=1, points=10)
    other = go("gaps", few, results)
    assert set(other.rows()["split"]) == {"test"}
    places = set(other.load_arrays(key_of(other, "test"))["places"])
    assert not places <= set(run.load_arrays(key_of(run, "test"))["places"])
    everything = go("gaps", replace(few, points=1_000, chains=2, particles=25), results)
    assert len(everything.load_arrays(key_of(everything, "test"))["places"]) == 50  # all that there are


@pytest.mark.slow
def test_a_model_whose_weights_are_random_is_measured_too(tmp_path):
    go("train", replace(TINY, decoder="bayesian", epochs=1, hidden=(4,)), tmp_path)
    folder = go("gaps", replace(FEW, points=4, shared_draws=2, splits=("test",)), tmp_path)
    rows = folder.rows()
    assert set(rows["decoder"]) == {"bayesian"}
    assert Diagnosis.load(folder.path / "diagnosis_test.safetensors").num_shared == 2
    assert len(only(rows, "inference_gap", label=None)) == 1
