"""Copies of a model that its training keeps: they change nothing of it, and are what a shorter training ends with."""

from dataclasses import replace

import numpy as np
import pytest
from wing import CPU, TINY, QuickLab, assert_same_weights, cut, go, resume, stop_at, weights

from amortized_bayes.configuration import SettingError
from amortized_bayes.experiments import training
from amortized_bayes.experiments.settings import serves
from amortized_bayes.experiments.trained import copy_name, model_key, state_of
from amortized_bayes.results import list_runs

LONG = replace(TINY, epochs=4, schedule="constant")
KEPT = replace(LONG, keep_epochs=(1, 3, 4))
"""Sixteen steps, with an evaluation after every eighth below."""


@pytest.fixture(autouse=True)
def two_evaluations(monkeypatch):
    monkeypatch.setattr(training, "NUM_EVALUATIONS", 2)


def copy_of(folder, epoch):
    return folder.load_tensors(f"{model_key(KEPT)}.{copy_name(epoch)}")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.slow
def test_copies_do_not_change_the_training(tmp_path):
    plain, kept = go("train", LONG, tmp_path / "plain"), go("train", KEPT, tmp_path / "kept")
    assert_same_weights(plain, kept)
    assert_equal(copy_of(kept, 4), weights(kept))
    assert kept.verify() == []
    once = go("train", replace(LONG, epochs=1), tmp_path / "once")
    assert_equal(copy_of(kept, 1), weights(once))
    assert not np.array_equal(copy_of(kept, 1)["model.network.0.weight"], copy_of(kept, 3)["model.network.0.weight"])


@pytest.mark.slow
def test_a_model_is_loaded_as_it_was_after_an_epoch(tmp_path):
    folder, lab = go("train", KEPT, tmp_path), QuickLab(tmp_path, CPU)
    for epoch in KEPT.keep_epochs:
        found = lab.trained(KEPT, epoch)
        assert_equal(state_of(found.model, found.guide), copy_of(folder, epoch))
        assert not any(p.requires_grad for module in (found.model, found.guide) for p in module.parameters())
    final = lab.trained(LONG)
    assert_equal(state_of(final.model, final.guide), weights(folder))
    with pytest.raises(ValueError, match="epoch-2"):
        lab.trained(KEPT, 2)


@pytest.mark.parametrize("step", [5, 13])
@pytest.mark.slow
def test_copies_of_an_interrupted_training_are_those_of_a_whole_one(tmp_path, step):
    whole = go("train", KEPT, tmp_path / "whole")
    folder = cut("train", KEPT, tmp_path, stop_at("training", step))
    resume("train", tmp_path)
    assert_same_weights(folder, whole)
    for epoch in KEPT.keep_epochs:
        assert_equal(copy_of(folder, epoch), copy_of(whole, epoch))


@pytest.mark.slow
def test_a_training_serves_those_who_want_no_more_copies_than_it_keeps(tmp_path):
    assert serves(KEPT, LONG)
    assert serves(KEPT, replace(KEPT, keep_epochs=(3,)))
    assert not serves(LONG, KEPT)
    assert not serves(KEPT, replace(KEPT, keep_epochs=(2, 3)))
    assert not serves(KEPT, replace(KEPT, latent_dim=4))
    go("train", LONG, tmp_path)
    lab = QuickLab(tmp_path, CPU)
    assert lab.find(LONG) is not None
    assert lab.find(KEPT) is None
    kept = go("train", KEPT, tmp_path)
    for config in (LONG, KEPT):
        found = lab.find(config)
        assert found is not None
        assert found.path == kept.path
    assert len(list_runs(tmp_path)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep_epochs": (1, 5)}, "--keep-epochs of at most 4 epochs, got 5"),
        ({"keep_epochs": (0,)}, "--keep-epochs of 1 or more, got .0."),
        ({"early_stopping": True}, "--no-early-stopping with --keep-epochs"),
    ],
)
def test_copies_that_a_training_may_not_reach_are_refused(change, message):
    with pytest.raises(SettingError, match=message):
        replace(KEPT, **change)
