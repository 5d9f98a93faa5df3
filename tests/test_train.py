"""What a run of ``train`` leaves: rows, weights, a model that has the ELBO of its rows, or a recorded failure."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from wing import CPU, TINY, assert_same_weights, go, loaded, one, only, resume, stop_at, values, weights

from amortized_bayes.configuration import to_mapping
from amortized_bayes.evaluation.bounds import elbo
from amortized_bayes.experiments import training
from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.setup import build_vae
from amortized_bayes.experiments.trained import TrainingFailed, find_trained, model_key
from amortized_bayes.results import RunFolder, find_run, list_runs

FINISHED = ("finished",)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return go("train", TINY, tmp_path_factory.mktemp("results"))


def test_a_run_holds_rows_weights_and_its_mark(run):
    rows = run.rows()
    assert set(rows["status"]) <= {"ok", "vacuous"}  # after so few steps no latent may be active
    assert set(rows["dataset"]) == {"digits"}
    assert not rows["annealed"].any()
    for metric, splits in {
        "elbo": ["test", "train"],
        "kl": ["train"],
        "final_elbo": ["test", "train"],
        "final_kl": ["test", "train"],
        "final_iwae": ["train"],
    }.items():
        assert sorted(set(only(rows, metric)["split"])) == splits
    assert {"active_units", "seconds_per_step"} == set(rows[rows["split"].isna()]["metric"])
    assert len(only(rows, "final_elbo")) == 2
    steps = only(rows, "elbo", split="train")["step"].tolist()
    assert steps == list(range(1, 9))  # fewer steps than evaluations: all of them
    names = {f"model.network.{i}.{what}" for i in (0, 1) for what in ("weight", "bias")}
    names |= {f"guide.encoder.{i}.{what}" for i in (0, 1) for what in ("weight", "bias")}
    assert set(weights(run)) == names
    assert weights(run)["guide.encoder.1.weight"].shape == (6, 100)
    assert run.done() == {model_key(TINY): "ok"}
    assert run.verify() == []
    finished = json.loads((run.path / "FINISHED").read_text())["sha256"]
    assert {"config.yaml", "rows.jsonl", "summary.csv", f"checkpoints/{model_key(TINY)}.safetensors"} <= set(finished)
    assert [(info.status, info.num_jobs) for info in list_runs(run.path.parents[1])] == [("finished", 1)]
    assert list(run.environment()["data"]) == ["digits"]


def test_the_summary_keeps_every_split(run):
    summary = pd.read_csv(run.path / "summary.csv")
    assert sorted(summary[summary["metric"] == "final_elbo"]["split"]) == ["test", "train"]
    assert summary[summary["metric"] == "elbo"]["step"].tolist() == [8, 8]


def spread_of_elbo(config, model, guide, images):
    """Mean over points of single-draw ELBOs: its mean over draws, and its standard deviation."""
    local = config.decoder == "bayesian" and config.architecture == "dense"
    options = {"num_draws": 1, "num_data": 200, "local_reparametrization": local}
    index = torch.arange(len(images))
    found = torch.stack([elbo(model, guide, images.float(), index, **options).value.mean() for _ in range(30)])
    return found.mean().item(), found.std().item()


def check_pictures(folder, found):
    """Test images as they are, and probabilities or means of their pixels."""
    arrays = folder.load_arrays(model_key(found.config))
    original, reconstruction, prior = (
        arrays[f"picture_{name}"] for name in ("original", "reconstruction", "draw_from_the_prior")
    )
    assert (original == found.data.test[:10].reshape(10, 8, 8).numpy()).all()
    for seen in (reconstruction, prior):
        assert seen.shape == (10, 8, 8)
        assert np.isfinite(seen).all()
        assert found.config.likelihood == "gaussian" or (seen.min() >= 0 and seen.max() <= 1)
    nearer = np.square(reconstruction - original).sum() < np.square(prior - original).sum()
    assert nearer or found.config.epochs < 5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network": "convolutional", "epochs": 1},
        {"decoder": "bayesian", "epochs": 1},
        {"decoder": "bayesian", "network": "convolutional", "epochs": 1},
        {"encoder": "linear", "binarization": "dynamic", "epochs": 1},
        {"schedule": "burda", "binarization": "threshold", "epochs": 1},
        {"likelihood": "gaussian", "gaussian_scale": "learned", "epochs": 1},
        {"family": "realnvp-contextual", "epochs": 1},
    ],
    ids=str,
)
@pytest.mark.slow_cases(
    "{'decoder': 'bayesian', 'epochs': 1}",
    "{'decoder': 'bayesian', 'network': 'convolutional', 'epochs': 1}",
    "{'encoder': 'linear', 'binarization': 'dynamic', 'epochs': 1}",
    "{'family': 'realnvp-contextual', 'epochs': 1}",
    "{'likelihood': 'gaussian', 'gaussian_scale': 'learned', 'epochs': 1}",
    "{'network': 'convolutional', 'epochs': 1}",
    "{'schedule': 'burda', 'binarization': 'threshold', 'epochs': 1}",
)
def test_a_loaded_model_has_the_elbo_of_the_final_row(tmp_path, changes):
    config = replace(TINY, learning_rate=5e-3, **changes)
    folder = go("train", config, tmp_path)
    found = loaded(folder)
    assert found.config == config
    assert not any(p.requires_grad for p in (*found.model.parameters(), *found.guide.parameters()))
    for split in ("train", "test") if config.decoder == "point" else ("train",):
        final = one(folder.rows(), "final_elbo", split=split)["value"]
        mean, spread = spread_of_elbo(config, found.model, found.guide, getattr(found.data, split))
        assert abs(final - mean) < 4.5 * spread * (1 + 1 / 30) ** 0.5, split
    check_pictures(folder, found)
    fresh = build_vae(config, found.data)  # and a model that is not the trained one is found out
    final = one(folder.rows(), "final_elbo", split="train")["value"]
    mean, spread = spread_of_elbo(config, *fresh, found.data.train)
    assert abs(final - mean) > 10 * spread


def test_two_runs_of_a_seed_are_equal_to_the_bit_and_another_seed_is_not(run, tmp_path):
    again = go("train", TINY, tmp_path)
    assert values(again.rows()) == values(run.rows())
    assert_same_weights(again, run)
    other = go("train", replace(TINY, seed=1), tmp_path)
    assert not np.array_equal(weights(other)["model.network.0.weight"], weights(run)["model.network.0.weight"])


def test_a_vacuous_model_says_so(tmp_path):
    folder = go("train", replace(TINY, epochs=1, latent_dim=1, learning_rate=1e-6), tmp_path)
    rows = folder.rows()
    assert one(rows, "final_kl", split="train")["value"] < 1
    assert set(rows[rows["metric"].str.startswith("final")]["status"]) == {"vacuous"}


# Which model is meant -------------------------------------------------------------------------------------------------


def test_a_trained_model_is_found_by_its_settings(tmp_path, run):
    out = run.path.parents[1]
    found = find_trained(out, TINY, FINISHED)
    assert found is not None
    assert found.path == run.path
    assert find_trained(out, replace(TINY, num_flows=5), FINISHED) is not None  # which a Gaussian has none of
    for changes in ({"seed": 1}, {"latent_dim": 4}, {"hidden": (16, 16)}, {"epochs": 3}, {"decoder": "bayesian"}):
        assert find_trained(out, replace(TINY, **changes), FINISHED) is None
    assert find_trained(tmp_path, TINY, FINISHED) is None


def test_of_several_the_latest_that_finished_is_taken(tmp_path):
    short = replace(TINY, epochs=1)
    first, later = go("train", short, tmp_path), go("train", short, tmp_path)
    RunFolder.create(tmp_path, "train", to_mapping(short), {}, "unfinished")
    found = find_trained(tmp_path, short, FINISHED)
    assert found is not None
    assert found.path == later.path
    (later.path / "config.yaml").write_text("latent_dim: many")  # it is damaged
    found = find_trained(tmp_path, short, FINISHED)
    assert found is not None
    assert found.path == first.path


def test_a_model_of_other_data_is_passed_over(tmp_path, run):
    out = run.path.parents[1]
    sums = run.environment()["data"]
    assert find_trained(out, TINY, FINISHED, sums) is not None
    others = {name: dict.fromkeys(files, "0" * 64) for name, files in sums.items()}
    assert find_trained(out, TINY, FINISHED, others) is None  # it is trained anew


# Failures -------------------------------------------------------------------------------------------------------------


def failure_of(folder):
    assert folder.finished
    assert folder.verify() == []
    assert set(folder.done().values()) == {"failed"}
    (failure,) = (row for _, row in only(folder.rows(), "failure").iterrows())
    assert failure["status"] == "failed"
    assert np.isnan(failure["value"])
    return failure


def test_a_rate_that_diverges_is_a_failure_that_is_found_again(tmp_path):
    config = replace(TINY, learning_rate=1e6, epochs=40)  # evaluations come after the loss was seen
    folder = go("train", config, tmp_path)
    failure = failure_of(folder)
    assert failure["step"] == 2
    assert failure["note"].startswith("loss of ")
    assert [info.status for info in list_runs(tmp_path)] == ["failed"]
    assert find_trained(tmp_path, config, FINISHED) is None
    with pytest.raises(TrainingFailed, match=r"training of .* failed: loss of ") as stop:
        loaded(folder)
    assert stop.value.step == 2
    assert Lab(tmp_path, CPU).find(config) is not None  # it is not trained anew to fail again
    with pytest.raises(ValueError, match="expected a finished run of train"):
        find_run(tmp_path, "latest", "train", FINISHED)


def test_an_evaluation_that_is_not_finite_is_a_failure(tmp_path):
    failure_of(go("train", replace(TINY, learning_rate=1e6), tmp_path))  # eight steps, an evaluation after each


def test_weights_that_are_not_finite_are_a_failure(tmp_path, monkeypatch):
    made = []

    def build(*arguments):
        made.append(build_vae(*arguments))
        return made[-1]

    def spoil(job, stage, done):
        if done == 41:
            with torch.no_grad():
                next(made[-1][1].parameters()).fill_(float("nan"))

    monkeypatch.setattr(training, "NUM_EVALUATIONS", 10)
    monkeypatch.setattr(training, "build_vae", build)
    folder = go("train", replace(TINY, epochs=20), tmp_path, spoil)
    failure = failure_of(folder)
    assert failure["step"] == 42
    assert "nan" in failure["note"]
    assert set(only(folder.rows(), "elbo")["step"]) == {8, 16, 24, 32, 40}


def test_what_is_wrong_with_the_data_leaves_no_run(tmp_path):
    np.save(tmp_path / "vectors.npy", np.zeros((300, 7), dtype=np.uint8))
    mine = replace(TINY, dataset=str(tmp_path / "vectors.npy"))
    with pytest.raises(ValueError, match=r"expected images for --network convolutional, got the vectors of .*vectors"):
        go("train", replace(mine, network="convolutional"), tmp_path)
    with pytest.raises(ValueError, match="expected --batch-size of at most 200 training images, got 280"):
        go("train", replace(mine, batch_size=280), tmp_path)
    assert not (tmp_path / "train").exists()


def test_too_few_images_to_hold_any_out(tmp_path):
    np.save(tmp_path / "few.npy", np.eye(9, 12, dtype=np.uint8))
    config = replace(TINY, dataset=str(tmp_path / "few.npy"), batch_size=4, early_stopping=True)
    folder = go("train", config, tmp_path)
    assert folder.done() == {model_key(config): "ok"}


# What a note says -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_of_a_model_say_which_data_are_used_instead(place):
    """Without images, digits replace the default ones, and every row says so, those of an interrupted run too."""
    config = replace(TINY, dataset="binarized-mnist", epochs=20)
    with pytest.raises(KeyboardInterrupt):
        go("train", config, place, stop_at("training", 40), given=())
    folder = resume("train", place)
    note = "using scikit-learn's digits (8x8) instead of binarized-mnist, which is unavailable"
    assert set(folder.rows()["note"]) == {note}
    assert set(folder.rows()["dataset"]) == {"digits"}
    assert folder.environment()["note"] == note
    with pytest.raises(ValueError, match="binarized-mnist is unavailable"):
        go("train", config, place, given=("dataset",))
