import contextlib
import io
import pathlib
import pickle

import numpy as np
import pytest

from amortized_bayes.data import load_dataset, to_pictures

ROWS = np.arange(120, dtype=np.float32).reshape(20, 6) - 3.5


def save(path, array=None, **arrays):
    if array is not None:
        np.save(path, array, allow_pickle=True)
    else:
        np.savez(path, **arrays)
    return str(path)


def all_rows(data):
    return np.concatenate([data.train.pixels, data.test.pixels])


def test_real_vectors_from_npy(tmp_path):
    data = load_dataset(save(tmp_path / "mine.npy", ROWS.astype(np.float64)))
    assert (data.name, data.image_shape, data.grey_levels) == ("mine.npy", None, 1)
    assert (data.train.pixels.shape, data.test.pixels.shape) == ((18, 6), (2, 6))
    assert data.train.pixels.dtype == np.float32
    assert sorted(all_rows(data)[:, 0]) == sorted(ROWS[:, 0])
    assert len(data.sha256["mine.npy"]) == 64


def test_the_tenth_for_testing_is_the_same_for_every_seed(tmp_path):
    path = save(tmp_path / "mine.npy", ROWS)
    runs = [load_dataset(path, seed=seed) for seed in (0, 1)]
    assert set(runs[0].test.pixels[:, 0]) == set(runs[1].test.pixels[:, 0])
    assert not (runs[0].train.pixels == runs[1].train.pixels).all()


@pytest.mark.parametrize("keys", [("train", "test"), ("x_train", "x_test")])
def test_npz_with_a_test_array(tmp_path, keys):
    data = load_dataset(save(tmp_path / "a.npz", **{keys[0]: ROWS[:15], keys[1]: ROWS[15:], "other": np.ones(2)}))
    assert (data.train.pixels.shape, data.test.pixels.shape) == ((15, 6), (5, 6))
    assert set(data.test.pixels[:, 0]) == set(ROWS[15:, 0])


@pytest.mark.parametrize("key", ["train", "x_train", "anything"])
def test_npz_with_one_array(tmp_path, key):
    assert load_dataset(save(tmp_path / "a.npz", **{key: ROWS})).train.pixels.shape == (18, 6)


@pytest.mark.parametrize(
    ("array", "dtype", "grey_levels"),
    [
        (np.arange(80).reshape(10, 2, 4).astype(np.uint8), np.uint8, 255),
        (np.arange(80).reshape(10, 2, 4).astype(np.uint8) % 2, np.uint8, 1),
        (np.arange(80).reshape(10, 2, 4) % 2 == 0, np.uint8, 1),
        (np.linspace(0, 1, 80).reshape(10, 2, 4), np.float32, 1),
        (np.arange(80).reshape(10, 2, 4) - 7, np.float32, 1),
    ],
)
def test_images(tmp_path, array, dtype, grey_levels):
    data = load_dataset(save(tmp_path / "images.npy", array))
    assert (data.image_shape, data.grey_levels) == ((1, 2, 4), grey_levels)
    assert data.train.pixels.dtype == dtype
    assert data.train.pixels.shape == (9, 8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("last", [False, True])
def test_channels_come_first_wherever_they_were(tmp_path, channels, last):
    images = np.arange(10 * channels * 8).reshape(10, channels, 2, 4).astype(np.float32)
    data = load_dataset(save(tmp_path / "a.npy", images.transpose(0, 2, 3, 1) if last else images))
    assert data.image_shape == (channels, 2, 4)
    found = all_rows(data)
    assert sorted(found[:, 0]) == sorted(images[:, 0, 0, 0])
    for row in found:
        np.testing.assert_array_equal(row, images[int(row[0]) // (channels * 8)].ravel())
    pictures = to_pictures(found, data.image_shape)
    assert pictures.shape == ((10, 2, 4) if channels == 1 else (10, 2, 4, 3))
    if channels == 3:
        np.testing.assert_array_equal(pictures[..., 1].reshape(10, -1), found[:, 8:16])
    np.testing.assert_array_equal(to_pictures(found, None), found)


def test_train_and_test_with_different_channels_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rows of shape \(3, 4, 4\), got float32 rows of shape \(1, 4, 4\)"):
        load_dataset(save(tmp_path / "a.npz", train=np.zeros((5, 3, 4, 4)), test=np.zeros((5, 4, 4))))


def test_places_of_bad_values_are_those_of_the_file(tmp_path):
    images = np.zeros((6, 4, 5, 3))
    images[2, 3, 4, 1] = np.nan
    with pytest.raises(ValueError, match=r"the first nan at \(2, 3, 4, 1\)"):
        load_dataset(save(tmp_path / "a.npy", images))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_counted_and_placed(tmp_path, bad):
    rows = ROWS.astype(np.float64)
    rows[4, 2] = rows[7, 1] = bad
    with pytest.raises(ValueError, match=r"a.npz, test: expected finite float32 values, got 2 others.* at \(4, 2\)"):
        load_dataset(save(tmp_path / "a.npz", train=ROWS, test=rows))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((0, 4)), "at least 2 rows and 1 column"),
        (np.zeros((1, 4)), "at least 2 rows and 1 column"),
        (np.zeros((4, 0)), "at least 2 rows and 1 column"),
        (np.zeros(4), r"expected shape \(N, P\), \(N, H, W\), \(N, C, H, W\) or \(N, H, W, C\), got \(4,\)"),
        (np.float64(4), r"got \(\)"),
        (np.zeros((4, 1, 2, 2, 2)), r"got \(4, 1, 2, 2, 2\)"),
        (np.zeros((4, 2, 8, 8)), r"C of 1 or 3 on one side, got \(4, 2, 8, 8\), where neither could be the channels"),
        (np.zeros((4, 3, 8, 3)), r"got \(4, 3, 8, 3\), where both could be the channels"),
        (np.zeros((4, 1, 8, 3)), "where both could be the channels"),
        (np.array([["a", "b"], ["c", "d"]]), "expected real numbers, got an array of type <U1"),
        (np.zeros((4, 2), complex), "got an array of type complex128"),
        (np.zeros((4, 2), "M8[s]"), "expected real numbers"),
        (np.zeros((4, 2), [("x", "f4")]), "expected real numbers"),
    ],
)
def test_arrays_that_are_no_data_are_refused(tmp_path, array, says):
    with pytest.raises(ValueError, match=says):
        load_dataset(save(tmp_path / "a.npy", array))


def test_train_and_test_must_fit(tmp_path):
    with pytest.raises(ValueError, match=r"expected test rows like the training rows, .*\(6,\), got .*\(5,\)"):
        load_dataset(save(tmp_path / "a.npz", train=ROWS, test=ROWS[:, :5]))
    with pytest.raises(ValueError, match=r"float32 rows of shape .* got uint8 rows"):
        load_dataset(save(tmp_path / "b.npz", train=ROWS, test=ROWS.astype(np.int64).astype(np.uint8)))
    with pytest.raises(ValueError, match="named train or x_train, or a single array, got a, b"):
        load_dataset(save(tmp_path / "c.npz", a=ROWS, b=ROWS))


def test_files_that_are_not_numpys_are_refused(tmp_path):
    whole = io.BytesIO()
    np.savez_compressed(whole, train=np.random.default_rng(0).random((50, 20)))
    damaged = bytearray(whole.getvalue())
    damaged[len(damaged) // 2] ^= 1
    contents = {"text.npy": b"1,2\n3,4\n", "empty.npz": b"", "cut.npz": whole.getvalue()[:-200], "bit.npz": damaged}
    contents["head.npy"] = b"\x93NUMPY\x01\x00"
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read: ") as caught:
            load_dataset(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"nowhere.npy.*no such file"):
        load_dataset(str(tmp_path / "nowhere.npy"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_no_flipped_bit_raises_anything_else(tmp_path, name):
    path = tmp_path / name
    sound = pathlib.Path(save(path, ROWS[:4]) if name == "a.npy" else save(path, train=ROWS[:4])).read_bytes()
    for place in range(len(sound)):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with contextlib.suppress(ValueError):
            load_dataset(str(path))


class Marker:
    """Unpickling one writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_nothing_is_unpickled(tmp_path):
    trap = np.array([[Marker(str(tmp_path / "ran"))] * 2] * 2, dtype=object)
    for path in (save(tmp_path / "a.npy", trap), save(tmp_path / "b.npz", train=trap)):
        with pytest.raises(ValueError, match="got Python objects, and those are never unpickled"):
            load_dataset(path)
    (tmp_path / "c.npy").write_bytes(pickle.dumps(Marker(str(tmp_path / "ran"))))
    with pytest.raises(ValueError, match=r"expected .npy or .npz content"):
        load_dataset(str(tmp_path / "c.npy"))
    assert not (tmp_path / "ran").exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)  # the trap does work
    assert (tmp_path / "ran").exists()
