"""Early stopping, and pixels: what decides which model is kept, and what decides nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from wing import CPU, TINY, assert_same_weights, go, one, only, values, weights

from amortized_bayes.data import load_dataset
from amortized_bayes.experiments import training
from amortized_bayes.experiments.setup import load_vae_images
from amortized_bayes.experiments.trained import state_of
from amortized_bayes.inference.svi import Training

STOPPING = replace(
    TINY, num_train=100, early_stopping=True, num_validation=100, epochs=100, learning_rate=2e-2, patience=4
)


def vae_images(config):
    return load_vae_images(config, load_dataset(config.dataset, seed=config.seed), CPU)


@pytest.fixture
def grey_file(tmp_path):
    """A user's file of grey images of 6 x 6, with a test part."""
    generator = np.random.default_rng(0)
    train, test = (generator.integers(0, 256, (n, 6, 6), dtype=np.uint8) for n in (240, 40))
    np.savez(tmp_path / "mine.npz", train=train, test=test)
    return tmp_path / "mine.npz"


def test_early_stopping_keeps_the_best_evaluation(tmp_path, monkeypatch):
    seen = []
    evaluate = training._on_the_way

    def watched(config, data, model, guide, record):
        seen.append({name: np.array(value) for name, value in state_of(model, guide).items()})
        return evaluate(config, data, model, guide, record)

    monkeypatch.setattr(training, "_on_the_way", watched)
    folder = go("train", STOPPING, tmp_path)
    rows = folder.rows()
    scores = only(rows, "elbo", split="validation")["value"].tolist()
    best = int(np.argmax(scores))
    assert best < len(scores) - 1
    assert len(scores) < 50
    assert len(scores) - 1 - best == STOPPING.patience
    kept = weights(folder)
    for name, value in kept.items():
        np.testing.assert_array_equal(value, seen[best][name], err_msg=name)
    assert not np.array_equal(kept["guide.encoder.0.weight"], seen[-1]["guide.encoder.0.weight"])
    assert rows["step"].max() == 4 * len(scores)
    assert set(only(rows, "final_elbo")["step"]) == {4 * len(scores)}


@pytest.mark.slow
def test_without_early_stopping_nothing_is_held_out_and_the_last_iterate_is_kept(tmp_path):
    folder = go("train", replace(STOPPING, early_stopping=False, epochs=10), tmp_path)
    assert set(only(folder.rows(), "elbo")["split"]) == {"train", "test"}
    assert folder.rows()["step"].max() == 20


@pytest.mark.parametrize("binarization", ["fixed", "dynamic"])
@pytest.mark.slow_cases("fixed")
def test_test_pixels_decide_nothing(tmp_path, grey_file, binarization):
    config = replace(STOPPING, dataset=str(grey_file), binarization=binarization, epochs=50, patience=3)
    first = go("train", config, tmp_path / "first")
    with np.load(grey_file) as arrays:
        np.savez(grey_file, train=arrays["train"], test=255 - arrays["test"])
    second = go("train", config, tmp_path / "second")
    assert_same_weights(first, second)
    kept, other = (f.rows() for f in (first, second))
    assert values(kept[kept["split"] != "test"]) == values(other[other["split"] != "test"])
    step = kept["step"].min()
    assert not np.isclose(*(only(r, "elbo", split="test", step=step)["value"].item() for r in (kept, other)))
    assert one(kept, "final_elbo", split="test")["value"] != one(other, "final_elbo", split="test")["value"]


@pytest.mark.slow
def test_validation_pixels_decide(tmp_path, grey_file):
    config = replace(STOPPING, dataset=str(grey_file), epochs=10, num_train=200, num_validation=24)
    first = go("train", config, tmp_path / "first").rows()
    held_out = vae_images(config).source.train.pixels[200:224]
    with np.load(grey_file) as arrays:
        pixels, test = arrays["train"].copy(), arrays["test"]
    places = [int(np.flatnonzero((pixels.reshape(240, -1) == row).all(1))[0]) for row in held_out]
    pixels[places] = 255
    np.savez(grey_file, train=pixels, test=test)
    second = go("train", config, tmp_path / "second").rows()
    step = first["step"].min()
    for split, equal in (("train", True), ("validation", False)):
        one_, other = (only(rows, "elbo", split=split, step=step)["value"].item() for rows in (first, second))
        assert (one_ == other) == equal, split


@pytest.mark.slow
def test_the_number_of_test_points_decides_nothing(tmp_path):
    found = []
    for num_test in (50, 51):
        rows = go("train", replace(STOPPING, epochs=3, num_test=num_test), tmp_path / f"{num_test}").rows()
        found.append(values(only(rows, "elbo", split="validation")))
    assert found[0] == found[1]


@pytest.mark.slow
def test_each_split_is_measured_on_its_own_images(tmp_path, grey_file):
    """Test images that are all white are far less likely than those of training."""
    with np.load(grey_file) as arrays:
        np.savez(grey_file, train=np.zeros_like(arrays["train"]), test=np.full_like(arrays["test"], 255))
    rows = go("train", replace(TINY, dataset=str(grey_file), epochs=20, learning_rate=1e-2), tmp_path).rows()
    train, test = (one(rows, "final_elbo", split=split)["value"] for split in ("train", "test"))
    assert train > test + 5
    last = rows["step"].max()
    train, test = (only(rows, "elbo", split=s, step=last)["value"].item() for s in ("train", "test"))
    assert train > test + 5
    assert one(rows, "final_iwae")["value"] > test + 5


# Pixels drawn anew ----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("binarization", ["dynamic", "fixed"])
@pytest.mark.slow_cases("fixed")
def test_pixels_are_drawn_at_each_visit_or_once(tmp_path, monkeypatch, binarization):
    made = []
    monkeypatch.setattr(training, "Training", lambda *a, **o: made.append(Recording(*a, **o)) or made[-1])
    config = replace(TINY, binarization=binarization)
    go("train", config, tmp_path)
    (run,) = made
    assert len(run.kept) == 8
    seen = torch.empty(2, 200, 64)
    for number, (x, index) in enumerate(run.kept):
        seen[number // 4, index] = x
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    data = vae_images(config)
    if binarization == "fixed":
        assert torch.equal(seen[0], seen[1])
        assert torch.equal(seen[0], data.train.float())
        return
    grey = data.grey_train
    expected = (2 * grey * (1 - grey)).double()
    differ = (seen[0] != seen[1]).double().mean()
    assert abs(differ - expected.mean()) < 4 * grey.numel() ** -0.5 * 0.5
    assert differ > 0.05
    assert abs((seen.double().sum() - 2 * grey.double().sum()) / expected.sum().sqrt()) < 4
    assert ((seen == 1) & (grey == 0)).sum() == ((seen == 0) & (grey == 1)).sum() == 0
