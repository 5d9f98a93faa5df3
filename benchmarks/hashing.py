"""How long does an epoch of semantic hashing take?

11,314 documents of 10,000 words, 64 bits, linear encoder and decoder, DisARM, batches of 256: the setting of 20
Newsgroups, by default with counts drawn to have as many entries. Aim on two cores: 2 seconds. Beside this library's
step, which keeps counts sparse and runs model and guide as Pyro programs, stand plain PyTorch by hand on the same
sparse counts, on dense ones, and the matrix products that no code can leave out: W h of two codes for each document,
and their gradient.

    python benchmarks/hashing.py --json hashing.json
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from _measure import Side, show_table, side_by_side, surroundings, use_threads, wide_console, write_json
from torch import Tensor, nn

from amortized_bayes.guides import AmortizedBits, DocumentEncoder
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.inference.streams import Batches
from amortized_bayes.inference.svi import Training
from amortized_bayes.models import SemanticHashing
from amortized_bayes.sparse_rows import SparseRows

OURS, SPARSE, DENSE, PRODUCTS = "this library", "PyTorch by hand, sparse", "PyTorch by hand, dense", "matrix products"
ENTRIES = 134
"""Different words in a document of 20 Newsgroups, on average."""


@dataclass(frozen=True)
class Options:
    """Time steps of semantic hashing.

    Args:
        documents: Documents.
        words: Size of the vocabulary.
        bits: Bits of a code.
        batch_size: Documents a step.
        threads: Threads of torch; 0 for all cores.
        repeats: Rounds.
        seconds: Seconds of a block of steps.
        json: File for the figures.
        clock: Time of the wall, or of the processor, which what runs beside it touches less; both agree with 1 thread.
        quick: Few documents and words, a step each, to see that everything runs.
    """

    documents: int = 11_314
    words: int = 10_000
    bits: int = 64
    batch_size: int = 256
    threads: int = 0
    repeats: int = 5
    seconds: float = 2.0
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    clock: Literal["wall", "processor"] = "wall"
    quick: bool = False


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.quick:
        options = replace(options, documents=40, words=200, bits=8, batch_size=20, repeats=1)
    threads = use_threads(options.threads)
    x = drawn(options)
    sides = [ours(options, x), by_hand(options, x), by_hand(options, x, dense=True), products(options)]
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    times = side_by_side(sides, options.repeats, options.seconds, one_step=options.quick, clock=clock)
    steps = options.documents // options.batch_size
    rows = [
        (
            side.name,
            f"{times.median(side.name):.1f}",
            f"{times.median(side.name) * steps / 1e3:.2f}",
            f"{times.ratio(side.name, PRODUCTS):.2f}",
        )
        for side in sides
    ]
    title = f"DisARM, {options.bits} bits, {options.words:,} words, batch {options.batch_size}, {threads} threads"
    show_table(title, ("", "ms per step", "s per epoch", "over products"), rows, wide_console())
    figures = {
        side.name: {
            "milliseconds": times.milliseconds[side.name],
            "seconds_per_epoch": times.median(side.name) * steps / 1e3,
            "over_products": times.ratio(side.name, PRODUCTS),
        }
        for side in sides
    }
    environment = surroundings(threads, torch.device("cpu"))
    write_json(
        options.json,
        {"clock": options.clock, "bits": options.bits, "steps": steps, **figures, "environment": environment},
        times.against([OURS], [SPARSE, DENSE, PRODUCTS]),
        quick=options.quick,
    )


def drawn(options: Options) -> SparseRows:
    """Counts of words that are as rare as in a language (Zipf), about as many in a document as in 20 Newsgroups."""
    generator = np.random.default_rng(0)
    rare = 1 / np.arange(1, options.words + 1)
    lengths = np.minimum(generator.poisson(ENTRIES, options.documents) + 1, options.words // 2)
    each = [generator.choice(options.words, n, replace=False, p=rare / rare.sum()) for n in lengths]
    starts = np.concatenate([[0], lengths.cumsum()])
    counts = generator.geometric(0.5, starts[-1])
    return SparseRows.of(starts, np.concatenate(each), counts, options.words)


def ours(options: Options, x: SparseRows) -> Side:
    """Return a step of ``Training``."""
    torch.manual_seed(0)
    model = SemanticHashing(options.words, options.bits)
    guide = AmortizedBits("bits", DocumentEncoder(options.words, options.bits))
    size, rate = options.batch_size, 1e-3
    fit = FitOptions(batch_size=size, objective="disarm", average=None, learning_rate=rate, shared_learning_rate=rate)
    training = Training(model, guide, x, fit)

    def run(steps: int) -> None:
        list(training.run(steps))

    return Side(OURS, run, 0.0)


def by_hand(options: Options, x: SparseRows, *, dense: bool = False) -> Side:
    """Return a step as one would write it in plain PyTorch: ``log_softmax``, and sparse counts as torch has them."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(options.words, options.bits) / 100)
    encoder_bias, decoder = nn.Parameter(torch.zeros(options.bits)), nn.Linear(options.bits, options.words)
    adam = torch.optim.Adam([weight, encoder_bias, *decoder.parameters()], lr=1e-3)
    whole = x.dense() if dense else x
    batches, place = Batches(len(x), options.batch_size, 0, x.device), iter(range(10**9))

    def log_p(rows: Tensor | SparseRows, code: Tensor) -> Tensor:
        log_words = decoder(code).log_softmax(1)
        if isinstance(rows, Tensor):
            return (rows * log_words).sum(1)
        at = rows.rows()
        return torch.zeros(len(code)).index_add(0, at, rows.values * log_words[at, rows.columns])

    def loss() -> Tensor:
        rows = whole.index_select(0, batches[next(place)])
        if isinstance(rows, Tensor):
            seen = rows @ weight
        else:  # what torch has for sparse inputs without a word about its beta state
            seen = F.embedding_bag(
                *(rows.columns, weight, rows.starts),
                mode="sum",
                per_sample_weights=rows.values,
                include_last_offset=True,
            )
        logits = seen + encoder_bias
        p, u = logits.detach().sigmoid(), torch.rand_like(logits)
        codes = [(1 - u < p).float(), (u < p).float()]
        log_q = [-F.binary_cross_entropy_with_logits(logits.detach(), c, reduction="none").sum(1) for c in codes]
        likelihoods = [log_p(rows, code) for code in codes]
        f = [(a - b).detach() for a, b in zip(likelihoods, log_q, strict=True)]
        by_logits = 0.5 * (f[0] - f[1])[:, None] * (codes[0] - codes[1]) * logits.detach().abs().sigmoid()
        return -(0.5 * (likelihoods[0] + likelihoods[1]) + (by_logits * logits).sum(1)).mean()

    def run(steps: int) -> None:
        for _ in range(steps):
            adam.zero_grad()
            loss().backward()
            adam.step()

    return Side(DENSE if dense else SPARSE, run, 0.0)


def products(options: Options) -> Side:
    """Return the products W h of two codes a document, and those of their gradient, alone."""
    code, weight = torch.randn(options.batch_size, options.bits), torch.randn(options.bits, options.words)
    logits = torch.empty(options.batch_size, options.words)
    by_weight = torch.empty(options.bits, options.words)

    def run(steps: int) -> None:
        for _ in range(2 * steps):
            torch.mm(code, weight, out=logits)
            torch.mm(code.T, logits, out=by_weight)

    return Side(PRODUCTS, run, 0.0)


if __name__ == "__main__":
    main()
