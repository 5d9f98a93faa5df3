"""A checkpoint that cannot be measured is one line that says why, before there is a run; nothing else is touched."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from run_folders import reseal
from wing import CPU, TINY, QuickLab, cut, files, go, loaded, resume, stop_at

from amortized_bayes.configuration import to_mapping
from amortized_bayes.experiments import experiment
from amortized_bayes.experiments.trained import TrainingFailed, model_key
from amortized_bayes.results import RunFolder, find_run
from amortized_bayes.results.checkpoints import save_tensors

KEY = model_key(TINY)


@pytest.fixture
def trained(results):
    """The run of the trained model, to be damaged."""
    return find_run(results, "latest", "train")


def measure(command, out, checkpoint="latest"):
    return go(command, experiment(command).Config(checkpoint=str(checkpoint)), out)


def spoil(run, how):
    """Damage a trained model on disk."""
    checkpoints = run / "checkpoints"
    changes = {"architecture": {"latent_dim": 4}, "decoder": {"decoder": "bayesian"}}
    if how == "truncated":
        for path in checkpoints.glob(f"{KEY}*.safetensors"):
            path.write_bytes(path.read_bytes()[:-100])
    elif how == "empty":
        (checkpoints / f"{KEY}.safetensors").write_bytes(b"")
    elif how == "lost":
        for path in checkpoints.glob(f"{KEY}*"):
            path.unlink()
    elif how == "architecture" or how == "decoder":
        path = run / "config.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes[how]))
    elif how == "bit":
        data = (run / "config.yaml").read_bytes()
        (run / "config.yaml").write_bytes(data.replace(b"seed: 0", b"seed: 1"))
    elif how == "config":
        (run / "config.yaml").write_text("latent_dim: many\n")
    elif how == "nan":
        tensors = RunFolder.open(run).load_tensors(KEY)
        tensors["model.network.0.weight"] = np.full_like(tensors["model.network.0.weight"], np.nan)
        save_tensors(run, KEY, tensors)
    elif how == "unfinished":
        shutil.rmtree(checkpoints)
        (run / "FINISHED").unlink()
        (run / "done.jsonl").write_text("")
    if how in ("architecture", "decoder", "config", "nan"):
        reseal(run)  # as one who does not mean well would


CHANGED = "changed since it was written"
DAMAGES = [
    ("truncated", rf"\.safetensors: {CHANGED}"),
    ("empty", rf"\.safetensors: {CHANGED}"),
    ("lost", "holds no 'dataset=digits"),
    ("bit", rf"config.yaml: {CHANGED}"),
    ("architecture", "expected a checkpoint of the architecture in its config.yaml, with model.network.0.weight"),
    ("decoder", "expected the model of its config.yaml"),
    ("config", "latent_dim: expected int"),
    ("nan", "expected finite weights, got nan or inf in model.network.0.weight"),
    ("unfinished", "expected a finished run of train"),
]


@pytest.mark.parametrize("command", ["gaps", "qstar"])
@pytest.mark.parametrize(("how", "message"), DAMAGES, ids=[how for how, _ in DAMAGES])
def test_a_damaged_checkpoint_is_one_line_and_nothing_is_lost(results, trained, refused, command, how, message):
    spoil(trained, how)
    before = files(results)
    with pytest.raises(ValueError, match=message):
        measure(command, results, trained)
    assert refused(command, trained.name, "--device", "cpu")
    assert files(results) == before


@pytest.mark.parametrize("command", ["gaps", "qstar"])
def test_what_is_no_trained_model_is_one_line(results, refused, command):
    RunFolder.create(results, "sweep", {}, {}, "other")
    before = files(results)
    assert "expected a run of train, got" in refused(command, "other")
    assert "got 'nope': no such run" in refused(command, "nope")
    (results.parent / "empty").mkdir()
    assert "no such run" in refused(command, "empty")
    assert "expected a finished run of train under empty, got none" in refused(command, "--out", "empty")
    assert files(results) == before
    assert not any((results.parent / "empty").iterdir())


@pytest.mark.parametrize("command", ["gaps", "qstar"])
def test_a_model_whose_training_failed_is_one_line(place, refused, command):
    failed = go("train", replace(TINY, learning_rate=1e6), place / "results")
    before = files(place / "results")
    said = refused(command, failed.name)
    assert "failed" in said
    assert failed.name in said
    assert "expected a finished run of train" in refused(command)  # the latest that can be measured: none
    assert files(place / "results") == before
    with pytest.raises(TrainingFailed):
        loaded(failed)


def test_latest_is_a_model_that_was_trained(results, trained):
    failed = RunFolder.create(results, "train", to_mapping(TINY), {}, "failed")
    with failed:
        failed.mark_done(KEY, "failed")
        failed.finish()
    RunFolder.create(results, "train", to_mapping(TINY), {}, "unfinished")
    for command in ("gaps", "qstar"):
        module = experiment(command)
        config = module.prepare(module.Config(), QuickLab(results, CPU))
        assert config.checkpoint == str(trained.relative_to(results))


def test_a_path_outside_the_results_is_kept_whole(results, trained, tmp_path):
    moved = tmp_path / "models" / "train" / "mine"
    moved.parent.mkdir(parents=True)
    trained.rename(moved)
    module = experiment("qstar")
    config = module.prepare(module.Config(str(moved)), QuickLab(results, CPU))
    assert config.checkpoint == str(moved)


def test_no_older_generation_stands_for_a_model_that_is_damaged(trained):
    """It may be another model."""
    folder = RunFolder.open(trained)
    save_tensors(trained, KEY, {name: value + 1 for name, value in folder.load_tensors(KEY).items()})
    reseal(trained)
    loaded(folder)
    (trained / "checkpoints" / f"{KEY}.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=CHANGED):
        loaded(folder)


# Data -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(place):
    """A model of a user's file, and the file."""
    generator = np.random.default_rng(0)
    arrays = {k: generator.integers(0, 2, (n, 5, 5), dtype=np.uint8) for k, n in (("train", 240), ("test", 40))}
    np.savez(place / "mine.npz", **arrays)  # pyright: ignore[reportArgumentType]
    go("train", replace(TINY, dataset="mine.npz", epochs=1, hidden=(4,), latent_dim=2), place / "results")
    return place / "mine.npz", arrays


def test_data_of_another_size_than_trained_on(place, refused, mine):
    path, arrays = mine
    np.savez(path, **{k: v[:, :4] for k, v in arrays.items()})
    before = files(place / "results")
    assert "got other files of mine.npz" in refused("gaps")
    path.unlink()
    assert "no such file" in refused("gaps")
    assert files(place / "results") == before


@pytest.mark.parametrize("command", ["gaps", "qstar"])
def test_other_data_of_the_same_size(refused, mine, command):
    """Training points that the model was not trained on would give a wrong gap without a word."""
    path, arrays = mine
    np.savez(path, **{k: 1 - v for k, v in arrays.items()})
    assert "got other files of mine.npz" in refused(command)


@pytest.mark.slow
def test_data_that_changed_while_a_run_was_interrupted(place, refused, mine):
    path, arrays = mine
    config = replace(TINY, dataset="mine.npz", epochs=20)
    cut("train", config, place / "results", stop_at("training", 40))
    kept = path.read_bytes()
    np.savez(path, **{k: 1 - v for k, v in arrays.items()})
    assert "was started on, got other files of mine.npz" in refused("train", "--resume", "latest")
    path.write_bytes(kept)
    assert resume("train", place / "results").finished
