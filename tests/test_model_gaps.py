"""``model-gaps``: a model's gaps rest on its own family's best q, at its own training points; failures are recorded."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from wing import BOUNDS, cut, go, loaded, one, only, resume, stop_at, values

from amortized_bayes.configuration import SettingError
from amortized_bayes.divergence import Divergence
from amortized_bayes.evaluation.bounds import elbo
from amortized_bayes.experiments import bounds
from amortized_bayes.experiments.bounds import choose, gaps_of
from amortized_bayes.experiments.model_gaps import PRESETS, Config, models
from amortized_bayes.experiments.settings import model_factors
from amortized_bayes.experiments.spec import job_key
from amortized_bayes.results import RunFolder, list_runs

FEW = Config(
    dataset=("digits",),
    families=("gaussian", "planar"),
    encoders=("small",),
    annealing=(False,),
    epochs=2,
    learning_rate=1e-2,
    points=6,
    bounds=replace(BOUNDS, best_families=("gaussian", "planar", "auxiliary")),
)
PLAIN = replace(FEW, bounds=replace(BOUNDS, best_families=("gaussian", "planar")))
GAUSSIAN, PLANAR = (job_key(model_factors(model)) for model in models(FEW))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return go("model-gaps", FEW, tmp_path_factory.mktemp("model-gaps"))


def test_gaps_rest_on_the_best_q_of_the_models_own_family(run):
    rows = run.rows()
    assert run.done() == {GAUSSIAN: "ok", PLANAR: "ok"}
    for key, family in ((GAUSSIAN, "gaussian"), (PLANAR, "planar")):
        arrays = run.load_arrays(key)
        own = arrays[f"elbo_star_{family}"]
        log_p = max((arrays["log_p_lower"], arrays["iwae"]), key=np.mean)
        expected = {
            "approximation_gap": log_p - own,
            "amortization_gap": own - arrays["elbo"],
            "inference_gap": log_p - arrays["elbo"],
        }
        for name, gap in expected.items():
            row = one(rows, name, family=family)
            assert row["value"] == pytest.approx(gap.mean())
            assert row["standard_error"] == pytest.approx(gap.std(ddof=1) / math.sqrt(6))
            np.testing.assert_allclose(arrays[name], gap)
    stars = [run.load_arrays(PLANAR)[f"elbo_star_{name}"] for name in ("gaussian", "planar", "auxiliary")]
    assert not np.allclose(stars[0], stars[1])  # or the test could not tell
    assert not np.allclose(stars[1], stars[2])


def test_rows_hold_the_best_q_of_every_family_that_was_searched(run):
    for key, family in ((GAUSSIAN, "gaussian"), (PLANAR, "planar")):
        stars = only(run.rows(), "elbo_star", family=family)
        assert stars["searched"].tolist() == ["gaussian", "planar", "auxiliary"]
        for searched, value in zip(stars["searched"], stars["value"], strict=True):
            assert value == pytest.approx(run.load_arrays(key)[f"elbo_star_{searched}"].mean())
        assert len(only(run.rows(), "certificate_gap", family=family)) == 1


@pytest.mark.slow
def test_training_points_are_measured(run):
    """At the places in the arrays, the training images have the ELBO beside them; test images do not."""
    for info in list_runs(run.path.parents[1]):
        if info.experiment == "train":
            trained = loaded(RunFolder.open(info.path))
            arrays = run.load_arrays(job_key(model_factors(trained.config)))
            for split, same in (("train", True), ("test", False)):
                images = getattr(trained.data, split)
                x = images[torch.from_numpy(arrays["places"] % len(images))].float()
                again = elbo(trained.model, trained.guide, x, num_draws=200)
                apart = (arrays["elbo"] - again.value.numpy()) / np.hypot(
                    arrays["elbo_error"], again.standard_error.numpy()
                )
                assert (np.abs(apart).max() < 5) == same, split


def test_models_that_it_trains_are_runs_of_train_for_it(run):
    parts = [info for info in list_runs(run.path.parents[1]) if info.experiment == "train"]
    assert [info.status for info in parts] == ["finished", "finished"]
    assert {info.part_of for info in parts} == {f"model-gaps/{run.name}"}


@pytest.mark.slow
def test_a_model_that_diverges_is_recorded_and_the_rest_go_on(tmp_path, monkeypatch):
    real = bounds.shared_bounds

    def poisoned(trained, *rest):
        if trained.config.family == "gaussian":
            raise Divergence(7, math.nan)
        return real(trained, *rest)

    monkeypatch.setattr(bounds, "shared_bounds", poisoned)
    folder = go("model-gaps", PLAIN, tmp_path)
    rows = folder.rows()
    failed = rows[rows["status"] == "failed"]
    assert failed[["family", "metric", "step"]].to_numpy().tolist() == [["gaussian", "failure", 7]]
    assert folder.done() == {GAUSSIAN: "failed", PLANAR: "ok"}
    assert len(only(rows, "inference_gap", family="planar")) == 1
    assert folder.finished


@pytest.mark.slow
def test_resuming_keeps_finished_models(tmp_path, monkeypatch):
    whole = go("model-gaps", PLAIN, tmp_path / "whole")
    folder = cut("model-gaps", PLAIN, tmp_path, stop_at("ais", job="2/2"))
    assert folder.done() == {GAUSSIAN: "ok"}
    measured = []
    real = bounds.shared_bounds
    monkeypatch.setattr(bounds, "shared_bounds", lambda *a: measured.append(a[0].config.family) or real(*a))
    trained = len(list_runs(tmp_path))
    resume("model-gaps", tmp_path)
    assert measured == ["planar"]
    assert len(list_runs(tmp_path)) == trained
    assert values(folder.rows()) == values(whole.rows())


def test_annealed_models_anneal_the_papers_part():
    found = models(replace(FEW, annealing=(True, False), epochs=60))
    assert [m.entropy_annealing for m in found] == [7, 0, 7, 0]
    assert [m.family for m in found] == ["gaussian", "gaussian", "planar", "planar"]
    assert all(m.kl_warm_up == 0 for m in found)
    (paper, *_) = models(PRESETS["paper"])
    assert paper.entropy_annealing == 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"families": ()}, "--families"),
        ({"points": 1}, "--points of 2 or more, got 1"),
        ({"annealing": (True, True)}, "--annealing"),
        ({"learning_rate": -1.0}, "--learning-rate above 0"),
        ({"families": ("spline",)}, "--families among those of --best-families .*, got 'spline'"),
        ({"families": ("realnvp-contextual",)}, "--families among those of --best-families"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(SettingError, match=message):
        replace(FEW, **change)


# What gaps of points are ----------------------------------------------------------------------------------------------


def test_gaps_pair_points_and_do_not_clip():
    found = {
        "log_p_lower": [-5.0, -7.0],
        "iwae": [-6.0, -6.5],
        "elbo_star_gaussian": [-6.0, -6.0],
        "elbo": [-6.5, -5.5],
    }
    arrays = {name: np.array(v) for name, v in found.items()} | {f"{name}_error": np.full(2, 0.1) for name in found}
    gaps = gaps_of(arrays, "gaussian")
    np.testing.assert_allclose(gaps["approximation_gap"].value, [1.0, -1.0])
    np.testing.assert_allclose(gaps["amortization_gap"].value, [0.5, -0.5])
    np.testing.assert_allclose(gaps["inference_gap"].value, [1.5, -1.5])
    assert gaps["approximation_gap"].num_flagged == 1


def test_a_contextual_flow_is_held_against_the_best_of_its_kind():
    arrays = {name: np.array([value]) for name, value in
              {"log_p_lower": -5.0, "iwae": -6.0, "elbo": -9.0, "elbo_star_gaussian": -8.0, "elbo_star_realnvp": -7.0}
              .items()}  # fmt: skip
    arrays |= {f"{name}_error": np.array([0.1]) for name in arrays}
    assert gaps_of(arrays, "realnvp-contextual")["amortization_gap"].mean == pytest.approx(2.0)


def test_points_are_chosen_by_seed():
    images = torch.zeros(50, 3)
    assert len(set(choose(images, 10, 0))) == 10
    np.testing.assert_array_equal(choose(images, 10, 0), choose(images, 10, 0))
    assert list(choose(images, 10, 0)) != list(choose(images, 10, 1))
    assert list(choose(images, 99, 0)) == list(range(50))
