"""Couplings by the C++ kernel: its gradient against float64, its steps against the general climb, and who is served."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from amortized_bayes import capture
from amortized_bayes.flows import FlowSettings
from amortized_bayes.inference import coupling_chunk, coupling_kernel
from amortized_bayes.inference.coupling_chunk import CouplingChunk, Packing, kernel_serves
from amortized_bayes.inference.flow_climb import FlowChunk
from amortized_bayes.inference.flow_points import PointFlows
from amortized_bayes.inference.flow_search import optimize_flow
from amortized_bayes.inference.settings import FlowSearchSettings
from amortized_bayes.joint import Gaussian, joint_density

pytestmark = pytest.mark.skipif(not capture.compiler_available(), reason="no C++ compiler")

SHAPES = [(5, 3, (7, 20)), (2, 2, (33,)), (9, 1, (16, 5, 18))]
"""D, couplings and hidden widths: odd and even, one short of a vector, one more than two."""


def curved(x: Tensor) -> None:
    """Posteriors that no Gaussian meets, in any dimension."""
    dim = x.shape[-1]
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(dim), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + 0.5 * z.roll(1, -1) ** 2, 0.4).to_event(1), obs=x)


class Search:
    """A chunk of each kind for the same points, at parameters away from the identity."""

    def __init__(self, dim: int, layers: int, hidden: tuple[int, ...], num_points: int = 4, **search) -> None:
        torch.manual_seed(dim)
        self.x = torch.randn(num_points, dim)
        self.settings = FlowSettings("realnvp", num_flows=layers, hidden=hidden)
        self.start = Gaussian(0.3 * torch.randn(num_points, dim), 0.4 + 0.2 * torch.rand(num_points, dim))
        self.joint = joint_density(curved, self.x)
        self.flows = PointFlows(dim, self.settings, self.start.loc)
        self.search = FlowSearchSettings(**{"num_samples": 10, **search})
        made = FlowChunk(self.joint, self.start, self.flows, self.search, range(num_points), 0)
        self.values = [value + 0.2 * torch.randn_like(value) for value in made.values]

    def chunk(self, kind: type[FlowChunk], points: slice = slice(None)) -> FlowChunk:
        places = range(len(self.x))[points]
        start = Gaussian(*(part[points] for part in self.start))
        made = kind(self.joint.select(torch.tensor(list(places))), start, self.flows, self.search, places, 0)
        made.values = [value[points].clone() for value in self.values]
        made.parameters = dict(zip(made.parameters, made.values, strict=False))
        return made

    def climbed(self, kind: type[FlowChunk], points: slice = slice(None)) -> FlowChunk:
        chunk = self.chunk(kind, points)
        chunk.climb(None, lambda _: None)
        return chunk


def exact_gradient(search: Search) -> list[Tensor]:
    """The path gradient of minus the mean of log p − log q in float64, on the draws of the first step."""
    chunk = search.chunk(FlowChunk)
    noise = chunk._paired_noise(chunk._streams("climb"))[0].double()
    leaves = [value.double().requires_grad_() for value in search.values]
    start = Gaussian(*(part.double() for part in search.start))
    flows = PointFlows(search.joint.dim, search.settings, start.loc)
    parameters = dict(zip(chunk.parameters, leaves[:-2], strict=True))
    base = Gaussian(start.loc + start.scale * leaves[-2], start.scale * leaves[-1].exp())
    z, log_q = flows.sample(parameters, base, noise, path=True)
    log_p = joint_density(curved, search.x.double())(z)
    return list(torch.autograd.grad(-(log_p - log_q).mean(0).sum(), leaves))


@pytest.mark.parametrize(("dim", "layers", "hidden"), SHAPES)
def test_the_gradient_is_that_of_float64(dim: int, layers: int, hidden: tuple[int, ...], monkeypatch) -> None:
    """After one step of Adam the first moment is a tenth of the gradient."""
    search = Search(dim, layers, hidden, num_steps=1, num_samples=6)
    kernel, moments = coupling_kernel.coupling_kernel(), []
    assert kernel is not None

    def watched(*args) -> None:
        kernel(*args)
        moments.append(args[9])

    monkeypatch.setattr(coupling_chunk, "coupling_kernel", lambda: watched)
    search.climbed(CouplingChunk)
    packing = Packing((dim // 2, *hidden, 2 * (dim - dim // 2)), layers, dim)
    for found, wanted in zip(packing.unpack(10 * moments[-1]), exact_gradient(search), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5 * wanted.abs().max().item())


@pytest.mark.parametrize(("dim", "layers", "hidden"), SHAPES)
def test_steps_are_those_of_the_general_climb(dim: int, layers: int, hidden: tuple[int, ...]) -> None:
    """Over two blocks of draws, with cut gradients, the parameters move by 0.05 and more."""
    search = Search(dim, layers, hidden, num_steps=25, max_growth=1.0)
    ends = [search.climbed(kind).values for kind in (FlowChunk, CouplingChunk)]
    for before, general, own in zip(search.values, *ends, strict=True):
        assert (general - before).abs().max() > 0.02
        torch.testing.assert_close(own, general, rtol=0, atol=1e-3)


def test_neighbours_and_threads_change_nothing() -> None:
    search = Search(5, 3, (7, 20), num_steps=10)
    before = torch.get_num_threads()
    try:
        ends = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            ends.append(search.climbed(CouplingChunk).values)
    finally:
        torch.set_num_threads(before)
    some = search.climbed(CouplingChunk, slice(1, 3)).values
    for one, two, few in zip(*ends, some, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(few, one[1:3], rtol=0, atol=1e-5)


def test_a_gradient_that_is_no_number_is_left_out_for_its_point_alone() -> None:
    """The root has an infinite slope where its argument is cut at 0: for one point never, for the other at times."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            above = z.sum(-1) - x[:, 1]
            pyro.sample("x", dist.Normal((above * (above > 0)).sqrt() + z[:, 0], 1.0), obs=x[:, 0])

    x, start = torch.tensor([[10.0, -100.0], [0.3, -3.0]]), Gaussian(torch.tensor([[0.0, 2.0]] * 2), torch.ones(2, 2))
    settings = FlowSettings("realnvp", num_flows=2, hidden=(8,))
    search = FlowSearchSettings(num_samples=10, num_steps=60, learning_rate=0.05)
    flows, skipped = PointFlows(2, settings, start.loc), []
    for kind in (FlowChunk, CouplingChunk):
        chunk = kind(joint_density(model, x), start, flows, search, [0, 1], 0)
        chunk.climb(None, lambda _: None)
        skipped.append(chunk.num_skipped.tolist())
        assert all(value.isfinite().all() for value in chunk.values)
    assert skipped[0] == skipped[1]
    assert skipped[1][0] == 0 < skipped[1][1] < 60


def test_numbers_are_packed_and_unpacked() -> None:
    packing = Packing((2, 7, 20, 6), 3, 5)
    values = [torch.randn(4, *shape) for shape in packing.shapes]
    rows = packing.pack(values)
    assert rows.shape[1] % 16 == 0
    assert all(torch.equal(a, b) for a, b in zip(packing.unpack(rows), values, strict=True))


def served(family: str, dim: int, dtype: torch.dtype = torch.float32, num_steps: int = 2000) -> bool:
    joint = joint_density(curved, torch.zeros(10, dim, dtype=dtype))
    search = FlowSearchSettings(num_steps=num_steps)
    flows = PointFlows(dim, FlowSettings(family, hidden=(200, 200)), torch.zeros(0, dtype=dtype))
    return kernel_serves(joint, flows, search)


def test_long_searches_for_couplings_in_single_precision_are_served(monkeypatch) -> None:
    assert served("realnvp", 4)
    assert not served("realnvp", 4, num_steps=100)
    assert not served("realnvp", 4, torch.float64)
    assert not served("realnvp", 1)
    assert not served("auxiliary", 4)
    monkeypatch.setattr(coupling_chunk, "coupling_kernel", lambda: None)
    assert not served("realnvp", 4)


def test_chunks_are_as_large_as_the_cache() -> None:
    sizes = [
        CouplingChunk.most_points(PointFlows(dim, FlowSettings("realnvp", hidden=hidden), torch.zeros(0)))
        for dim, hidden in ((50, (100, 100)), (2, (16,)), (50, (500, 500)))
    ]
    assert sizes[0] == 20
    assert sizes[1] > 1000
    assert sizes[2] == 10


def test_a_source_that_does_not_compile_is_said_and_done_without(monkeypatch, caplog) -> None:
    monkeypatch.setattr(coupling_kernel, "SOURCE", '#error "planted"')
    monkeypatch.setattr(coupling_chunk, "coupling_kernel", coupling_kernel.coupling_kernel.__wrapped__)
    assert not served("realnvp", 4)
    assert "run without their kernel, which is slower" in caplog.text


@pytest.mark.slow
def test_the_search_ends_where_the_general_one_does(monkeypatch) -> None:
    """Three chunks, the last filled up; the bounds differ by far less than their Monte Carlo error."""
    search = Search(4, 2, (16,), num_points=5)
    settings = FlowSearchSettings(num_samples=10, num_steps=150, num_score=400)
    found = []
    for least in (math.inf, 0.0):
        monkeypatch.setattr(coupling_chunk, "PAYS_FROM", least)
        monkeypatch.setattr(CouplingChunk, "most_points", lambda _: 2)
        found.append(optimize_flow(curved, search.start, search.x, settings=search.settings, search=settings))
    general, own = found
    assert (own.gain > 5 * own.gain_error).all()
    assert ((own.elbo_star - general.elbo_star).abs() < 0.3 * own.standard_error).all()
    z, log_q = own.sample(500, torch.Generator().manual_seed(0))
    log_w = joint_density(curved, search.x)(z) - log_q
    error = (log_w.var(0) / len(log_w) + own.standard_error.square()).sqrt()
    assert ((log_w.mean(0) - own.elbo_star).abs() < 4 * error).all()
