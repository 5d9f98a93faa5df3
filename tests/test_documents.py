"""Documents as counts of words: found, read, checked, and refused in one line."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from amortized_bayes.data import DataUnavailable, read_corpus
from amortized_bayes.data.documents import Counts

TRAIN = np.array([[1, 0, 2, 0], [0, 3, 0, 0], [1, 1, 1, 1]], dtype=np.uint16)
TEST = np.array([[0, 0, 5, 1]], dtype=np.uint16)


def write(folder, train=TRAIN, test=TEST, words="ab bc cd de", **labels):
    folder.mkdir(exist_ok=True)
    for name, array in (("train", train), ("test", test)):
        matrix = array if scipy.sparse.issparse(array) else scipy.sparse.csr_matrix(array)
        scipy.sparse.save_npz(folder / f"{name}_counts.npz", matrix)
    (folder / "vocab.txt").write_text("\n".join(words.split()) + "\n")
    np.savez(folder / "labels.npz", **{"train": np.array([0, 1, 1]), "test": np.array([1]), **labels})
    return str(folder)


def dense(counts):
    found = np.zeros((len(counts), counts.num_words))
    rows = np.repeat(np.arange(len(counts)), np.diff(counts.starts))
    found[rows, counts.words] = counts.counts
    return found


def test_a_folder_is_read_as_it_was_written(tmp_path):
    found = read_corpus(write(tmp_path / "mine"))
    assert (dense(found.train.counts) == TRAIN).all()
    assert (dense(found.test.counts) == TEST).all()
    assert found.train.labels.tolist() == [0, 1, 1]
    assert found.words == ("ab", "bc", "cd", "de")
    assert found.name == "mine"
    again = read_corpus(write(tmp_path / "other", train=scipy.sparse.csr_matrix(TRAIN.astype(float))))
    assert again.sha256 == found.sha256  # of the numbers, not of how they are packed
    changed = TRAIN.copy()
    changed[0, 0] = 2
    assert read_corpus(write(tmp_path / "third", train=changed)).sha256 != found.sha256


def test_documents_are_taken_by_their_places():
    matrix = scipy.sparse.random(20, 7, 0.4, "csr", random_state=0)
    counts = Counts(matrix.indptr.astype(np.int64), matrix.indices, matrix.data, 7)
    rows = np.array([3, 19, 3, 0])
    assert (dense(counts.take(rows)) == matrix[rows].toarray()).all()
    assert len(counts.take(rows[:0])) == 0


def changed(**values):
    matrix = scipy.sparse.csr_matrix(TRAIN.astype(np.float64))
    for name, (place, value) in values.items():
        getattr(matrix, name)[place] = value
    return matrix


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": changed(data=(2, -1.0))}, "got 1 others, the first -1.0 in document 1"),
        ({"train": changed(data=(0, np.nan))}, "whole numbers of 0 or more, got 1 others, the first nan in document 0"),
        ({"train": changed(data=(6, np.inf))}, "the first inf in document 2"),
        ({"test": TEST - 0.5}, "the first -0.5 in document 0"),
        ({"train": TRAIN * [[1], [0], [1]]}, "documents of a word or more, got 1 empty ones, the first at 1"),
        ({"train": changed(data=(2, 0.0))}, "documents of a word or more, got 1 empty ones, the first at 1"),
        ({"words": "ab bc cd"}, "expected a column for each of the 3 words of vocab.txt, got 4"),
        ({"words": "ab bc cd ab"}, "expected different words, one a line, got 4 lines"),
        ({"test": TEST[:, :3]}, "test_counts.npz: expected a column for each of the 4 words of vocab.txt, got 3"),
        ({"train": changed(indices=(1, 4))}, "expected words from 0 to 3, got 0 to 4"),
        (
            {"train": changed(indices=(0, 2))},
            "one entry for each word of a document, got 1 more, the first in document 0",
        ),
        (
            {"train": changed(indices=(6, 0))},
            "one entry for each word of a document, got 1 more, the first in document 2",
        ),
        ({"train": changed(indptr=(1, 6))}, "expected rows one after the other"),
        ({"train": scipy.sparse.csc_matrix(TRAIN)}, "expected a matrix in CSR form, got b'csc'"),
        ({"train": scipy.sparse.csr_matrix(TRAIN.astype(complex))}, "expected a count for each of 7 entries, got comp"),
        ({"labels": None, "test": TEST}, None),
        ({"train_": None}, None),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, given, message):
    given = {name: value for name, value in given.items() if value is not None}
    folder = write(tmp_path / "mine", **given)
    if message is None:
        np.savez(Path(folder) / "labels.npz", train=np.array([0, 1]), test=np.array([1]))
        message = "labels.npz: expected a class for each of 3 documents as 'train', got int64 of shape (2,)"
    with pytest.raises(ValueError, match="mine") as caught:
        read_corpus(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_objects_are_never_unpickled(tmp_path):
    folder = write(tmp_path / "mine")
    np.savez(tmp_path / "mine" / "labels.npz", train=np.array([print, 1, 2], dtype=object), test=np.array([1]))
    with pytest.raises(ValueError, match="Python objects"):
        read_corpus(folder)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("AMORTIZED_BAYES_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        DataUnavailable, match=r"there is no download.*put train_counts.npz, .* and vocab.txt into 20News"
    ):
        read_corpus("20newsgroups")
    with pytest.raises(ValueError, match=r"expected documents .20newsgroups, drawn-topics. or a folder with"):
        read_corpus("20newsgrups")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"vocab.txt cannot be read"):
        read_corpus(str(tmp_path / "empty"))


def test_other_counts_are_not_20_newsgroups(tmp_path):
    write(tmp_path / "20News")
    with pytest.raises(ValueError, match=r"train_counts.npz has changed content: expected sha256 [0-9a-f]{64}, got"):
        read_corpus("20newsgroups", data_dir=tmp_path)


def test_drawn_topics_are_the_same_each_time():
    one, two = read_corpus("drawn-topics"), read_corpus("drawn-topics")
    assert (dense(one.train.counts) == dense(two.train.counts)).all()
    lengths = dense(one.test.counts).sum(1)
    assert 30 <= lengths.min() <= lengths.max() <= 120
    assert set(one.train.labels) == set(range(8))


@pytest.mark.skipif(
    not Path(os.environ.get("AMORTIZED_BAYES_DATA", ""), "20News").is_dir(), reason="the counts are not there"
)
def test_20_newsgroups():
    found = read_corpus("20newsgroups")
    assert (len(found.train.counts), len(found.test.counts), len(found.words)) == (11_314, 7_532, 10_000)
    assert (len(found.train.counts.words), len(found.test.counts.words)) == (1_521_359, 988_743)
    assert np.bincount(found.train.labels).min() == 377
