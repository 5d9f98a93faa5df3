"""The settings of the sweep: each runs, those out of range are refused, and presets are what they are said to be."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sweeps import ONE, TINY, latest, start, values

from amortized_bayes.configuration import SettingError
from amortized_bayes.experiments import sweep

pytestmark = pytest.mark.usefixtures("few_visits")


@pytest.mark.parametrize(
    "changes",
    [
        {"likelihood": "gaussian", "depth": 0},
        {"likelihood": "binomial", "batch_size": 5_000},
        {"likelihood": "gaussian", "gaussian_scale": "learned", "depth": 2},
        {"decoder": "point"},
        {"init": "published", "hidden": ()},
        {"elbo_draws": 1, "iwae_points": 1, "num_test": 1, "iwae_particles": 1},
        {"num_train": 1},
        {"weight_prior": "standard", "local_reparametrization": False},
        pytest.param({"compile_step": "replay"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.slow
def test_every_setting_runs(tmp_path, changes):
    frame = start(tmp_path, replace(ONE, widths=(2,), **changes)).rows()
    assert len(values(frame, "final_elbo")) == 4, frame[frame["status"] == "failed"]["note"].tolist()
    assert len(values(frame, "family_gap")) == 4


@pytest.mark.parametrize(("guides", "compared"), [(("constant", "factorized"), 2), (("constant", "amortized"), 0)])
@pytest.mark.slow
def test_guides_are_a_choice(tmp_path, guides, compared):
    frame = start(tmp_path, replace(ONE, guides=guides)).rows()
    assert {guide for guide, _ in values(frame, "final_elbo")} == set(guides)
    assert len(values(frame, "family_gap")) == compared


@pytest.mark.parametrize("shape", [(40, 7), (40, 3, 4)], ids=["vectors", "images"])
@pytest.mark.slow
def test_arrays_of_the_users_are_swept(tmp_path, shape):
    path = tmp_path / "a very long folder name, with spaces" / ("x" * 60) / "my images.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, train=np.random.default_rng(0).random(shape, dtype=np.float32))
    folder = start(tmp_path, replace(ONE, dataset=(str(path),)))
    frame = folder.rows()
    assert set(frame["dataset"]) == {"my images.npz"}
    assert len(values(frame, "family_gap")) == 4
    key = next(iter(folder.done()))
    assert folder.load_arrays(key)["reconstruction"].shape[1:] == shape[1:]
    assert json.loads((folder.path / "environment.json").read_text())["data"]["my images.npz"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (0,)}, "expected --widths of 1 or more, got [0]"),
        ({"widths": ()}, "expected --widths with one or more different values, got []"),
        ({"seeds": (1, 1)}, "expected --seeds with one or more different values, got [1, 1]"),
        ({"seeds": (-1,)}, "expected --seeds of 0 or more, got [-1]"),
        ({"epochs": 1}, "expected --epochs of 2 or more, got 1"),
        ({"depth": -1}, "expected --depth of 0 or more, got -1"),
        ({"rates_amortized": (float("nan"), 1)}, "expected --rates-amortized above 0"),
        ({"rates_others": (("amortised", 1, 1),)}, "expected --rates-others with a guide and two rates above 0"),
        ({"rates_others": (("amortized", 1, 0),)}, "expected --rates-others with a guide and two rates above 0"),
        ({"dataset": ("a/x.npy", "b/x.npz")}, "expected --dataset with files of different names"),
        (
            {"guides": ("amortised",)},
            "expected --guides among constant, amortized, semi-",
        ),
        (
            {"guides": ("factorized-from-amortized",)},
            "expected --guides among constant, amortized, semi-amortized, refined, factorized, got",
        ),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(SettingError) as refused:
        replace(TINY, **changes)
    assert str(refused.value).startswith(message)


def test_presets_are_as_published_and_digits_get_settings_of_their_own():
    paper = sweep.PRESETS["paper"]
    assert (paper.epochs, len(paper.seeds), paper.latent_dim, paper.depth) == (5_000, 5, 64, 2)
    ((config, note),) = sweep.substitutes(sweep.PRESETS["quick"], set())
    assert (config.dataset, config.epochs) == (("digits",), 640)
    assert (config.likelihood, config.widths) == ("binomial", (1, 4, 16, 64))
    assert "unavailable" in note
    assert "binomial" in note
    ((config, note),) = sweep.substitutes(sweep.PRESETS["quick"], {"likelihood", "widths"})
    assert (config.likelihood, config.widths) == ("bernoulli", (1, 4, 16, 64, 256))
    assert "binomial" not in note


@pytest.mark.slow
def test_what_is_tuned_is_swept(tmp_path):
    config = replace(ONE, guides=("constant",), epochs=2, tune=True)
    folder = start(tmp_path, config)
    trials = latest(tmp_path, "tune").rows()
    best = trials.iloc[trials["value"].argmax()]
    text = (folder.path / "config.yaml").read_text()
    assert f"rates_constant:\n- {best['shared_rate']}\n- {best['local_rate']}\n" in text
    assert "tune: false" in text
