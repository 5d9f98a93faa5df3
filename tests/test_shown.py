"""Which test images a sweep keeps to be drawn, and which of its rows get a line while it runs."""

from dataclasses import replace

import made_runs
import numpy as np
import pytest
import torch
from sweeps import TINY, a_lab, start

from amortized_bayes.commands.reporting import Reporting
from amortized_bayes.comparing import fitting
from amortized_bayes.evaluation.errors import mean_prediction
from amortized_bayes.experiments.guide_fits import Place, shown_places
from amortized_bayes.experiments.setup import load_images
from amortized_bayes.types import Dataset, Images


def images_of(labels, num_test):
    images = Images(np.zeros((12 if labels is None else len(labels), 4), np.uint8), labels and np.array(labels))
    source = Dataset("mine", images, images, (1, 2, 2), 255, {}, "here")
    cut = {"num_train": 4, "num_test": num_test, "device": torch.device("cpu")}
    return load_images(source, likelihood="gaussian", seed=0, **cut)


@pytest.mark.parametrize(
    ("labels", "num_test", "places"),
    [
        ([3, 3, 1, 3, 0, 1, 2], 7, [4, 2, 6, 0]),
        ([3, 3, 1, 3, 0, 1, 2], 4, [2, 0]),  # the images that are cut off are not shown
        ([7] * 12, 12, [0]),
        ([*range(14, -1, -1)], 15, [*range(14, 4, -1)]),  # ten classes at most
        (None, 12, list(range(10))),
        (None, 3, [0, 1, 2]),
    ],
)
def test_the_first_image_of_each_class_is_shown(labels, num_test, places):
    assert shown_places(images_of(labels, num_test)) == places


@pytest.mark.slow
def test_a_sweep_keeps_one_reconstruction_of_each_class(tmp_path, monkeypatch):
    asked = []

    def recorded(model, guide, data, index):
        asked.append(index.tolist())
        return mean_prediction(model, guide, data, index)

    monkeypatch.setattr(fitting, "FRESH_VISITS", (2, 2))
    monkeypatch.setattr(fitting, "mean_prediction", recorded)
    config = replace(TINY, widths=(1,), num_test=60)
    place = Place(config, a_lab(tmp_path), "digits", 0)
    test = place.images.source.test
    places = shown_places(place.images)
    assert test.labels[places].tolist() == list(range(10))
    grey = place.images.grey_test[places].numpy()
    folder = start(tmp_path, config)
    assert asked == 6 * [places]  # F-VI looks its factors up by place; two of the four show a rung as well
    means = {}
    for guide in ("constant", "amortized+k=1", "factorized"):
        arrays = folder.load_arrays(f"dataset=digits+seed=0+guide={guide}")
        np.testing.assert_array_equal(arrays["original"].reshape(10, -1), grey)
        means[guide] = arrays["reconstruction"].reshape(10, -1)
        assert means[guide].shape == grey.shape
    assert np.ptp(means["factorized"], axis=0).max() > np.ptp(means["constant"], axis=0).max() == 0


def test_a_line_for_each_fit_and_none_for_each_budget():
    made = made_runs.sweep(widths=(16,))
    lines = []
    reporting = Reporting()
    reporting.say = lines.append
    for _, rows, _, _ in made.jobs:
        for row in rows:
            reporting.row(row)
    assert lines == [
        "MNIST, constant VI, seed 0: ELBO -205.00±0.10 (vacuous)",
        "MNIST, A-VI, k = 16, seed 0: ELBO -103.75±0.10",
        "MNIST, F-VI, seed 0: ELBO -103.00±0.10",
        "MNIST, F-VI from A-VI, seed 0: ELBO -100.00±0.10",
    ]
    reporting.row(made.row({"start": "prior", "budget": 30}, "behind_reference", 0.5))  # of a search for q*
    assert lines[-1] == "prior, steps 30: nats behind the reference 0.50±0.10"
