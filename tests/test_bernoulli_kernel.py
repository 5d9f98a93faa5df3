"""The kernel of Bernoulli likelihoods against float64, and the graphs that it is and is not put into."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Independent
from torch.fx.experimental.proxy_tensor import make_fx

from amortized_bayes import capture
from amortized_bayes.bernoulli_fusion import fuse_bernoulli
from amortized_bayes.bernoulli_kernel import kernel_available
from amortized_bayes.expectations import gauss_hermite
from amortized_bayes.graphs import compute_once
from amortized_bayes.guides import Amortized, MeanField
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.inference.svi import Training
from amortized_bayes.models import DeepGenerative
from amortized_bayes.sites import latent_sites

pytestmark = pytest.mark.skipif(not capture.compiler_available(), reason="no C++ compiler")
OP = torch.ops.amortized_bayes.bernoulli.default


@pytest.fixture(scope="module", autouse=True)
def built():
    assert kernel_available()


def exact(mean, scale, nodes, target, upstream):
    """The three outputs in float64, by torch's own functions and autograd."""
    mean, target, upstream = (t.double() for t in (mean, target, upstream))
    nodes = torch.zeros(1, *[1] * mean.dim()).double() if nodes is None else nodes.double()
    scale = torch.zeros_like(mean) if scale is None else scale.double()
    mean, scale = mean.requires_grad_(), scale.requires_grad_()
    logits = mean + scale * nodes
    total = -F.binary_cross_entropy_with_logits(logits, target.expand(logits.shape), reduction="none").sum(-1)
    of_mean, of_scale = torch.autograd.grad((-total * upstream.reshape(total.shape)).sum(), (mean, scale))
    return total.detach(), of_mean, of_scale


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [1, 13, 64, 784, 1300, 2500])  # 1024 numbers share a logarithm, with 16 a vector
def test_sums_and_gradients_are_those_of_float64(size, threads):
    torch.manual_seed(size)
    mean, target = 8 * torch.randn(3, 5, size), torch.rand(5, size).where(torch.rand(5, size) < 0.3, torch.ones(()))
    scale, nodes = torch.rand(3, 5, size) + 0.1, torch.randn(4, 1, 1, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for own, at, lead in ((None, None, ()), (scale, nodes, (4,))):
            upstream = torch.randn(*lead, 3, 5, 1)
            arguments, parts = (mean, own, at, target, upstream), 2 if own is None else 3
            for part, wanted in zip(OP(*arguments)[:parts], exact(*arguments)[:parts], strict=True):
                torch.testing.assert_close(part.double().reshape(wanted.shape), wanted, rtol=2e-6, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_logits_of_any_size_give_what_torch_gives():
    logits = torch.tensor([[0.0, -0.0, 1e-6, -1e-30, 20.0, -20.0, 90.0, -90.0, 1e4, -1e4, 3e38, -3e38]]).t()
    for value in (0.0, 1.0):
        target, upstream = torch.full_like(logits, value), torch.ones_like(logits)
        total, gradient, _ = OP(logits, None, None, target, upstream)
        wanted = F.binary_cross_entropy_with_logits(logits, target, reduction="none")[:, 0]
        torch.testing.assert_close(-total, wanted, rtol=1e-6, atol=2e-7)
        torch.testing.assert_close(gradient, logits.sigmoid() - value, rtol=1e-6, atol=1e-30)
    total, gradient, _ = OP(torch.tensor([[1.0, torch.nan]]), None, None, torch.ones(1, 2), torch.ones(1, 1))
    assert total.isnan()
    assert gradient.isnan().tolist() == [[False, True]]
    total, _, _ = OP(torch.zeros(1, 9000), None, None, torch.ones(1, 9000), torch.ones(1, 1))
    assert total.item() == pytest.approx(-9000 * math.log(2), rel=1e-6)  # 2^9000 is beyond floats


def likelihood(logits, target):
    return -F.binary_cross_entropy_with_logits(logits, target.expand(logits.shape), reduction="none").sum(-1)


def plain(mean, scale, target):
    return likelihood(mean * scale, target).mean(), (mean, scale)


def over_nodes(mean, scale, target):
    nodes, weights = (torch.tensor(part) for part in gauss_hermite(3))
    values = likelihood(mean + scale * nodes.reshape(-1, 1, 1), target)
    return torch.tensordot(weights, values, 1).mean(), (mean, scale)


def of_distribution(mean, scale, target):
    return Independent(Bernoulli(logits=mean * scale, validate_args=False), 1).log_prob(target).mean(), (mean, scale)


def squared(mean, scale, target):
    return likelihood(mean * scale, target).mean() ** 2, (mean, scale)


def drawn_inside(mean, scale, target):
    return likelihood(mean * scale + torch.randn_like(scale), target).mean(), (mean, scale)


def seen_twice(mean, scale, target):
    logits = mean * scale
    return likelihood(logits, target).mean() + logits.sigmoid().sum(), (mean, scale)


def graph_of(program, inputs):
    def step(mean, scale, target):
        loss, wanted = program(mean.requires_grad_(), scale.requires_grad_(), target)
        return [loss.detach(), *torch.autograd.grad(loss, wanted)]

    module = make_fx(step)(*inputs)
    compute_once(module.graph)  # as `capture` does before
    return module


def inputs_of(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(4, 9, dtype=dtype), torch.rand(4, 9, dtype=dtype) + 0.1, torch.rand(4, 9, dtype=dtype).round()


def count(graph, target):
    return sum(node.target is target for node in graph.nodes)


@pytest.mark.parametrize("program", [plain, of_distribution, over_nodes])
def test_a_graph_with_the_kernel_gives_its_numbers(program):
    module = graph_of(program, inputs_of())
    wanted = module(*inputs_of())
    fuse_bernoulli(module)
    module.graph.lint()
    module.recompile()
    assert count(module.graph, OP) == 1
    assert count(module.graph, torch.ops.aten.sigmoid.default) == 0
    assert next(n for n in module.graph.nodes if n.target is OP).args[2] is None or program is over_nodes
    torch.testing.assert_close(module(*inputs_of()), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("program", [squared, drawn_inside, seen_twice, plain])
def test_other_graphs_stay_as_they_are(program):
    inputs = inputs_of(torch.float64 if program is plain else torch.float32)
    module = graph_of(program, inputs)
    fuse_bernoulli(module)
    module.graph.lint()
    assert count(module.graph, OP) == 0
    assert count(module.graph, torch.ops.aten.binary_cross_entropy_with_logits.default) == 1


@pytest.mark.parametrize(
    ("bayesian", "options", "scaled"),
    [
        (False, {}, False),
        (True, {"local_reparametrization": True, "quadrature_nodes": 3}, True),
    ],
)
def test_steps_that_are_compiled_have_it(monkeypatch, bayesian, options, scaled):
    found = []
    monkeypatch.setattr(capture, "_compile", lambda graph: found.append(graph) or graph)
    model = DeepGenerative(6, 2, [5], 9, bayesian=bayesian)
    sites = latent_sites(model, torch.zeros(2, 6))
    shared = MeanField(sites.shared, locs=sites.shared_draw) if bayesian else None
    guide = Amortized(sites.local, 9, 6, 3, shared=shared)
    data = (torch.rand(9, 6) < 0.5).to(torch.uint8)
    Training(model, guide, data, FitOptions(4, capture="inductor", **options)).prepare(1)
    (kernel,) = (node for node in found[0].graph.nodes if node.target is OP)
    assert (kernel.args[1] is not None) == scaled
    assert count(found[0].graph, torch.ops.aten.sigmoid.default) == 0
