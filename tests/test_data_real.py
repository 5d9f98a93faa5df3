"""The real files: those that ``AMORTIZED_BAYES_DATA`` points to, and scikit-learn's digits."""

import os
from pathlib import Path

import numpy as np
import pytest

from amortized_bayes.data import load_dataset
from amortized_bayes.data.binarized import read_binarized
from amortized_bayes.data.labels import labels_of_binarized

needs_files = pytest.mark.skipif(
    not os.environ.get("AMORTIZED_BAYES_DATA"), reason="AMORTIZED_BAYES_DATA does not say where the data lie"
)


@needs_files
@pytest.mark.parametrize(
    ("name", "train_counts", "test_counts"),
    [
        (
            "mnist",
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
            [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        ),
        ("fashion-mnist", [6000] * 10, [1000] * 10),
    ],
)
def test_mnist_and_fashion(name, train_counts, test_counts):
    data = load_dataset(name, download=False)
    assert (data.train.pixels.shape, data.test.pixels.shape) == ((60000, 784), (10000, 784))
    assert (data.image_shape, data.grey_levels) == ((1, 28, 28), 255)
    assert np.bincount(data.train.labels).tolist() == train_counts
    assert np.bincount(data.test.labels).tolist() == test_counts
    assert data.train.pixels.dtype == np.uint8
    assert data.train.pixels.max() == 255


@needs_files
def test_labels_stay_with_their_images():
    # A one has less ink than a zero; means over MNIST's 60,000 training images, frozen from the unshuffled files.
    data = load_dataset("mnist", seed=3, download=False)
    assert data.train.labels is not None
    ink = [data.train.pixels[data.train.labels == digit].mean() for digit in (0, 1)]
    assert ink == pytest.approx([44.21682790539819, 19.379653852790003], rel=1e-12)


@needs_files
def test_binarized_mnist():
    data = load_dataset("binarized-mnist", download=False)
    assert (data.train.pixels.shape, data.test.pixels.shape) == ((50000, 784), (10000, 784))
    assert (data.image_shape, data.grey_levels) == ((1, 28, 28), 1)
    assert (data.train.pixels.sum(), data.test.pixels.sum()) == (5118041, 1038896)
    assert data.train.pixels.max() == 1
    assert data.train.labels is None


@needs_files
def test_binarized_mnist_from_text_and_damaged(tmp_path):
    folder = Path(os.environ["AMORTIZED_BAYES_DATA"]) / "BinarizedMNIST"
    packed = dict(np.load(folder / "binarized_mnist.npz", allow_pickle=False))
    text = np.full((10000, 1568), ord(" "), np.uint8)
    text[:, ::2] = np.unpackbits(packed["test"], axis=1) + ord("0")
    text[:, -1] = ord("\n")
    amat = tmp_path / "binarized_mnist_test.amat"
    amat.write_bytes(text.tobytes())
    whole = folder / "binarized_mnist.npz"
    assert (read_binarized([whole, amat]).test.pixels == read_binarized([whole, whole]).test.pixels).all()
    amat.write_bytes(text.tobytes()[:-1])
    with pytest.raises(ValueError, match="expected 15680000 bytes of text, got 15679999"):
        read_binarized([whole, amat])
    packed["test"][17, 5] ^= 4
    np.savez(tmp_path / "flipped.npz", **packed)
    with pytest.raises(ValueError, match=r"flipped.npz, test, has changed content: expected sha256 9fcd8da6"):
        read_binarized([tmp_path / "flipped.npz"] * 2)
    np.savez(tmp_path / "short.npz", train=packed["train"][:9])
    with pytest.raises(ValueError, match=r"expected uint8 \(50000, 98\), bits packed in rows, got uint8 \(9, 98\)"):
        read_binarized([tmp_path / "short.npz"] * 2)


def test_digits():
    data = load_dataset("digits")
    assert (data.train.pixels.shape, data.test.pixels.shape) == ((1500, 64), (297, 64))
    assert (data.image_shape, data.grey_levels, data.train.pixels.max()) == ((1, 8, 8), 16, 16)
    labels = np.concatenate([data.train.labels, data.test.labels])
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_split_is_the_same_for_every_seed():
    runs = [load_dataset("digits", seed=seed) for seed in (0, 1)]
    rows = [sorted(map(bytes, run.test.pixels)) for run in runs]
    assert rows[0] == rows[1]
    assert not (runs[0].test.pixels == runs[1].test.pixels).all()


def test_changed_digits_are_refused(monkeypatch):
    from amortized_bayes.data import digits

    monkeypatch.setitem(digits.DIGITS_SHA256, "load_digits labels", "0" * 64)
    with pytest.raises(ValueError, match="load_digits labels differ from the known ones: expected 000"):
        load_dataset("digits")


@needs_files
def test_labels_of_the_binarized_test_images_come_out_sorted():
    """The files keep those images sorted by digit, which the matching does not know."""
    packed = Path(os.environ["AMORTIZED_BAYES_DATA"]) / "BinarizedMNIST" / "binarized_mnist.npz"
    if not packed.is_file():
        pytest.skip(f"no {packed.name}")
    grey = load_dataset("mnist", download=False).test
    bits = read_binarized([packed, packed]).test.pixels[::50]
    assert (np.diff(labels_of_binarized(bits, grey.pixels, grey.labels).astype(int)) >= 0).all()
