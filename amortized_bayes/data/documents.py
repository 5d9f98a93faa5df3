"""Documents as counts of words: 20 Newsgroups, a folder of one's own in the same form, and documents drawn from topics.

Source of 20 Newsgroups: K. Lang, "NewsWeeder: Learning to Filter Netnews", 1995, http://qwone.com/~jason/20Newsgroups,
in the split by date. Read are counts, never the posts: ``train_counts.npz`` and ``test_counts.npz`` as
``scipy.sparse.save_npz`` writes matrices in CSR form, ``vocab.txt`` with a word a line in the order of the columns, and
``labels.npz`` with the class of each document, ``train`` and ``test``, and their ``names``. There is no download:
scikit-learn's ``fetch_20newsgroups`` keeps a cache of pickles, which are never opened here. docs/approximation_error.md
says how the files are made of it. Counts stay sparse throughout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from amortized_bayes.data.arrays import read_numpy_file
from amortized_bayes.data.places import (
    ENVIRONMENT_VARIABLE,
    DataUnavailable,
    FileSet,
    cache_folder,
    describe_search,
    find_files,
    list_search_folders,
)
from amortized_bayes.refusals import nearest
from amortized_bayes.seeding import numpy_generator

__all__ = ["CORPORA", "Corpus", "Counts", "Documents", "KnownCorpus", "corpus_name", "is_corpus", "read_corpus"]

FILES = ("train_counts.npz", "test_counts.npz", "labels.npz", "vocab.txt")
NEWSGROUPS_SHA256 = {
    "train_counts.npz": "058e571eeef0f3cc1e7fc5555b0ceb7ceb5255b704939b47fdd0db7dd3b375ba",
    "test_counts.npz": "804155808009bbcb5f87334fd77dd830207bb67b241613f063bbcb2d3b6edbd1",
    "labels.npz": "43080318c830cf3bb571887f7e284cbc1ada1609568c54f5f4f72d0ca8231c65",
    "vocab.txt": "658c1debe5c055c9c54f8f0da38802ac1676af0b9f13fdfcff108a143347748a",
}
"""Of the numbers in each file, as :func:`_content` takes them, or of the words, however the file packs them."""
MOST_WORDS = 10**7
MOST_COUNT = 2**31


@dataclass(frozen=True, eq=False)
class Counts:
    """How often each word is in each of N documents, in compressed sparse rows.

    Args:
        starts: (N + 1,), int64, where the entries of each document begin.
        words: (E,), int32, the word of each entry.
        counts: (E,), float32, how often it is there.
        num_words: size of the vocabulary.
    """

    starts: np.ndarray
    words: np.ndarray
    counts: np.ndarray
    num_words: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, rows: np.ndarray) -> Counts:
        """Documents at these places, in this order."""
        lengths = np.diff(self.starts)[rows]
        starts = np.concatenate([[0], lengths.cumsum()])
        at = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], lengths)
        return Counts(starts, self.words[at], self.counts[at], self.num_words)


class Documents(NamedTuple):
    """One split: counts, and the class of each document (N,), ``None`` where none are known."""

    counts: Counts
    labels: np.ndarray | None


class Corpus(NamedTuple):
    """Documents in memory. ``sha256`` maps each file that was read to its checksum; ``note`` as in ``Dataset``."""

    name: str
    train: Documents
    test: Documents
    words: tuple[str, ...]
    sha256: dict[str, str]
    source: str
    note: str = ""


class KnownCorpus(NamedTuple):
    """A corpus known by name.

    Args:
        label: its name in titles and captions.
        read: reads its files, in the order of ``files``.
        files: lists them; ``None`` where there are none.
    """

    label: str
    read: Callable[[list[Path]], Corpus]
    files: FileSet | None = None


def read_corpus(name_or_folder: str, *, data_dir: Path | str | None = None) -> Corpus:
    """Find, read and check a corpus: one of ``CORPORA``, or a folder with the four files.

    Raises:
        DataUnavailable: a known corpus is not there; says what to put where.
        ValueError: an unknown name, or a file that is not what it should be.
    """
    if name_or_folder in CORPORA:
        known = CORPORA[name_or_folder]
        if known.files is None:
            return known.read([])
        folders = list_search_folders(data_dir)
        paths = find_files(known.files, folders)
        if paths is None:
            roots = f"the folder given by --data-dir or {ENVIRONMENT_VARIABLE}, or {cache_folder()}"
            raise DataUnavailable(
                f"{name_or_folder} is unavailable: searched {describe_search(known.files, folders)}; there is no "
                f"download for it; put {known.files.hint} into {known.files.folder} under {roots}"
            )
        return known.read(paths)
    folder = Path(name_or_folder).expanduser()
    if not is_corpus(name_or_folder):
        hint = nearest(name_or_folder, CORPORA)
        raise ValueError(
            f"expected documents ({', '.join(CORPORA)}) or a folder with {' '.join(FILES)}, got "
            f"{name_or_folder!r}{hint}"
        )
    return _read([folder / name for name in FILES], corpus_name(name_or_folder))


def is_corpus(name: str) -> bool:
    """Whether this names documents: one of ``CORPORA``, or a folder."""
    return name in CORPORA or (bool(name) and Path(name).expanduser().is_dir())


def corpus_name(name: str) -> str:
    """The name in rows and tables: a known name, or that of the folder."""
    return name if name in CORPORA else Path(name).expanduser().resolve().name


def _read_newsgroups(paths: list[Path]) -> Corpus:
    found = _read(paths, "20newsgroups")
    for path in paths:
        got, expected = found.sha256[path.name], NEWSGROUPS_SHA256[path.name]
        if got != expected:
            raise ValueError(f"{path} has changed content: expected sha256 {expected}, got {got}")
    return found


def _read(paths: list[Path], name: str) -> Corpus:
    """The four files of a folder, checked against each other."""
    train_path, test_path, label_path, word_path = paths
    words, sha_of_words = _read_words(word_path)
    splits, sums = {}, {word_path.name: sha_of_words}
    for split, path in (("train", train_path), ("test", test_path)):
        splits[split], sums[path.name] = _read_counts(path)
        if splits[split].num_words != len(words):
            raise ValueError(
                f"{path}: expected a column for each of the {len(words):,} words of {word_path.name}, got "
                f"{splits[split].num_words:,}"
            )
    labels, sums[label_path.name] = _read_labels(label_path, {split: len(counts) for split, counts in splits.items()})
    train, test = (Documents(splits[split], labels[split]) for split in ("train", "test"))
    return Corpus(name, train, test, words, sums, str(train_path.parent))


def _read_counts(path: Path) -> tuple[Counts, str]:
    """A matrix that ``scipy.sparse.save_npz`` wrote in CSR form.

    Raises:
        ValueError: another file, counts that are negative, not finite or no whole numbers, a document that is empty or
            has two entries for a word.
    """
    keys = ("format", "shape", "indptr", "indices", "data")
    arrays, _ = read_numpy_file(path, keys)
    if missing := [key for key in keys if key not in arrays]:
        raise ValueError(f"{path}: expected a CSR matrix of scipy.sparse.save_npz, got no array {missing[0]!r}")
    form = arrays["format"].item() if arrays["format"].size == 1 else b""
    if form not in (b"csr", "csr"):
        raise ValueError(f"{path}: expected a matrix in CSR form, got {form!r}")
    starts, words, counts = (arrays[key] for key in keys[2:])
    for key in keys[1:4]:
        if arrays[key].dtype.kind not in "iu" or arrays[key].ndim != 1:
            raise ValueError(f"{path}: expected whole numbers in a row as {key}, got {_described(arrays[key])}")
    if counts.dtype.kind not in "iuf" or counts.shape != words.shape:
        raise ValueError(f"{path}: expected a count for each of {len(words):,} entries, got {_described(counts)}")
    if len(arrays["shape"]) != 2 or len(starts) != arrays["shape"][0] + 1 or len(starts) < 2:
        raise ValueError(f"{path}: expected a row for each document, got shape {tuple(arrays['shape'].tolist())}")
    num_words = int(arrays["shape"][1])
    starts = starts.astype(np.int64)
    if starts[0] != 0 or starts[-1] != len(words) or (np.diff(starts) < 0).any() or not 1 <= num_words <= MOST_WORDS:
        raise ValueError(f"{path}: expected rows one after the other, got places of rows or a width that cannot be")
    if len(words) and (int(words.min()) < 0 or int(words.max()) >= num_words):
        raise ValueError(f"{path}: expected words from 0 to {num_words - 1:,}, got {words.min()} to {words.max()}")
    _check_once(path, words, starts)
    _check_counts(path, counts, starts)
    found = Counts(starts, words.astype(np.int32), counts.astype(np.float32), num_words)
    return found, _content(starts, words, counts)


def _check_once(path: Path, words: np.ndarray, starts: np.ndarray) -> None:
    """Refuse a document in which a word has two entries: what is asked of entries is meant of words."""
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.lexsort((words, rows))
    twice = (np.diff(rows[order]) == 0) & (np.diff(words[order].astype(np.int64)) == 0)
    if twice.any():
        document = int(rows[order][int(twice.argmax())])
        raise ValueError(
            f"{path}: expected one entry for each word of a document, got {int(twice.sum()):,} more, the first in "
            f"document {document}; sum_duplicates() of scipy.sparse joins them"
        )


def _check_counts(path: Path, counts: np.ndarray, starts: np.ndarray) -> None:
    """Refuse counts that are none, and documents without a word."""
    bad = ~((counts >= 0) & (counts < MOST_COUNT))
    if counts.dtype.kind == "f":
        bad |= counts != np.floor(counts)
    if bad.any():
        at = int(bad.argmax())
        document = int(np.searchsorted(starts, at, "right")) - 1
        raise ValueError(
            f"{path}: expected counts that are whole numbers of 0 or more, got {int(bad.sum()):,} others, the first "
            f"{counts[at]} in document {document}"
        )
    sums = np.concatenate([[0], counts.cumsum(dtype=np.float64)])
    lengths = sums[starts[1:]] - sums[starts[:-1]]
    if (lengths == 0).any():
        raise ValueError(
            f"{path}: expected documents of a word or more, got {int((lengths == 0).sum()):,} empty ones, the first "
            f"at {int((lengths == 0).argmax())}"
        )


def _read_words(path: Path) -> tuple[tuple[str, ...], str]:
    try:
        text = path.read_bytes()
        words = tuple(text.decode("utf-8").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: expected a word a line, got {error}") from None
    words = words[:-1] if words[-1] == "" else words
    if not words or len(set(words)) < len(words) or "" in words:
        raise ValueError(f"{path}: expected different words, one a line, got {len(words):,} lines")
    return words, hashlib.sha256("\n".join(words).encode()).hexdigest()


def _read_labels(path: Path, sizes: Mapping[str, int]) -> tuple[dict[str, np.ndarray], str]:
    arrays, _ = read_numpy_file(path, tuple(sizes))
    found = {}
    for split, size in sizes.items():
        labels = arrays.get(split)
        if labels is None or labels.dtype.kind not in "iu" or labels.shape != (size,):
            got = "none" if labels is None else _described(labels)
            raise ValueError(f"{path}: expected a class for each of {size:,} documents as {split!r}, got {got}")
        found[split] = labels.astype(np.int64)
    return found, _content(*found.values())


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _content(*arrays: np.ndarray) -> str:
    """The sha256 of whole numbers, however they are packed and of whatever type."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return found.hexdigest()


# Drawn ----------------------------------------------------------------------------------------------------------------

TOPICS, DRAWN_WORDS = 8, 400
DRAWN = {"train": 1_200, "test": 300}
"""Documents of each split."""


def draw_topics() -> Corpus:
    """Documents of eight topics, half of whose words are of their topic and half of all: always the same ones.

    Each has 30 to 120 words; labels are topics.
    """
    generator = numpy_generator(0, "documents", "topics")
    common = generator.dirichlet(np.full(DRAWN_WORDS, 0.5))
    topics = generator.dirichlet(np.full(DRAWN_WORDS, 0.05), TOPICS)
    splits = {}
    for split, size in DRAWN.items():
        labels = generator.integers(TOPICS, size=size)
        lengths = generator.integers(30, 121, size=size)
        dense = np.stack(
            [generator.multinomial(n, 0.5 * common + 0.5 * topics[k]) for n, k in zip(lengths, labels, strict=True)]
        )
        rows, words = dense.nonzero()
        starts = np.concatenate([[0], np.bincount(rows, minlength=size).cumsum()])
        counts = dense[rows, words].astype(np.float32)
        splits[split] = Documents(Counts(starts, words.astype(np.int32), counts, DRAWN_WORDS), labels)
    words = tuple(f"word{number:03d}" for number in range(DRAWN_WORDS))
    return Corpus("drawn-topics", splits["train"], splits["test"], words, {}, "drawn by numpy")


CORPORA: dict[str, KnownCorpus] = {
    "20newsgroups": KnownCorpus(
        "20 Newsgroups",
        _read_newsgroups,
        FileSet("20News", tuple((name,) for name in FILES), f"{', '.join(FILES[:-1])} and {FILES[-1]}"),
    ),
    "drawn-topics": KnownCorpus("drawn topics", lambda _: draw_topics()),
}
"""Documents known by name."""
