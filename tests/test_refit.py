"""``refit``: flips, sets that share no image, a decoder that stays, and IWAE along the way."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from wing import CPU, QuickLab, go, loaded, only

from amortized_bayes.divergence import Divergence
from amortized_bayes.evaluation.bounds import iwae
from amortized_bayes.experiments import refit as experiment
from amortized_bayes.experiments import refitting
from amortized_bayes.experiments.refit import Config, flip, two_sets
from amortized_bayes.experiments.spec import job_key
from amortized_bayes.joint import global_seed
from amortized_bayes.presenting.figures import draw_figures
from amortized_bayes.presenting.view import RunView
from amortized_bayes.results import RunFolder, find_run

FEW = Config(
    dataset=("digits",),
    epochs=20,
    split="train",
    points=200,
    flips=(0, 12),
    refit_epochs=20,
    refit_batch_size=50,
    refit_learning_rate=3e-3,
    every=10,
    particles=20,
    seeds=(0,),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return go("refit", FEW, tmp_path_factory.mktemp("refit"))


@pytest.fixture(scope="module")
def trained(run):
    return loaded(RunFolder.open(find_run(run.path.parents[1], "latest", "train")))


def arrays(run, flips):
    return run.load_arrays(job_key({"dataset": "digits", "seed": 0, "flips": flips}))


@pytest.mark.parametrize("flips", [0, 1, 7, 30])
def test_exactly_so_many_pixels_of_each_image_are_flipped(flips):
    bits = np.random.default_rng(0).integers(0, 2, (40, 30), np.uint8)
    noisy = flip(bits, flips, 3, "A")
    assert ((noisy != bits).sum(1) == flips).all()
    assert set(np.unique(noisy)) <= {0, 1}


def test_flips_are_drawn_once_by_seed_and_set():
    bits = np.zeros((50, 30), np.uint8)
    first = flip(bits, 5, 3, "A")
    assert (first == flip(bits, 5, 3, "A")).all()
    assert bits.sum() == 0
    for seed, name in ((4, "A"), (3, "B")):
        assert (flip(bits, 5, seed, name) != first).any(1).all()
    assert (flip(bits, 9, 3, "A") >= first).all()
    shares = flip(np.zeros((4_000, 30), np.uint8), 5, 0, "A").mean(0)
    assert np.abs(shares - 5 / 30).max() < 4.5 * np.sqrt(5 / 30 * 25 / 30 / 4_000)


def test_more_flips_than_pixels_are_refused():
    with pytest.raises(ValueError, match="expected --flips of at most 30, the pixels of an image, got 31"):
        flip(np.zeros((2, 30), np.uint8), 31, 0, "A")


@pytest.mark.parametrize("count", [100, 21, 4])
def test_both_sets_share_no_image(count):
    a, b = two_sets(count, 30, 1)
    assert len(a) == len(b) == min(30, count // 2)
    assert not set(a) & set(b)
    assert (np.concatenate(two_sets(count, 30, 1)) == np.concatenate((a, b))).all()
    assert max(*a, *b) < count


def test_nothing_flipped_leaves_iwae_as_it_was_and_noise_gains(run):
    """Images that the encoder was trained with, of a split of which it saw all."""
    rows = run.rows()
    gain = {(s, f): only(rows, "refit_gain", set=s, flips=f).iloc[-1] for s in "AB" for f in FEW.flips}
    spread = arrays(run, 0)["iwae_B"][0].std() / np.sqrt(200)
    assert all(abs(gain[s, 0]["value"]) < 2 * spread for s in "AB")
    assert gain["A", 12]["value"] > max(0, gain["A", 0]["value"]) + 2 * gain["A", 12]["standard_error"]


def test_rows_are_means_of_the_arrays(run):
    rows, found = run.rows(), arrays(run, 12)
    curve = only(rows, "iwae", set="B", flips=12)
    assert curve["step"].tolist() == [0, 40, 80]
    assert found["iwae_B"].shape == (3, 200)
    np.testing.assert_allclose(curve["value"], found["iwae_B"].mean(1))
    np.testing.assert_allclose(curve["standard_error"], found["iwae_B"].std(1, ddof=1) / np.sqrt(200))
    for metric, start in (("refit_gain", 0), ("late_gain", 1)):
        gain = found["iwae_B"][-1] - found["iwae_B"][start]
        row = only(rows, metric, set="B", flips=12).iloc[-1]
        assert row["value"] == pytest.approx(gain.mean())
        assert row["standard_error"] == pytest.approx(gain.std(ddof=1) / np.sqrt(200))
    assert only(rows, "refit_gain", set="B", flips=12)["value"].iloc[0] == 0
    assert not set(found["places_A"]) & set(found["places_B"])


def test_the_first_evaluation_is_that_of_the_trained_model(run, trained):
    found = arrays(run, 0)
    x = trained.data.train[torch.from_numpy(found["places_A"])].float()
    with global_seed(0, "refit", "A"):
        bound = iwae(trained.model, trained.guide, x, num_particles=20).value
    np.testing.assert_allclose(found["iwae_A"][0], bound.double().numpy(), rtol=1e-5)


def test_no_bit_of_the_decoder_or_of_the_trained_encoder_moves(trained, tmp_path, monkeypatch):
    before = [copy.deepcopy(module.state_dict()) for module in (trained.model, trained.guide)]
    fitted = []
    real = refitting.Training
    monkeypatch.setattr(refitting, "Training", lambda *a, **k: fitted.append(a[1]) or real(*a, **k))
    sets = {"A": trained.data.train[:60].float(), "B": trained.data.train[60:100].float()}
    assert len(list(refitting.refit(trained, sets, FEW, QuickLab(tmp_path, CPU)))) == 3
    for module, state in zip((trained.model, trained.guide), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    moved = [not torch.equal(value, before[1][name]) for name, value in fitted[0].state_dict().items()]
    assert any(moved)


def test_a_bound_that_is_not_finite_is_a_failure(trained, tmp_path, monkeypatch):
    nothing = torch.full((60,), torch.nan)
    monkeypatch.setattr(refitting, "iwae", lambda *_, **__: type("Bound", (), {"value": nothing}))
    with pytest.raises(Divergence, match="step 0"):
        next(refitting.refit(trained, {"A": trained.data.train[:60].float()}, FEW, QuickLab(tmp_path, CPU)))


def test_figures_and_refusals(run, tmp_path):
    saved = draw_figures(experiment.FIGURES, RunView(run), run.rows(), tmp_path)
    assert [path.name for path in saved] == ["refit_digits.png", "refit_digits.pdf"]
    with pytest.raises(ValueError, match="different names"):
        replace(FEW, dataset=("a/x.npz", "b/x.npz"))
