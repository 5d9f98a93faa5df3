"""Data sets as numpy arrays in memory: found on disk or downloaded, checked, shuffled by a seed, cut to size.

``DATASETS`` has an entry for each data set known by name. Nothing here imports torch, but for the download of MNIST and
FashionMNIST; nothing is ever unpickled.
"""

from amortized_bayes.data.binarization import binarize
from amortized_bayes.data.catalogue import DATASETS, KnownDataset, display_name, label_of, short_name
from amortized_bayes.data.documents import CORPORA, Corpus, Counts, Documents, read_corpus
from amortized_bayes.data.loading import load_dataset, read_dataset, shuffle, where_to_put
from amortized_bayes.data.pictures import to_pictures
from amortized_bayes.data.places import DataUnavailable

__all__ = [
    "CORPORA",
    "DATASETS",
    "Corpus",
    "Counts",
    "DataUnavailable",
    "Documents",
    "KnownDataset",
    "binarize",
    "display_name",
    "label_of",
    "load_dataset",
    "read_corpus",
    "read_dataset",
    "short_name",
    "shuffle",
    "to_pictures",
    "where_to_put",
]
