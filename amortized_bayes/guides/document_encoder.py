"""Encoders of documents: counts of words, dense or sparse, to log odds of bits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from amortized_bayes.limits import Count, limited
from amortized_bayes.networks import MLP
from amortized_bayes.sparse_rows import SparseLinear, SparseRows

__all__ = ["INPUTS", "DocumentEncoder", "InputName", "rarity"]

InputName = Literal["counts", "frequencies", "tfidf"]
INPUTS: tuple[InputName, ...] = ("counts", "frequencies", "tfidf")
"""What an encoder may see of a document: counts, shares of its length, or shares that weigh rare words more."""


def rarity(x: SparseRows) -> Tensor:
    """Inverse document frequencies of the columns of counts (N, V), 1 + log((1 + N) / (1 + documents)): (V,).

    As scikit-learn's ``TfidfTransformer`` smooths them.
    """
    held = x.values.new_zeros(x.width).index_add_(0, x.columns, (x.values > 0).to(x.values))
    return 1 + ((1 + len(x)) / (1 + held)).log()


class DocumentEncoder(nn.Module):
    """A linear map of what it sees of a document, or a network of one hidden layer with leaky ReLU.

    Args:
        num_words: V.
        num_bits: b.
        width: width of the hidden layer; ``None`` for a linear encoder.
        sees: ``counts``, ``frequencies`` (counts over the document's length) or ``tfidf`` (counts times the inverse
            document frequency, of length 1 in the Euclidean norm).
        weights: inverse document frequencies, (V,), of ``tfidf``.

    Raises:
        ValueError: an input of another name, or ``tfidf`` without weights.
    """

    weights: Tensor

    @limited
    def __init__(
        self,
        num_words: Count,
        num_bits: Count,
        width: Count | None = None,
        sees: InputName = "counts",
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if sees == "tfidf" and (weights is None or weights.shape != (num_words,)):
            raise ValueError(f"expected inverse document frequencies of {num_words} words with input 'tfidf', got none")
        self.sees = sees
        self.first = SparseLinear(num_words, num_bits if width is None else width)
        self.rest = nn.Identity() if width is None else nn.Sequential(nn.LeakyReLU(0.2), MLP([width, num_bits]))
        self.register_buffer("weights", weights if weights is not None else torch.ones(()), persistent=False)

    def forward(self, x: Tensor | SparseRows) -> Tensor:
        """Log odds of the bits of documents (B, V): (B, b)."""
        return self.rest(self.first(self.seen(x)))

    def seen(self, x: Tensor | SparseRows) -> Tensor | SparseRows:
        """What the network gets of counts (B, V)."""
        if self.sees == "counts":
            return x
        if isinstance(x, Tensor):
            weighed = x * self.weights if self.sees == "tfidf" else x
            norm = x.sum(1) if self.sees == "frequencies" else weighed.square().sum(1).sqrt()
            return weighed / norm[:, None]
        weighed = x
        if self.sees == "tfidf":
            weighed = x.with_values(x.values * self.weights.index_select(0, x.columns))
        norm = x.sums() if self.sees == "frequencies" else weighed.with_values(weighed.values.square()).sums().sqrt()
        return weighed.with_values(weighed.values / norm.index_select(0, x.rows()))
