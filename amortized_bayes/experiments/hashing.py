"""A model of ``semantic-hashing``: trained, its epoch chosen on held-out documents, then measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from amortized_bayes.data.documents import Corpus, Counts
from amortized_bayes.evaluation.retrieval import precision_at
from amortized_bayes.experiments.hashing_settings import Choice, Config
from amortized_bayes.experiments.lab import Lab, seconds_per_step
from amortized_bayes.experiments.spec import Arrays, Checkpoint, Measured, measured
from amortized_bayes.experiments.trained import load_state, state_of
from amortized_bayes.guides.amortized_bits import AmortizedBits
from amortized_bayes.guides.document_encoder import DocumentEncoder, rarity
from amortized_bayes.guides.factorized_bits import FactorizedBits
from amortized_bayes.inference.bernoulli_elbo import BernoulliELBO
from amortized_bayes.inference.bit_gradients import MOST_ENUMERATED, Estimator
from amortized_bayes.inference.mean_field import best_product, elbo_of_codes
from amortized_bayes.inference.options import FitOptions, cosine
from amortized_bayes.inference.svi import Training
from amortized_bayes.joint import Bernoullis, global_seed
from amortized_bayes.keeping import kept, known
from amortized_bayes.models.semantic_hashing import MOST_SUMMED, CodeBook, SemanticHashing
from amortized_bayes.per_point import mean_over_points, paired_difference
from amortized_bayes.seeding import numpy_generator, torch_seed
from amortized_bayes.sparse_rows import SparseRows

__all__ = ["Splits", "epoch_seconds", "run", "splits_of"]

DRAWS = 8
"""Codes of each document for its ELBO, where they are not all summed."""
NEAREST = 100
LOCAL_RATE = 0.1
LOCAL_PAIRS = 4
TIMED = 3
"""Steps of each gradient estimator that are timed."""
ESTIMATORS: dict[Estimator, int] = {"disarm": 1, "arm": 1, "reinforce": 2, "straight-through": 2, "enumerated": 1}
"""And their particles: two codes each, but for the sum over all."""
ESTIMATED = 64
"""Documents whose gradients are measured; a sum over 256 codes keeps the logits of all."""


class Splits(NamedTuple):
    """Documents of each split as sparse counts, and their classes where they are known."""

    counts: Mapping[str, SparseRows]
    labels: Mapping[str, Tensor]


def splits_of(corpus: Corpus, num_validation: int, seed: int) -> Splits:
    """Training documents without those that are held out, these, and test documents.

    Raises:
        ValueError: fewer training documents than are held out, with two to train on.
    """
    size = len(corpus.train.counts)
    if size < num_validation + 2:
        raise ValueError(f"expected num_validation of at most {size - 2} of {size} documents, got {num_validation}")
    order = numpy_generator(seed, "validation", corpus.name).permutation(size)
    places = {"train": np.sort(order[num_validation:]), "validation": np.sort(order[:num_validation])}
    counts = {split: _rows(corpus.train.counts.take(rows)) for split, rows in places.items()}
    labels = {}
    if corpus.train.labels is not None and corpus.test.labels is not None:
        labels = {split: torch.from_numpy(corpus.train.labels[rows]) for split, rows in places.items()}
        labels["test"] = torch.from_numpy(corpus.test.labels)
    return Splits({**counts, "test": _rows(corpus.test.counts)}, labels)


def _rows(counts: Counts) -> SparseRows:
    return SparseRows.of(counts.starts, counts.words, counts.counts, counts.num_words)


def build(config: Config, choice: Choice, data: Splits) -> tuple[SemanticHashing, AmortizedBits]:
    """Decoder and encoder with first weights of the seed."""
    x = data.counts["train"]
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed(choice.seed, "hashing", "weights"))
        frequencies = 1 + x.values.new_zeros(x.width).index_add_(0, x.columns, x.values)
        model = SemanticHashing(x.width, choice.bits, choice.depth, config.width, frequencies=frequencies)
        width = config.width if choice.encoder == "hidden" else None
        encoder = DocumentEncoder(x.width, choice.bits, width, choice.sees, rarity(x))  # pyright: ignore[reportArgumentType]
    return model, AmortizedBits("bits", encoder)


def options_of(config: Config, particles: int) -> FitOptions:
    """How both are fitted, by a number of draws or pairs of draws."""
    return FitOptions(
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        shared_learning_rate=config.learning_rate,
        average=None,
        objective=config.objective,
        num_particles=max(particles, 2) if config.objective == "reinforce" else particles,
    )


def epoch_seconds(config: Config, choice: Choice, lab: Lab) -> float:
    """Seconds that an epoch with one pair of draws takes, from a few steps."""
    data = _data(config, choice, lab)
    programs = build(config, choice, data)
    training = Training(*programs, data.counts["train"], options_of(config, 1), choice.seed)
    return seconds_per_step(training, TIMED, 2 * TIMED) * training.batches.per_epoch


def _data(config: Config, choice: Choice, lab: Lab) -> Splits:
    key = ("hashing documents", config.dataset, config.num_validation, choice.seed)
    return lab.recent(key, lambda: splits_of(lab.corpus(config.dataset), config.num_validation, choice.seed))


def run(config: Config, choice: Choice, lab: Lab) -> Iterator[Measured | Arrays | Checkpoint]:
    """Train a model, then measure it on every split.

    Raises:
        Divergence: the loss, or a parameter, is not finite.
        ValueError: documents that do not suffice.
    """
    data = _data(config, choice, lab)
    model, guide = build(config, choice, data)
    yield from _train(config, choice, data, (model, guide), lab)
    yield Checkpoint(state_of(model, guide))
    with pyro.validation_enabled(False):
        rows, elbo = known("splits", lambda: _all_splits(choice, data, model, guide))
        yield from _rows_of(rows)
        yield Arrays({"final_elbo": np.asarray(elbo)})
        lab.watch("measuring", 1, 3)
        for split in ("train", "test"):
            yield from _gaps(config, choice, data, (model, guide), split)
        lab.watch("measuring", 2, 3)
        if config.estimator_draws:
            yield from _rows_of(known("estimators", lambda: [*_estimators(config, choice, data, model, guide)]))
        lab.watch("measuring", 3, 3)


def _rows_of(found: list[list[object]]) -> Iterator[Measured]:
    return (Measured(*row) for row in found)  # pyright: ignore[reportArgumentType]


@dataclass
class _Best:
    """The epoch that was best on the validation split so far."""

    elbo: float
    epoch: int
    weights: dict[str, np.ndarray]


# Training -------------------------------------------------------------------------------------------------------------


def _train(
    config: Config, choice: Choice, data: Splits, programs: tuple[SemanticHashing, AmortizedBits], lab: Lab
) -> Iterator[Measured]:
    """Both stages; leaves the weights that were best on the validation split."""
    best, seconds = _Best(-math.inf, 0, state_of(*programs)), 0.0
    stages = [(config.epochs, 1), (config.fine_epochs, config.fine_particles)]
    total = sum(epochs for epochs, _ in stages)
    for number, (epochs, particles) in enumerate(stages):
        before = sum(one for one, _ in stages[:number])
        if not epochs:
            continue
        seed = torch_seed(choice.seed, "hashing", "stage", number) >> 32
        training = Training(*programs, data.counts["train"], options_of(config, particles), seed)
        each, steps = training.batches.per_epoch, epochs * training.batches.per_epoch
        looks = {round(total * n / config.evaluations) - before for n in range(1, config.evaluations + 1)} | {epochs}
        marks = {epoch * each for epoch in looks if 0 < epoch <= epochs}
        rows: list[Measured] = []
        with kept("training", lambda t=training, r=rows: [t.state(), r, *vars(best).values()]) as loop:
            if loop.found is not None:
                state, told, best.elbo, best.epoch, best.weights = loop.found
                training.load_state(state)
                rows += [Measured(*row) for row in told]
                yield from rows
            ticks = marks | set(range(each, steps + 1, each))
            left = steps - training.steps
            for record in training.run(left, ticks, begin=0, due=lambda at=loop: at.due) if left else ():
                lab.watch("training", before + record.step // each, total, f"ELBO {record.elbo:.1f}")
                if record.step in marks:
                    row = _validation(choice, data, programs, before + record.step // each)
                    rows.append(row._replace(seconds=seconds + record.seconds))
                    yield rows[-1]
                    if row.value is not None and row.value > best.elbo:
                        best.elbo, best.epoch, best.weights = row.value, row.step, state_of(*programs)
                loop.offer()
        seconds += training.seconds
    load_state(*programs, best.weights, "the best epoch")
    yield Measured("best_epoch", float(best.epoch), factors={"split": "validation"})
    yield Measured("training_seconds", seconds, factors={"split": "train"})


def _validation(choice: Choice, data: Splits, programs: tuple[SemanticHashing, AmortizedBits], epoch: int) -> Measured:
    """ELBO of the held-out documents after an epoch."""
    with torch.no_grad(), pyro.validation_enabled(False), global_seed(choice.seed, "look"):  # the same draws each time
        found = _elbo(programs[0], data.counts["validation"], programs[1].logits(data.counts["validation"]))
    return measured("validation_elbo", mean_over_points(found), split="validation")._replace(step=epoch)


# Numbers --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _elbo(model: SemanticHashing, x: SparseRows, logits: Tensor, book: CodeBook | None = None) -> Tensor:
    """ELBO of each document, (B,), of log odds (B, b): summed over all codes, or the mean of a few draws."""
    if model.num_bits > MOST_SUMMED:
        return _log_weights(model, x, logits, DRAWS).mean(0)
    book = book or model.code_book()
    first, found = 0, []
    for table in book.blocks(x):
        found.append(elbo_of_codes(table, logits[first : first + len(table)]))
        first += len(table)
    return torch.cat(found)


@torch.no_grad()
def _log_weights(model: SemanticHashing, x: SparseRows, logits: Tensor, draws: int) -> Tensor:
    """Log p(x, z) - log q(z | x) of draws from q, (S, B)."""
    found = []
    for _ in range(draws):
        bits, log_q = Bernoullis(logits).sample(1)
        found.append(model.log_joint(x, bits) - log_q)
    return torch.cat(found)


def _kl(logits: Tensor) -> Tensor:
    """KL of each document's q from fair bits, (B,)."""
    return logits.shape[1] * math.log(2) - Bernoullis(logits).entropy


def own_code_length(x: SparseRows) -> Tensor:
    """Nats that a document takes by the frequencies of its own words, (B,): the least that any code of words takes."""
    shares = x.values / x.sums().index_select(0, x.rows())
    return -x.with_values(torch.xlogy(x.values, shares)).sums()


def compare(fewer: str, more: str, lab: Lab) -> Iterator[Measured]:
    """What more bits save of the negative ELBO of each test document, paired by document."""
    few, many = (lab.arrays(key)["final_elbo"] for key in (fewer, more))
    yield measured("document_nelbo_saved", paired_difference(many, few), split="test")


@torch.no_grad()
def _all_splits(
    choice: Choice, data: Splits, model: SemanticHashing, guide: AmortizedBits
) -> tuple[list[Measured], np.ndarray]:
    """ELBO, published and plain, and precision of retrieval from the training documents; ELBO of test documents."""
    rows, elbos = [], dict[str, Tensor]()
    book = model.code_book() if choice.bits <= MOST_SUMMED else None
    logits = {split: guide.logits(x) for split, x in data.counts.items()}
    for split, x in data.counts.items():
        with global_seed(choice.seed, "final", split):
            elbo = elbos[split] = _elbo(model, x, logits[split], book)
        rows.append(measured("final_elbo", mean_over_points(elbo), split=split))
        rows.append(measured("document_nelbo", mean_over_points(-elbo - own_code_length(x)), split=split))
        rows.append(measured("final_kl", mean_over_points(_kl(logits[split])), split=split))
        if split != "train" and data.labels and len(data.counts["train"]) >= NEAREST:
            codes = [(logits[one] > 0).float() for one in (split, "train")]
            found = precision_at(NEAREST, codes[0], data.labels[split], codes[1], data.labels["train"])
            rows.append(measured("precision_at_100", mean_over_points(found), split=split))
    return rows, elbos["test"].numpy()


def _gaps(
    config: Config, choice: Choice, data: Splits, programs: tuple[SemanticHashing, AmortizedBits], split: str
) -> Iterator[Measured]:
    """What the family and the encoder lose, of the first documents of a split in an order of the seed."""
    model, guide = programs
    x = data.counts[split]
    order = numpy_generator(choice.seed, "gaps", split).permutation(len(x))[: config.points]
    x = x.index_select(0, torch.from_numpy(order))
    with torch.no_grad():
        logits = guide.logits(x)
    with global_seed(choice.seed, "gaps", split):
        summed = choice.bits <= MOST_SUMMED
        bound, best, elbo = _summed(choice, model, x, logits) if summed else _searched(config, choice, model, x, logits)
    prefix = "exact_" if summed else ""
    yield measured("exact_log_p" if summed else "iwae", mean_over_points(bound), split=split)
    for name, found in {
        "elbo_star": mean_over_points(best),
        "elbo": mean_over_points(elbo),
        "approximation_gap": paired_difference(bound, best),
        "amortization_gap": paired_difference(best, elbo),
    }.items():
        row = measured(f"{prefix}{name}", found, split=split)
        yield row if summed else row._replace(note="of lower bounds" if "gap" in name else "")


@torch.no_grad()
def _summed(choice: Choice, model: SemanticHashing, x: SparseRows, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log p(x), ELBO of the best product that was found, and ELBO of q, each (B,): sums over all codes."""
    first, found = 0, []
    generator = torch.Generator().manual_seed(torch_seed(choice.seed, "hashing", "best bits"))
    for table in model.code_book().blocks(x):
        own = logits[first : first + len(table)]
        best = best_product(table, own[None], generator)
        found.append((table.logsumexp(1), best.elbo, elbo_of_codes(table, own)))
        first += len(table)
    log_p, star, elbo = (torch.cat(part) for part in zip(*found, strict=True))
    return log_p, star, elbo


def _searched(
    config: Config, choice: Choice, model: SemanticHashing, x: SparseRows, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """IWAE, and the ELBO of per-document log odds and of the encoder's, each (B,).

    The search goes by DisARM from the encoder's answer. Its log odds are those of IWAE too, which is then tighter.
    """
    local = FactorizedBits("bits", logits)
    options = FitOptions(
        batch_size=len(x),
        learning_rate=LOCAL_RATE,
        shared_learning_rate=0.0,
        average=None,
        objective="disarm",
        num_particles=LOCAL_PAIRS,
        schedule=cosine,
    )
    model.requires_grad_(False)
    try:
        training = Training(model, local, x, options, choice.seed)
        with kept("search", training.state) as loop:
            if loop.found is not None:
                training.load_state(loop.found)
            left = config.local_steps - training.steps
            for _ in training.run(left, begin=0, due=lambda: loop.due) if left else ():
                loop.offer()
    finally:
        model.requires_grad_(True)
    with torch.no_grad():
        weights = _log_weights(model, x, local.table.detach(), config.particles)
        elbo = _log_weights(model, x, logits, config.particles).mean(0)
    return weights.logsumexp(0) - math.log(config.particles), weights.mean(0), elbo


def _estimators(
    config: Config, choice: Choice, data: Splits, model: SemanticHashing, guide: AmortizedBits
) -> Iterator[Measured]:
    """Variance of each gradient by a document's log odds, summed over bits, and seconds of all gradients."""
    x = data.counts["train"][:ESTIMATED]
    with torch.no_grad():
        local = FactorizedBits("bits", guide.logits(x))
    index = torch.arange(len(x))
    for name, particles in ESTIMATORS.items():
        if name == "enumerated" and choice.bits > MOST_ENUMERATED:
            continue
        options = replace(
            options_of(config, 1), objective=name, num_particles=particles, batch_size=min(ESTIMATED, config.batch_size)
        )
        training = Training(*build(config, choice, data), data.counts["train"], options, choice.seed)
        batch = training.data.index_select(0, training.batches[0])
        inputs = (*pytree.tree_leaves(batch), training.batches[0])
        times = []
        with torch.random.fork_rng():
            for _ in range(TIMED):
                start = time.perf_counter()
                training.loss_and_gradients(*inputs)
                times.append(time.perf_counter() - start)
        yield Measured("seconds_per_step", min(times), factors={"estimator": name})
        if name == "enumerated":
            continue  # which has no variance
        model.requires_grad_(False)
        with global_seed(choice.seed, "estimators", name):
            elbo, draws = BernoulliELBO(name, particles), []
            for _ in range(config.estimator_draws):
                found = elbo.estimate(model, local, x, index)
                draws.append(torch.autograd.grad(found.surrogate.sum(), local.table)[0])
        model.requires_grad_(True)
        variance = torch.stack(draws).var(0).sum(1)
        yield measured("gradient_variance", mean_over_points(variance), estimator=name)
