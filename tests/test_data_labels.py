"""Labels of the binarized images, found by the grey images that they were drawn from."""

import numpy as np
import pytest

from amortized_bayes.data.binarization import binarize
from amortized_bayes.data.labels import labels_of_binarized


def test_each_draw_finds_its_origin():
    generator = np.random.default_rng(0)
    grey = (255 * generator.beta(0.2, 0.2, (40, 100))).astype(np.uint8)
    order = generator.permutation(40)
    bits = binarize(grey, 255, 0, "train")[order]
    np.testing.assert_array_equal(labels_of_binarized(bits, grey, np.arange(40)), order)


def test_wrong_shapes_are_refused():
    bits, grey = np.zeros((3, 4), np.uint8), np.zeros((5, 6), np.uint8)
    with pytest.raises(ValueError, match=r"got \(3, 4\), \(5, 6\) and \(5,\)"):
        labels_of_binarized(bits, grey, np.zeros(5))
    with pytest.raises(ValueError, match="a label per grey image"):
        labels_of_binarized(bits, np.zeros((5, 4), np.uint8), np.zeros(4))
