import numpy as np
import pytest

from amortized_bayes.data import binarize

GREY = np.tile(np.arange(256, dtype=np.uint8), (5000, 1))


def test_mean_is_the_grey_value():
    bits = binarize(GREY, 255, seed=0, split="train")
    p = GREY[0] / 255
    standard_error = np.sqrt(p * (1 - p) / len(GREY))
    assert bits.dtype == np.uint8
    assert set(np.unique(bits)) == {0, 1}
    assert (np.abs(bits.mean(0) - p) <= 5 * standard_error).all()  # exactly equal where p is 0 or 1


def test_draws_belong_to_seed_and_split():
    first = binarize(GREY, 255, 0, "train")
    assert (first == binarize(GREY, 255, 0, "train")).all()
    others = [binarize(GREY, 255, 1, "train"), binarize(GREY, 255, 0, "test")]
    p = GREY / 255
    for other in others:  # independent draws agree with probability p^2 + (1 - p)^2
        agreement, expected = (first == other).mean(), (p**2 + (1 - p) ** 2).mean()
        assert abs(agreement - expected) < 5 * 0.5 / np.sqrt(GREY.size)


def test_a_row_keeps_its_draws_however_many_follow():
    whole = binarize(GREY, 255, 0, "train")
    assert (whole[:100] == binarize(GREY[:100], 255, 0, "train")).all()
    assert (whole[:4500] == binarize(GREY[:4500], 255, 0, "train")).all()


def test_floats_and_grey_values_agree():
    floats = GREY.astype(np.float32) / np.float32(255)
    assert (binarize(floats, 1, 0, "train") == binarize(GREY, 255, 0, "train")).all()


def test_images_keep_their_shape_and_bits_their_value():
    bits = np.arange(24).reshape(2, 3, 4).astype(np.uint8) % 2
    assert (binarize(bits, 1, 0, "train") == bits).all()
    assert (binarize(bits, 1, 0, "train", "threshold") == bits).all()


def test_threshold_is_above_a_half():
    pixels = np.array([[0, 7, 8, 9, 16]], dtype=np.uint8)
    assert binarize(pixels, 16, 0, "train", "threshold").tolist() == [[0, 0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("pixels", "grey_levels", "says"),
    [
        (np.array([[0.0, 1.5]], np.float32), 1, "from 0 to 1 to binarize, got values from 0.0 to 1.5"),
        (np.array([[-0.1, 0.5]], np.float32), 1, "values from -0.1"),
        (np.array([[np.nan, 0.5]], np.float32), 1, "nan"),
        (np.array([[17]], np.uint8), 16, "from 0 to 16 to binarize, got values from 17 to 17"),
        (np.array([["a"]]), 1, "type <U1"),
        (np.array(1.0), 1, "shape"),
        (np.array([[0.5]]), 0, "grey_levels of 1 or more, got 0"),
    ],
)
def test_what_is_no_pixel_is_refused(pixels, grey_levels, says):
    with pytest.raises(ValueError, match=says):
        binarize(pixels, grey_levels, 0, "train")


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"expected binarization 'sampled' or 'threshold', got 'dither'"):
        binarize(GREY, 255, 0, "train", "dither")
