"""What every command that trains lets those who look on see while it runs, and that looking changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
import sweeps
import torch
from wing import CPU, TINY, QuickLab, Recorder, assert_same_weights, go, loaded, values

from amortized_bayes.experiments import encoders, training
from amortized_bayes.experiments.encoders import fit_encoder
from amortized_bayes.experiments.refit import Config as Refit
from amortized_bayes.experiments.trained import reconstructions

REFIT = Refit(
    dataset=("digits",),
    epochs=1,
    split="train",
    points=20,
    flips=(5,),
    refit_epochs=4,
    refit_batch_size=10,
    every=2,
    particles=4,
    seeds=(0,),
)


def steps(recorder, job, name):
    """Steps at which images of this name were shown, of jobs with this in their key."""
    return [shown.step for key, shown in recorder.seen if job in key and name in shown.images]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training and those who looked on."""
    torch.set_num_threads(1)
    recorder, config = Recorder(), replace(TINY, keep_epochs=(1,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "SHOWN_EVERY", 1)
        return go("train", config, tmp_path_factory.mktemp("train"), recorder=recorder), recorder, config


def test_a_training_shows_what_its_model_makes_of_images(trained):
    folder, recorder, config = trained
    total = config.epochs * len(loaded(folder).data.train) // config.batch_size
    assert steps(recorder, "", "picture_reconstruction") == [*range(1, total + 1), total]
    every = [shown.images["picture_reconstruction"] for _, shown in recorder.seen]
    (kept,) = (folder.load_arrays(key) for key in folder.done())
    np.testing.assert_array_equal(every[-1], kept["picture_reconstruction"])
    assert len({images.tobytes() for images in every[:-1]}) == total  # of the model as it was then
    lab = QuickLab(folder.path.parents[1], CPU)
    copied = lab.checkpoint(folder.path, epoch=1)
    epoch = total // config.epochs
    seen = reconstructions(copied, copied.data.test)
    assert next(s for _, s in recorder.seen if s.step == epoch).images.keys() >= {"picture_original"}
    np.testing.assert_allclose(every[epoch - 1], seen["reconstruction"], rtol=1e-6)


def test_looking_on_changes_no_number(trained, tmp_path, monkeypatch):
    folder, _, config = trained
    monkeypatch.setattr(training, "SHOWN_EVERY", 1000)
    monkeypatch.setattr(training, "_pictures", lambda *_: {})
    unseen = go("train", config, tmp_path)
    assert values(unseen.rows()) == values(folder.rows())
    assert_same_weights(unseen, folder)


def test_ten_of_the_evaluations_are_shown(tmp_path):
    recorder = Recorder()
    go("train", replace(TINY, epochs=13), tmp_path, recorder=recorder)
    assert len(steps(recorder, "", "picture_reconstruction")) == 1 + 50 // training.SHOWN_EVERY == 11


def test_an_encoder_shows_its_course(trained, monkeypatch):
    folder, _, config = trained
    recorder, model = Recorder(), loaded(folder)
    model = model._replace(data=replace(model.data, validation=model.data.test))
    lab = QuickLab(folder.path.parents[1], CPU)
    lab.display = lambda shown: recorder.shown("encoder", shown)
    monkeypatch.setattr(encoders, "PATIENCE", 100)
    guide = fit_encoder(model, replace(config, epochs=10, keep_epochs=()), lab)
    ends = [shown.step for _, shown in recorder.seen if "validation_elbo" in shown.numbers]
    assert len(ends) == encoders.NUM_EVALUATIONS
    assert steps(recorder, "encoder", "reconstruction") == ends[encoders.SHOWN_EVERY - 1 :: encoders.SHOWN_EVERY]
    last = recorder.seen[-1][1].images
    assert set(last) == {"original", "reconstruction"}
    assert guide is not model.guide


@pytest.mark.slow
def test_a_refit_shows_its_course(tmp_path):
    recorder = Recorder()
    go("refit", REFIT, tmp_path, recorder=recorder)
    assert steps(recorder, "flips=5", "reconstruction") == [4, 8]


@pytest.mark.slow
def test_a_sweep_shows_every_rung_and_the_top(tmp_path):
    listener = sweeps.Listener()
    seen = []
    listener.shown = lambda job, shown: seen.append((job, shown))
    config = replace(sweeps.TINY, widths=(1,), epochs=4)
    sweeps.start(tmp_path, config, listener=listener)
    found = {}
    for job, shown in seen:
        if "reconstruction" in shown.images:
            found.setdefault(job.split("guide=")[1], []).append(shown.step)
    assert found == {
        "amortized+k=1": [2, 4, 8],
        "constant": [2, 4, 8],
        "factorized": [8],
        "factorized-from-amortized": [8],
    }
