"""Data sets as numpy arrays in memory: found on disk or downloaded, checked, shuffled by a seed, cut to size.

Nothing here imports torch, but for the download of MNIST and Fashion-MNIST; nothing is ever unpickled.
"""

from amortized_bayes.data.binarization import binarize
from amortized_bayes.data.loading import DATASETS, load_dataset, where_to_put
from amortized_bayes.data.places import DataUnavailable

__all__ = ["DATASETS", "DataUnavailable", "binarize", "load_dataset", "where_to_put"]
