"""The hashing model against sums by hand, sparse against dense, its gradients against enumeration; retrieval."""

import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn

import amortized_bayes as ab
from amortized_bayes.evaluation.retrieval import precision_at
from amortized_bayes.guides import AmortizedBits, DocumentEncoder, FactorizedBits
from amortized_bayes.guides.document_encoder import rarity
from amortized_bayes.inference.mean_field import elbo_of_codes
from amortized_bayes.models.semantic_hashing import SemanticHashing, all_codes
from amortized_bayes.sparse_rows import SparseLinear, SparseRows, product

V = 30


@pytest.fixture(autouse=True)
def in_float64(float64):
    torch.manual_seed(0)


def documents(num=6, seed=0):
    """Counts, dense and sparse."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.poisson(torch.rand(num, V, generator=generator) * 1.5, generator=generator)
    dense[:, 0] += 1
    return dense, sparse(dense)


def sparse(dense):
    rows, columns = dense.nonzero(as_tuple=True)
    starts = np.concatenate([[0], np.bincount(rows.numpy(), minlength=len(dense)).cumsum()])
    return SparseRows.of(starts, columns.numpy(), dense[rows, columns].numpy(), dense.shape[1])


def model_of(num_bits=4, depth=1, **more):
    torch.manual_seed(1)
    model = SemanticHashing(V, num_bits, depth, 9, **more)
    for p in model.parameters():
        p.data *= 3
    return model


def by_hand(model, x, codes):
    """Log p(x, z) of documents (B, V) and codes (C, b) of all of them: (B, C)."""
    h = codes
    for layer in model.hidden:
        h = nn.functional.leaky_relu(layer(h), 0.2)
    return x @ model.output(h).log_softmax(-1).T - model.num_bits * math.log(2)


# Sparse rows ----------------------------------------------------------------------------------------------------------


def test_sparse_rows_are_the_dense_ones():
    dense, rows = documents()
    assert torch.equal(rows.dense(), dense)
    places = torch.tensor([4, 0, 4, 5])
    assert torch.equal(rows.index_select(0, places).dense(), dense[places])
    assert torch.equal(rows[2:].dense(), dense[2:])
    assert torch.equal(rows.sums(), dense.sum(1))
    weight = torch.randn(V, 3, requires_grad=True)
    found, wanted = product(rows, weight), dense @ weight
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn(6, 3)
    gradients = [torch.autograd.grad(one, weight, upstream)[0] for one in (found, wanted)]
    torch.testing.assert_close(*gradients)
    layer = SparseLinear(V, 2)
    torch.testing.assert_close(layer(rows), layer(dense))
    with pytest.raises(ValueError, match="dim 0, got dim 1"):
        rows.index_select(1, places)


@pytest.mark.parametrize("sees", ["counts", "frequencies", "tfidf"])
@pytest.mark.parametrize("width", [None, 5])
def test_encoders_see_the_same_of_sparse_counts_as_of_dense_ones(sees, width):
    dense, rows = documents()
    encoder = DocumentEncoder(V, 3, width, sees, rarity(rows))
    torch.testing.assert_close(encoder(rows), encoder(dense))
    if sees == "frequencies":
        torch.testing.assert_close(encoder.seen(dense).sum(1), torch.ones(6))
        torch.testing.assert_close(encoder(dense), encoder(2 * dense))
    if sees == "tfidf":
        weights = 1 + (7 / (1 + (dense > 0).sum(0))).log()
        torch.testing.assert_close(encoder.seen(dense), nn.functional.normalize(dense * weights, dim=1))


def test_tfidf_needs_its_weights():
    with pytest.raises(ValueError, match="inverse document frequencies of 30 words"):
        DocumentEncoder(V, 3, sees="tfidf")


# The model ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_sparse_and_dense_likelihoods_are_that_of_a_softmax(depth):
    dense, rows = documents()
    model = model_of(3, depth)
    book = model.code_book()
    wanted = by_hand(model, dense, all_codes(3))
    for x in (dense, rows):
        torch.testing.assert_close(book.log_joint(x), wanted)
        torch.testing.assert_close(book.log_evidence(x), wanted.logsumexp(1))
    bits = torch.bernoulli(torch.full((5, 6, 3), 0.5))
    by_document = torch.stack([by_hand(model, dense, one).diagonal() for one in bits])
    torch.testing.assert_close(model.log_joint(rows, bits), by_document)


def weights_of(model, x, bits):
    """Log likelihood of the Pyro program with these bits, and its gradients."""
    with pyro.validation_enabled(False):  # bits that are not quite bits have a gradient too
        trace = pyro.poutine.trace(pyro.poutine.condition(model, {"bits": bits})).get_trace(x)
        trace.compute_log_prob()
    found = trace.nodes["words"]["log_prob"]
    assert found.shape == (len(x),)
    wanted = [*model.parameters(), *([bits] if bits.requires_grad else [])]
    return [found.detach(), *torch.autograd.grad((found * torch.arange(1.0, len(x) + 1)).sum(), wanted)]


@pytest.mark.parametrize("depth", [0, 2])
def test_the_program_has_the_gradients_of_a_softmax(depth):
    dense, rows = documents()
    model = model_of(4, depth)
    bits = torch.rand(6, 4).requires_grad_()
    value = by_hand(model, dense, bits).diagonal() + 4 * math.log(2)
    wanted = torch.autograd.grad((value * torch.arange(1.0, 7.0)).sum(), [*model.parameters(), bits])
    for x in (dense, rows):
        for found, expected in zip(weights_of(model, x, bits), [value.detach(), *wanted], strict=True):
            torch.testing.assert_close(found, expected)


def test_large_logits_do_not_overflow():
    _, rows = documents()
    model = model_of(2)
    with torch.no_grad():
        model.output.bias += 1e4 * torch.arange(V)
    assert all(part.isfinite().all() for part in weights_of(model, rows, torch.ones(6, 2)))


def test_bad_models_are_refused():
    with pytest.raises(ValueError, match="expected 16 bits or fewer, whose codes are summed, got 17"):
        SemanticHashing(V, 17).code_book()
    with pytest.raises(ValueError, match="expected frequencies above 0 of 30 words"):
        SemanticHashing(V, 2, frequencies=torch.zeros(V))


# Gradients ------------------------------------------------------------------------------------------------------------

N = 4_000


def repeated(num_bits, num=N):
    """One document many times, the model, and log odds of each copy's own."""
    dense, _ = documents(1)
    rows = sparse(dense.repeat(num, 1))
    model = model_of(num_bits, 1)
    torch.manual_seed(2)
    return rows, model, FactorizedBits("bits", torch.randn(1, num_bits).repeat(num, 1))


def gradient(estimator, particles, rows, model, guide):
    torch.manual_seed(3)
    found = ab.BernoulliELBO(estimator, particles).estimate(model, guide, rows, torch.arange(len(rows)))
    return torch.autograd.grad(found.surrogate.sum(), guide.table)[0]


@pytest.mark.parametrize("num_bits", [2, 8])
@pytest.mark.slow_cases("8")
def test_estimators_average_to_enumeration_and_disarm_varies_least(num_bits):
    exact = gradient("enumerated", 1, *repeated(num_bits, 2))[0]
    book_rows, model, guide = repeated(num_bits, 1)
    table, logits = model.code_book().log_joint(book_rows), guide.table.detach().clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(elbo_of_codes(table, logits).sum(), logits)[0][0], exact)
    variances = {}
    for estimator, particles in {"disarm": 1, "arm": 1, "reinforce": 2}.items():
        draws = gradient(estimator, particles, *repeated(num_bits))
        assert ((draws.mean(0) - exact).abs() < 3 * draws.std(0) / math.sqrt(N)).all(), estimator
        variances[estimator] = draws.var(0).sum()
    assert variances["disarm"] < variances["arm"]
    assert variances["reinforce"] > 0


def test_the_enumerated_elbo_is_pyros():
    dense, _ = documents(3)
    model, together = model_of(3, 1, separate=True), model_of(3, 1)
    torch.manual_seed(4)
    encoder = nn.Linear(V, 3)
    sites = AmortizedBits(("bit0", "bit1", "bit2"), encoder)
    pyros = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, sites, dense)
    vector = AmortizedBits("bits", encoder)
    ours = -ab.BernoulliELBO("enumerated").loss(together, vector, dense)
    assert ours == pytest.approx(pyros, rel=1e-10)
    by_codes = elbo_of_codes(together.code_book().log_joint(dense), encoder(dense).detach())
    assert float(by_codes.sum()) == pytest.approx(pyros, rel=1e-10)
    torch.testing.assert_close(ab.elbo(model, sites, dense).value, by_codes)


def test_a_fit_of_sparse_counts_is_that_of_dense_ones():
    dense, rows = documents(40)
    found = []
    for x in (dense, rows):
        model = model_of(3, 0)
        torch.manual_seed(5)
        guide = AmortizedBits("bits", DocumentEncoder(V, 3))
        options = ab.FitOptions(batch_size=10, objective="disarm", average=None, learning_rate=0.01, capture="off")
        training = ab.Training(model, guide, x, options)
        list(training.run(20))
        found.append([p.detach().clone() for p in (*model.parameters(), *guide.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    training = ab.Training(model, guide, rows, ab.FitOptions(batch_size=10, objective="disarm"))
    training.prepare(10_000)
    assert training.captured is None  # batches differ in size


# Retrieval ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_precision_is_the_mean_over_orders_of_ties():
    """Against all orders of a few points."""
    torch.manual_seed(7)
    for _ in range(20):
        queries, database = torch.randint(2, (1, 3)).double(), torch.randint(2, (6, 3)).double()
        own, there = torch.randint(2, (1,)), torch.randint(2, (6,))
        away = (queries != database).sum(1)
        shares = []
        for order in itertools.permutations(range(6)):
            nearest = sorted(order, key=lambda n: away[n])[:4]  # stable: ties stay in their order
            shares.append(float((there[nearest] == own).double().mean()))
        found = precision_at(4, queries, own, database, there)
        assert float(found) == pytest.approx(np.mean(shares), abs=1e-6)


def test_precision_at_100_is_that_of_a_brute_force_search():
    torch.manual_seed(8)
    queries, database = torch.randint(2, (200, 12)).double(), torch.randint(2, (900, 12)).double()
    own, there = torch.randint(5, (200,)), torch.randint(5, (900,))
    found = precision_at(100, queries, own, database, there)
    for number in range(200):
        away = (queries[number] != database).sum(1)
        right, taken = 0.0, 0
        for distance in range(13):
            held = (away == distance).nonzero()[:, 0]
            count = min(len(held), 100 - taken)
            if count:
                right += count * float((there[held] == own[number]).double().mean())
            taken += count
        assert float(found[number]) == pytest.approx(right / 100, abs=1e-6)


def test_retrieval_of_other_shapes_is_refused():
    bits, classes = torch.zeros(5, 2), torch.zeros(5)
    with pytest.raises(ValueError, match="expected a database of 6 points or more, got 5"):
        precision_at(6, bits, classes, bits, classes)
    with pytest.raises(ValueError, match="expected bits"):
        precision_at(2, bits, classes, torch.zeros(5, 3), classes)
