"""What a user may get wrong in a call of ``load_dataset``."""

import pytest

from amortized_bayes.data import DATASETS, load_dataset, where_to_put


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"num_train": 1501}, "digits: expected num_train from 1 to 1500, the rows there are, got 1501"),
        ({"num_test": 298}, "num_test from 1 to 297, .* got 298"),
        ({"num_train": 0}, "num_train from 1 to 1500, .* got 0"),
        ({"num_test": -5}, "num_test from 1 to 297, .* got -5"),
        ({"seed": -1}, "expected a seed of 0 or more, got -1"),
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
    with pytest.raises(ValueError, match=r"binarized-mnist, digits.*path that ends in .npy or .npz, got 'rows.csv'$"):
        load_dataset("rows.csv")


@pytest.mark.parametrize("name", ["mnist", "digits", "mine.npy"])
def test_a_data_directory_must_be_one(tmp_path, name):
    with pytest.raises(ValueError, match=r"expected a folder as data directory, got .*gone': nothing there"):
        load_dataset(name, data_dir=tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"expected a folder as data directory, got .*file': a file"):
        load_dataset(name, data_dir=tmp_path / "file")


@pytest.mark.parametrize("name", DATASETS)
def test_where_to_put_is_one_line(name):
    assert "\n" not in where_to_put(name)
    assert ("AMORTIZED_BAYES_DATA" in where_to_put(name)) == (name != "digits")
