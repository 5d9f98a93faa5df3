r"""Semantic hashing: documents whose words are drawn given a few fair bits.

.. math::
    z \in \{0, 1\}^b, \quad p(z) = 2^{-b}, \qquad
    \log p(x \mid z) = \sum_w x_w \log p_w(z), \qquad p(z) = \mathrm{softmax}(h(z)^T W + c),

where x_w counts a word and h is the identity (depth 0) or a network of hidden layers (Salakhutdinov & Hinton, 2009;
Shekhovtsov, Schlesinger & Flach, *VAE Approximation Error: ELBO and Exponential Families*, ICLR 2022). It is the
density of the words in their order: the multinomial coefficient, which no parameter changes, is left out.

Counts may be sparse. With the normalizer a(z) = logsumexp(h W + c), and n the document's length,

.. math:: \log p(x \mid z) = h^T (W x) + c^T x - n\, a(z),

so that of all words only those of the document are looked at, and the normalizer is what a code costs. A code has the
same h and a for all documents, so that up to 16 bits all of them are summed: evidence, posterior and ELBO are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from amortized_bayes.limits import AtLeast, Count, limited
from amortized_bayes.networks import ACTIVATIONS
from amortized_bayes.registration import Registered
from amortized_bayes.sparse_rows import SparseLinear, SparseRows, product

__all__ = ["MOST_SUMMED", "CodeBook", "SemanticHashing", "WordCounts", "all_codes"]

MOST_SUMMED = 16
"""Bits whose codes are all summed."""
AT_ONCE = 2**23
"""Numbers of a block, such as the words' logits of a few codes."""


class SemanticHashing(Registered):
    """The model as a Pyro program over the plate ``data``, called with counts (B, V), dense or sparse.

    Args:
        num_words: V.
        num_bits: b, of the site ``bits``.
        depth: hidden layers of the decoder, with leaky ReLU between them.
        width: width of each.
        frequencies: frequencies of the words, (V,), at which the output's bias starts; by default that of
            ``nn.Linear``.
        separate: a site for each bit, ``bit0`` and so on, marked for enumeration, instead of ``bits``.

    Raises:
        ValueError: a size out of its range, or frequencies of another shape or not above 0.

    Example:
        >>> model = SemanticHashing(num_words=5, num_bits=2)
        >>> x = torch.tensor([[1.0, 0.0, 2.0, 0.0, 0.0]])
        >>> log_p = model.code_book().log_evidence(x)
        >>> torch.equal(log_p, model.code_book().log_joint(x).logsumexp(1))
        True
    """

    @limited
    def __init__(
        self,
        num_words: Count,
        num_bits: Annotated[int, AtLeast(1, 4096)],
        depth: Annotated[int, AtLeast(0, 100)] = 0,
        width: Count = 512,
        *,
        frequencies: Tensor | None = None,
        separate: bool = False,
    ) -> None:
        super().__init__()
        sizes = [num_bits, *[width] * depth]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.output = SparseLinear(sizes[-1], num_words)
        self.num_bits, self.num_words, self.separate = num_bits, num_words, separate
        if frequencies is not None:
            if frequencies.shape != (num_words,) or not bool((frequencies > 0).all()):
                raise ValueError(f"expected frequencies above 0 of {num_words} words, got {tuple(frequencies.shape)}")
            with torch.no_grad():
                self.output.bias.copy_((frequencies / frequencies.sum()).log())

    def forward(self, x: Any, index: Tensor | None = None) -> Any:
        """Sample (or score) the model on counts (B, V), dense or sparse."""
        del index
        half = self.output.weight.new_full((), 0.5)
        with pyro.plate("data", len(x)):
            if self.separate:
                marks: Any = {"enumerate": "parallel"}
                each = [pyro.sample(f"bit{d}", dist.Bernoulli(half), infer=marks) for d in range(self.num_bits)]
                bits = torch.stack(torch.broadcast_tensors(*each), -1)
                bits = bits.expand(*bits.shape[:-2], len(x), -1)  # of enumerated bits the plate's dimension is 1
            else:
                bits = pyro.sample("bits", dist.Bernoulli(half.expand(self.num_bits)).to_event(1))
            words: Any = WordCounts(self.features(bits), self.output.weight, self.output.bias)
            return pyro.sample("words", words, obs=x)

    def features(self, bits: Tensor) -> Tensor:
        """What the last layer sees of codes (..., b): h, (..., K)."""
        for layer in self.hidden:
            bits = ACTIVATIONS["leaky-relu"](layer(bits))
        return bits

    def log_joint(self, x: Tensor | SparseRows, bits: Tensor) -> Tensor:
        """Log p(x, z) of each document and S codes of its own, (S, B, b): (S, B), in nats, without a gradient."""
        with torch.no_grad():
            seen = self._seen(x)
            rows = max(1, AT_ONCE // self.num_words)
            flat = bits.reshape(-1, self.num_bits)
            parts = [self._of_codes(part) for part in flat.split(rows)]
            h, normalizer = (torch.cat(part).unflatten(0, bits.shape[:2]) for part in zip(*parts, strict=True))
            return (h * seen[0]).sum(-1) + seen[1] - seen[2] * normalizer - self.num_bits * math.log(2)

    def code_book(self) -> CodeBook:
        """All codes, as the model is now.

        Raises:
            ValueError: more than 16 bits.
        """
        return CodeBook(self)

    def _seen(self, x: Tensor | SparseRows) -> tuple[Tensor, Tensor, Tensor]:
        """Of documents all that their log density depends on, in float64: W x (B, K), c'x (B,) and the length (B,)."""
        x = x.to(torch.float64)
        weight, bias = self.output.weight.detach().double(), self.output.bias.detach().double()
        lengths = x.sum(1) if isinstance(x, Tensor) else x.sums()
        return product(x, weight.T.contiguous()), product(x, bias[:, None])[:, 0], lengths

    def _of_codes(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """H and the normalizer of codes (C, b), in float64: (C, K) and (C,)."""
        h = self.features(codes.to(self.output.weight))
        return h.double(), log_normalizer(h, self.output.weight, self.output.bias).double()


class CodeBook:
    """All codes of a model as it was when this was made, and sums over them, in nats.

    Sums are in float64. Normalizers have the precision of the model's parameters: of float32 an error of about 1e-6
    for each word of a document.

    Args:
        model: model with 16 bits or fewer.

    Raises:
        ValueError: more bits.
    """

    @torch.no_grad()
    def __init__(self, model: SemanticHashing) -> None:
        if model.num_bits > MOST_SUMMED:
            raise ValueError(f"expected {MOST_SUMMED} bits or fewer, whose codes are summed, got {model.num_bits}")
        self.model = model
        self.codes = all_codes(model.num_bits)
        parts = [model._of_codes(part) for part in self.codes.split(max(1, AT_ONCE // model.num_words))]
        features, normalizers = (torch.cat(part) for part in zip(*parts, strict=True))
        self.columns = torch.cat([features, -normalizers[:, None]], 1).T.contiguous()  # (K + 1, 2^b)

    @torch.no_grad()
    def log_joint(self, x: Tensor | SparseRows) -> Tensor:
        """Log p(x, z) of each document and code, (B, 2^b); those of one code are in one column, as in ``codes``."""
        seen, constant, lengths = self.model._seen(x)
        constant = constant[:, None] - self.model.num_bits * math.log(2)
        return torch.addmm(constant, torch.cat([seen, lengths[:, None]], 1), self.columns)

    def blocks(self, x: Tensor | SparseRows) -> Iterator[Tensor]:
        """:meth:`log_joint` of a few documents after the other, so that all of them need little memory."""
        size = max(1, AT_ONCE // len(self.codes))
        for first in range(0, len(x), size):
            yield self.log_joint(x[first : first + size])

    def log_evidence(self, x: Tensor | SparseRows) -> Tensor:
        """Exact log p(x) of each document, (B,)."""
        return torch.cat([table.logsumexp(1) for table in self.blocks(x)])


def all_codes(num_bits: int) -> Tensor:
    """All codes, (2^b, b), the first bit changing last."""
    places = torch.arange(num_bits - 1, -1, -1)
    return (torch.arange(2**num_bits)[:, None] >> places & 1).to(torch.get_default_dtype())


class WordCounts(TorchDistribution):
    """Counts of words that are drawn one by one with probabilities softmax(h W + c), without their coefficient.

    Args:
        features: h, (..., K).
        weight: W, (K, V).
        bias: c, (V,).
    """

    arg_constraints: Any = {}  # noqa: RUF012
    support: Any = constraints.independent(constraints.nonnegative, 1)
    has_rsample = False

    def __init__(self, features: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.features, self.weight, self.bias = features, weight, bias
        super().__init__(features.shape[:-1], bias.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> WordCounts:
        """The same for more documents."""
        del _instance
        return WordCounts(self.features.expand(*batch_shape, -1), self.weight, self.bias)

    def log_prob(self, value: Any) -> Tensor:
        """Log density of counts (B, V), dense or sparse: (..., B)."""
        if isinstance(value, Tensor):
            return (value * (self.features @ self.weight + self.bias).log_softmax(-1)).sum(-1)
        shape = self.features.shape
        flat, copies = self.features.reshape(-1, shape[-1]), math.prod(shape[:-2])
        rows = value.rows() + len(value) * torch.arange(copies, device=value.device)[:, None]
        entries = rows.flatten(), value.columns.repeat(copies), value.values.repeat(copies)
        found: Any = _LogLikelihood.apply(flat, self.weight, self.bias, value.sums().repeat(copies), *entries)
        return found.reshape(shape[:-1])


def log_normalizer(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Logsumexp(h W + c) of (C, K), (K, V) and (V,): (C,), without a gradient."""
    return _odds(torch.addmm(bias, features, weight))[2]


def _odds(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Odds of the words against the likeliest one, in the place of their logits (M, V), their sum, and logsumexp."""
    top = logits.amax(1, keepdim=True)
    odds = logits.sub_(top).exp_()
    total = odds.sum(1)
    return odds, total, total.log() + top[:, 0]


class _LogLikelihood(torch.autograd.Function):
    r"""Of M codes and documents with lengths n and entries (row, word, count): (M,).

    The gradient with respect to the logits is x - n p, with p = odds / total. So entries are taken off the odds where
    they are, each times total / n, and a single product gives the gradient of W and c: logits are written once.
    """

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, bias: Tensor, lengths: Tensor, rows: Tensor, words: Tensor, counts: Tensor
    ) -> Tensor:
        h = torch.cat([h, h.new_ones(len(h), 1)], 1)
        logits = h @ torch.cat([weight, bias[None]])  # the bias as a row: adding it would be a pass of its own
        places = rows * len(bias) + words
        own = torch.zeros_like(lengths).index_add_(0, rows, counts * logits.view(-1).index_select(0, places))
        odds, total, normalizer = _odds(logits)
        if any(ctx.needs_input_grad):
            odds.view(-1).scatter_add_(0, places, -counts * (total / lengths).index_select(0, rows))
            ctx.save_for_backward(h, weight, odds, lengths / total)
        return own - lengths * normalizer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:  # type: ignore[override] -- the decorator hides the name of ctx
        h, weight, left, scale = ctx.saved_tensors
        share = (-gradients[0] * scale)[:, None]
        by_h = share * (left @ weight.T) if ctx.needs_input_grad[0] else None
        by_both = (h * share).T @ left  # of W, and in the last row of c
        return by_h, by_both[:-1], by_both[-1], None, None, None, None
