"""A training run that is interrupted anywhere goes on to the same weights and rows, bit for bit."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from wing import BOUNDS, TINY, QuickLab, assert_same_weights, cut, go, interrupt, only, resume, stop_at, values, weights

from amortized_bayes.experiments import training
from amortized_bayes.experiments.decoder_capacity import Config
from amortized_bayes.experiments.trained import model_key
from amortized_bayes.inference.svi import Training
from amortized_bayes.results import RunFolder, list_runs

LONG = replace(TINY, epochs=20)
"""80 steps, with the evaluations below one after every eighth."""
STOPPING = replace(
    TINY, num_train=100, early_stopping=True, num_validation=100, epochs=100, learning_rate=2e-2, patience=4
)


pytestmark = pytest.mark.usefixtures("few_evaluations", "keeping_all")


@pytest.fixture
def keeping_all(monkeypatch):
    monkeypatch.setattr(QuickLab, "every", 0.0)


@pytest.fixture
def few_evaluations(monkeypatch):
    monkeypatch.setattr(training, "NUM_EVALUATIONS", 10)


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """Give the run of a training that nothing interrupts, once for all tests."""
    runs = {}

    def whole(config, evaluations=10):
        if config not in runs:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(training, "NUM_EVALUATIONS", evaluations)
                runs[config] = go("train", config, tmp_path_factory.mktemp("whole"))
        return runs[config]

    return whole


def steps_kept(folder, config):
    """Steps of the state that a training has kept of itself."""
    (name,) = (n for n in folder.load_unfinished(model_key(config))[0] if n.endswith("/0.0.steps"))
    return int(folder.load_unfinished(model_key(config))[0][name])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"binarization": "dynamic", "entropy_annealing": 15, "kl_warm_up": 20},
        {"decoder": "bayesian", "schedule": "burda"},
        {"early_stopping": True, "family": "planar"},
    ],
    ids=str,
)
@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights_and_rows(tmp_path, whole_runs, changes):
    config = replace(LONG, **changes)
    whole = whole_runs(config)
    folder = cut("train", config, tmp_path, stop_at("training", 41))
    assert not folder.done()
    assert steps_kept(folder, config) == 40
    resume("train", tmp_path)
    assert_same_weights(folder, whole)
    assert values(folder.rows()) == values(whole.rows())
    assert len(folder.rows()) == len(whole.rows())
    assert folder.verify() == []


def test_a_run_interrupted_twice_goes_on(tmp_path, whole_runs):
    whole = whole_runs(LONG)
    folder = cut("train", LONG, tmp_path, stop_at("training", 20))
    with pytest.raises(KeyboardInterrupt):
        resume("train", tmp_path, watch=stop_at("training", 60))
    resume("train", tmp_path)
    assert_same_weights(folder, whole)
    assert values(folder.rows()) == values(whole.rows())


@pytest.mark.slow
def test_a_run_interrupted_before_its_first_evaluation_starts_again(tmp_path, whole_runs):
    whole = whole_runs(LONG)
    folder = cut("train", LONG, tmp_path, stop_at("training", 3))
    resume("train", tmp_path)
    assert_same_weights(folder, whole)


@pytest.mark.slow
def test_a_run_cut_after_its_last_step_goes_on(tmp_path, monkeypatch):
    whole = go("train", TINY, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(training, "iwae", interrupt)
        folder = cut("train", TINY, tmp_path)
    assert steps_kept(folder, TINY) == 8
    resume("train", tmp_path)
    assert_same_weights(folder, whole)
    assert values(folder.rows()) == values(whole.rows())


@pytest.mark.parametrize("moment", ["early", "at the end"])
@pytest.mark.slow
def test_early_stopping_is_resumed_where_it_was(tmp_path, monkeypatch, whole_runs, moment):
    """Neither the best iterate nor the patience is forgotten."""
    monkeypatch.setattr(training, "NUM_EVALUATIONS", 50)
    whole = whole_runs(STOPPING, 50)
    steps = only(whole.rows(), "elbo", split="validation")["step"]
    assert steps.max() < 200  # it stopped early
    with monkeypatch.context() as patch:
        if moment == "at the end":
            patch.setattr(training, "iwae", interrupt)
            folder = cut("train", STOPPING, tmp_path)
        else:
            folder = cut("train", STOPPING, tmp_path, stop_at("training", int(steps.max()) - 10))
    resume("train", tmp_path)
    assert_same_weights(folder, whole)
    assert values(folder.rows()) == values(whole.rows())


class Recording(Training):
    """Keeps the inputs of every step."""

    kept: list

    def _step(self, done):
        self.kept = [*getattr(self, "kept", []), []]
        return super()._step(done)

    def _inputs(self, index, done=0.0):
        inputs = super()._inputs(index, done)
        if getattr(self, "kept", None):
            self.kept[-1] = [t.clone() for t in inputs]
        return inputs


@pytest.mark.slow
def test_steps_of_a_resumed_run_have_the_weights_of_the_whole(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(training, "Training", lambda *a, **o: made.append(Recording(*a, **o)) or made[-1])
    config = replace(LONG, entropy_annealing=10, kl_warm_up=20)
    cut("train", config, tmp_path, stop_at("training", 41))
    resume("train", tmp_path)
    done = np.arange(80) / 80
    expected = np.stack([done, done * np.minimum(1, 2 * done), np.ones(80)], 1)
    first, second = (torch.stack([inputs[2] for inputs in each.kept]).numpy() for each in made)
    np.testing.assert_allclose(first, expected[:41], atol=1e-6)
    np.testing.assert_allclose(second, expected[40:], atol=1e-6)


# Between the last mark and the end ------------------------------------------------------------------------------------


@pytest.fixture
def unfinished(tmp_path, monkeypatch):
    """A run whose only job is marked done, and which was stopped before ``FINISHED``."""
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", interrupt)
        folder = cut("train", TINY, tmp_path)
    assert folder.done() == {model_key(TINY): "ok"}
    assert not folder.finished
    return folder


@pytest.mark.slow
def test_a_run_stopped_before_its_end_is_resumed(tmp_path, unfinished):
    rows = values(unfinished.rows())
    resume("train", tmp_path)
    assert unfinished.finished
    assert unfinished.verify() == []
    assert values(unfinished.rows()) == rows


@pytest.mark.slow
def test_a_run_stopped_before_its_end_is_finished_by_who_needs_its_model(tmp_path, unfinished, monkeypatch):
    steps = []
    take = Training._step
    monkeypatch.setattr(Training, "_step", lambda self, done: steps.append(1) or take(self, done))
    found = go("decoder-capacity", Config(TINY, layers=(1,), points=4, bounds=BOUNDS), tmp_path)
    assert set(found.done().values()) == {"ok"}
    assert not steps
    assert unfinished.finished
    assert [info.experiment for info in list_runs(tmp_path)] == ["train", "decoder-capacity"]


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_by_who_needs_its_model(tmp_path, whole_runs):
    whole = whole_runs(LONG)
    folder = cut("train", LONG, tmp_path, stop_at("training", 41))
    go("decoder-capacity", Config(LONG, layers=(1,), points=4, bounds=BOUNDS), tmp_path)
    assert folder.finished
    assert_same_weights(folder, whole)


@pytest.mark.slow
def test_what_is_wrong_with_a_checkpoint_of_a_training_is_said(tmp_path, whole_runs):
    folder = cut("train", LONG, tmp_path, stop_at("training", 41))
    for path in folder.path.glob("checkpoints/*unfinished*.safetensors"):
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="does not match its checksum"):
        resume("train", tmp_path)
    assert not folder.finished
    shutil.rmtree(folder.path / "checkpoints")
    whole = whole_runs(LONG)
    resume("train", tmp_path)  # from the start
    assert weights(folder).keys() == weights(whole).keys()
    assert_same_weights(folder, whole)
