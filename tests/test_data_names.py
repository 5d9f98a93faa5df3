"""What a user may get wrong in a call of ``load_dataset``."""

import pytest

from amortized_bayes.data import (
    DATASETS,
    KnownDataset,
    display_name,
    label_of,
    load_dataset,
    read_dataset,
    short_name,
    shuffle,
    where_to_put,
)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"num_train": 1501}, "digits: expected num_train from 1 to 1500, the rows there are, got 1501"),
        ({"num_test": 298}, "num_test from 1 to 297, .* got 298"),
        ({"num_train": 0}, "expected num_train of 1 or more, got 0"),
        ({"num_test": -5}, "expected num_test of 1 or more, got -5"),
        ({"seed": -1}, "expected seed of 0 or more, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(asked, says):
    with pytest.raises(ValueError, match=says):
        load_dataset("digits", **asked)


@pytest.mark.parametrize("name", ["fasion_MNIST", "Fashion-MNIST", "fashion mnist"])
def test_a_name_misspelt_gets_a_hint(name):
    expected = r"expected a data set \(mnist, .*got '" + name + "'; did you mean 'fashion-mnist'"
    with pytest.raises(ValueError, match=expected):
        load_dataset(name)
    with pytest.raises(ValueError, match=expected):
        where_to_put(name)


def test_a_name_like_nothing_gets_the_list():
    with pytest.raises(
        ValueError, match=r"binarized-mnist, cifar10, digits.*path that ends in .npy or .npz, got 'rows.csv'$"
    ):
        load_dataset("rows.csv")


@pytest.mark.parametrize("name", ["mnist", "digits", "mine.npy"])
def test_a_data_directory_must_be_one(tmp_path, name):
    with pytest.raises(ValueError, match=r"expected a folder as data directory, got .*gone': nothing there"):
        load_dataset(name, data_dir=tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"expected a folder as data directory, got .*file': a file"):
        load_dataset(name, data_dir=tmp_path / "file")


def test_a_data_set_is_one_entry(monkeypatch):
    dataset = load_dataset("digits")
    monkeypatch.setitem(
        DATASETS, "new-set", KnownDataset("New Set", "new", lambda paths: dataset._replace(name="new-set"))
    )
    assert load_dataset("new-set").name == "new-set"
    assert (label_of("new-set"), short_name("new-set"), display_name("new-set")) == ("New Set", "new", "new-set")
    assert where_to_put("new-set") == "new-set comes with an installed package: there is nothing to put anywhere"
    with pytest.raises(
        ValueError, match=r"\(mnist, .*digits, celeba, new-set\).* got 'new-sett'; did you mean 'new-set'"
    ):
        load_dataset("new-sett")


@pytest.mark.parametrize(
    ("dataset", "display", "label", "short"),
    [
        ("fashion-mnist", "fashion-mnist", "FashionMNIST", "fmnist"),
        ("binarized-mnist", "binarized-mnist", "binarized MNIST", "binarized-mnist"),
        ("/somewhere/my images.npz", "my images.npz", "my images.npz", "my-images"),
        ("mine.npz", "mine.npz", "mine.npz", "mine"),
        (r"$\frac$.npy", r"$\frac$.npy", r"$\frac$.npy", "frac"),
        ("../...npy", "...npy", "...npy", "data"),
        ("/somewhere/my faces", "my faces", "my faces", "my-faces"),
    ],
)
def test_names_for_rows_titles_and_files(dataset, display, label, short):
    assert (display_name(dataset), label_of(dataset), short_name(dataset)) == (display, label, short)


def test_entries_fit_what_they_read():
    assert len({known.short for known in DATASETS.values()}) == len(DATASETS)
    assert all(known.labels_from in DATASETS for known in DATASETS.values() if known.labels_from)
    assert [name for name, known in DATASETS.items() if known.binarization == "threshold"] == [
        "fashion-mnist",
        "cifar10",
        "celeba",
    ]
    assert [name for name, known in DATASETS.items() if not known.grey] == ["binarized-mnist"]


@pytest.mark.parametrize("seed", [0, 3])
def test_what_is_read_once_can_be_shuffled_by_any_seed(seed):
    once, asked = shuffle(read_dataset("digits"), seed, 100, 20), load_dataset("digits", seed=seed)
    for split, count in (("train", 100), ("test", 20)):
        one, other = getattr(once, split), getattr(asked, split)
        assert (one.pixels == other.pixels[:count]).all()
        assert (one.labels == other.labels[:count]).all()


@pytest.mark.parametrize("name", DATASETS)
def test_where_to_put_is_one_line(name):
    assert "\n" not in where_to_put(name)
    assert ("AMORTIZED_BAYES_DATA" in where_to_put(name)) == (name != "digits")
