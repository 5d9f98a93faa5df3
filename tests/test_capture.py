"""Replays give the numbers of the plain program, bit for bit, and what cannot be replayed is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule, PyroSample
from torch import nn

from amortized_bayes.capture import CaptureError, capture, compiler_available
from amortized_bayes.guides import Amortized, Constant, Factorized, MeanField
from amortized_bayes.models import DeepGenerative
from amortized_bayes.sites import latent_sites
from amortized_bayes.weights import draw_weights

N, B = 9, 4


def elbo_and_gradients(model, guide, parameters):
    def program(x, index):
        weights = draw_weights(model, guide, x, index)
        loss = -(weights.local.mean() + weights.shared.mean() / weights.num_data)
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    return program


def deep_generative(guide_class, *, bayesian=True, **options):
    model = DeepGenerative(6, 2, [5], N, bayesian=bayesian)
    sites = latent_sites(model, torch.zeros(2, 6))
    shared = MeanField(sites.shared, locs=sites.shared_draw) if bayesian else None
    guide = guide_class(sites.local, N, shared=shared, **options)
    return model, guide


def factorized():
    return deep_generative(Factorized, start=torch.randn(N, 4))


def amortized():
    return deep_generative(Amortized, bayesian=False, observed=6, width=3)


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.ConvTranspose2d(1, 1, 2, stride=1)

    def forward(self, x, index):
        with pyro.plate("data", N, subsample=index):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            image = self.decoder(z.reshape(-1, 1, 1, 2))  # (B, 1, 2, 3)
            pyro.sample("x", dist.Normal(image.flatten(1), 1.0).to_event(1), obs=x)


def convolutional():
    model = Convolutional()
    sites = latent_sites(model, torch.zeros(2, 6), torch.arange(2)).local
    encoder = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(8, 4))
    return model, Amortized(sites, N, 6, encoder=encoder)


def with_dropout():
    model, guide = amortized()
    guide.encoder = nn.Sequential(nn.Dropout(0.5), guide.encoder, nn.Dropout(0.2))
    return model, guide


class PyroSampled(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 6)
        self.linear.weight = PyroSample(dist.Normal(torch.zeros(6, 2), 1.0).to_event(2))
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, index):
        weight = self.linear.weight
        with pyro.plate("data", N, subsample=index):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(F.linear(z, weight, self.linear.bias), self.scale).to_event(1), obs=x)


def pyro_sampled():
    model = PyroSampled()
    sites = latent_sites(model, torch.zeros(2, 6), torch.arange(2))
    return model, Constant(sites.local, N, shared=MeanField(sites.shared))


PROGRAMS = {
    "rows": factorized,
    "amortized": amortized,
    "convolutions": convolutional,
    "dropout": with_dropout,
    "PyroSample": pyro_sampled,
}


def problem(name):
    model, guide = PROGRAMS[name]()
    parameters = [*model.parameters(), *guide.parameters()]
    return elbo_and_gradients(model, guide, parameters), parameters


def batch():
    return [torch.bernoulli(torch.full((B, 6), 0.5)), torch.randperm(N)[:B]]


def run(program, inputs, seed=11):
    torch.manual_seed(seed)
    outputs = [t.clone() for t in program(*inputs)]
    return outputs, torch.get_rng_state()


def assert_same_bits(first, second):
    (outputs, state), (others, other_state) = first, second
    assert len(outputs) == len(others)
    assert all(torch.equal(a, b) for a, b in zip(outputs, others, strict=True))
    assert torch.equal(state, other_state)


@pytest.mark.parametrize("name", PROGRAMS)
def test_replay_equals_the_program_bit_for_bit(float64, name):
    program, _ = problem(name)
    replay = capture(program, batch(), batch())
    for seed in range(3):
        inputs = batch()
        assert_same_bits(run(program, inputs, seed), run(replay, inputs, seed))
    assert replay.backend == "replay"
    assert replay.seconds > 0
    assert replay.num_operations > 10


@pytest.mark.parametrize("name", PROGRAMS)
def test_parameters_changed_in_place_are_seen(float64, name):
    program, parameters = problem(name)
    inputs = batch()
    replay = capture(program, inputs, batch())
    before = run(replay, inputs)
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(1.1).add_(0.01)
    after = run(replay, inputs)
    assert not torch.equal(before[0][0], after[0][0])
    assert_same_bits(run(program, inputs), after)


def test_random_subsampling_inside_the_program(float64):
    data = torch.randn(N, 2)

    def program(shift):
        with pyro.plate("data", N, subsample_size=3) as index:
            z = pyro.sample("z", dist.Normal(data[index] + shift, 1.0).to_event(1))
        return [z, index]

    replay = capture(program, [torch.zeros(2)], [torch.ones(2)])
    shift = [torch.randn(2)]
    assert_same_bits(run(program, shift, 5), run(replay, shift, 5))
    assert not torch.equal(replay(*shift)[1], replay(*shift)[1]) or not torch.equal(
        replay(*shift)[1], replay(*shift)[1]
    )


def test_draws_are_made_outside_the_graph(float64):
    replay = capture(problem("rows")[0], batch(), batch())
    assert len(replay.draw()) == 5  # z, and weight and bias of two layers
    assert not any("randn" in str(node.target) for node in replay.replay.graph.nodes)


def test_draw_that_depends_on_an_input_keeps_order_and_numbers(float64):
    def program(probs):
        first = torch.randn(3)
        chosen = torch.bernoulli(probs)
        return [first, chosen, torch.randn(3), torch.rand_like(probs)]

    replay = capture(program, [torch.full((5,), 0.5)], [torch.full((5,), 0.3)])
    for seed in range(5):
        inputs = [torch.rand(5)]
        assert_same_bits(run(program, inputs, seed), run(replay, inputs, seed))
    assert len(replay.draw()) == 0


def test_a_draw_nobody_reads_still_moves_the_stream(float64):
    def program(x):
        torch.randn(7)
        return [x + torch.randn(3)]

    replay = capture(program, [torch.zeros(3)], [torch.ones(3)])
    assert_same_bits(run(program, [torch.ones(3)]), run(replay, [torch.ones(3)]))


def test_operations_that_depend_on_nothing_are_computed_once(float64):
    def program(x):
        return [x * torch.arange(1000.0).square().sum().sqrt() + torch.eye(3).sum()]

    replay = capture(program, [torch.zeros(3)], [torch.ones(3)])
    assert replay.num_operations == 2
    assert_same_bits(run(program, [torch.ones(3)]), run(replay, [torch.ones(3)]))


def test_a_tensor_built_and_changed_inside_is_built_anew_at_each_replay(float64):
    def program(x):
        total = torch.zeros(3)
        total.add_(x)
        total[0] = 7.0
        return [total]

    replay = capture(program, [torch.zeros(3)], [torch.ones(3)])
    for inputs in ([torch.ones(3)], [torch.randn(3)]):
        assert_same_bits(run(program, inputs), run(replay, inputs))


def test_a_python_float_is_frozen_and_a_tensor_is_not(float64):
    """What the module's docstring warns of: schedules enter as tensors."""
    schedule = {"float": 1.0, "tensor": torch.tensor(1.0)}

    def program(x):
        return [x * schedule["float"], x * schedule["tensor"]]

    replay = capture(program, [torch.ones(3)], [torch.full((3,), 2.0)])
    schedule["float"] = 0.5
    schedule["tensor"].fill_(0.5)
    stale, fresh = replay(torch.ones(3))
    assert stale.tolist() == [1.0] * 3
    assert fresh.tolist() == [0.5] * 3


# What is refused ------------------------------------------------------------------------------------------------------


def test_branch_on_the_data():
    def program(x):
        return [x if x.sum() > 0 else -x]

    with pytest.raises(CaptureError):
        capture(program, [torch.ones(3)], [-torch.ones(3)])


def test_branch_that_tracing_does_not_see():
    """A branch on numpy's view of the data: only the second batch finds it out."""

    def program(x):
        return [x.clone() if flags.pop(0) else -x]

    flags = [True, False]
    with pytest.raises(CaptureError, match=r"differs from the program by 2\.0e\+00"):
        capture(program, [torch.ones(3)], [torch.ones(3)])


def test_float_that_moves_with_every_call():
    calls = []

    def program(x):
        calls.append(1)
        return [x * len(calls)]

    with pytest.raises(CaptureError, match="differs from the program"):
        capture(program, [torch.ones(3)], [torch.ones(3)])


def test_number_of_outputs_and_shapes_that_change():
    lengths = [2, 3]
    with pytest.raises(CaptureError, match="returns 2 tensors, the program 3"):
        capture(lambda x: [x] * lengths.pop(0), [torch.ones(3)], [torch.ones(3)])
    shapes = [2, 3]
    with pytest.raises(CaptureError, match=r"returns shape \(2,\), the program \(3,\)"):
        capture(lambda x: [x[: shapes.pop(0)]], [torch.ones(4)], [torch.ones(4)])


def test_nan_against_a_number_is_a_difference():
    signs = [-1.0, 1.0]
    with pytest.raises(CaptureError, match="differs from the program by inf"):
        capture(lambda x: [(x * signs.pop(0)).sqrt()], [torch.ones(3)], [torch.ones(3)])


def test_error_of_the_program_keeps_its_reason():
    def program(x):
        raise KeyError("no such site")

    with pytest.raises(CaptureError, match="KeyError: 'no such site'"):
        capture(program, [torch.ones(3)], [torch.ones(3)])


def test_error_on_the_second_batch_keeps_its_reason():
    def program(x):
        if calls:
            raise RuntimeError("second batch")
        calls.append(1)
        return [x]

    calls = []
    with pytest.raises(CaptureError, match="RuntimeError: second batch"):
        capture(program, [torch.ones(3)], [torch.ones(3)])


def test_failing_compiler_is_a_capture_error(monkeypatch):
    def broken(*_, **__):
        torch.distributions.Distribution.set_default_validate_args(False)  # as compiling does

        def call(*_):
            raise OSError("g++ is broken")

        return call

    monkeypatch.setattr("torch._inductor.compile", broken)
    monkeypatch.setattr("amortized_bayes.capture.compiler_available", lambda: True)
    with pytest.raises(CaptureError, match=r"OSError: g\+\+ is broken"):
        capture(lambda x: [x + 1], [torch.ones(3)], [torch.ones(3)], backend="inductor")


def test_no_compiler_is_a_capture_error(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not compiler_available()
    with pytest.raises(CaptureError, match=r"no C\+\+ compiler"):
        capture(lambda x: [x + 1], [torch.ones(3)], [torch.ones(3)], backend="inductor")


def test_unknown_backend():
    with pytest.raises(ValueError, match="'replay' or 'inductor', got 'jit'"):
        capture(lambda x: [x], [torch.ones(3)], [torch.ones(3)], backend="jit")


def test_tolerance_is_relative_to_each_output():
    numbers = [1.0, 1.0 + 1e-6]

    def program(x):
        return [1e8 * x, x * numbers.pop(0)]

    inputs = [torch.ones(3, dtype=torch.float64)]
    with pytest.raises(CaptureError, match="expected at most 1e-10"):
        capture(program, inputs, inputs)
    numbers[:] = [1.0, 1.0 + 1e-6]
    capture(program, inputs, inputs, tolerance=1e-5)


# Buffers --------------------------------------------------------------------------------------------------------------


def batch_norm():
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(8, 3))
    return norm, [b.clone() for b in norm.buffers()]


def test_batch_norm_statistics_are_put_back_and_move_as_in_the_program(float64):
    norm, before = batch_norm()
    replay = capture(lambda x: [norm(x)], [torch.randn(8, 3)], [torch.randn(8, 3)], restore=list(norm.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), before, strict=True))
    x = torch.randn(8, 3)
    replayed = replay(x)[0].clone()
    moved = [b.clone() for b in norm.buffers()]
    assert not torch.equal(moved[0], before[0])
    for buffer, value in zip(norm.buffers(), before, strict=True):
        buffer.copy_(value)
    assert torch.equal(norm(x), replayed)
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), moved, strict=True))


def test_without_restore_the_statistics_would_move(float64):
    norm, before = batch_norm()
    capture(lambda x: [norm(x)], [torch.randn(8, 3)], [torch.randn(8, 3)])
    assert not torch.equal(norm.running_mean, before[0])


def test_statistics_are_put_back_when_capture_fails(float64):
    norm, before = batch_norm()

    def program(x):
        y = norm(x)
        return [y if y.sum() > 0 else -y]

    with pytest.raises(CaptureError):
        capture(program, [torch.randn(8, 3)], [torch.randn(8, 3)], restore=list(norm.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), before, strict=True))


def test_an_expanded_buffer_that_does_not_change_is_no_obstacle(float64):
    scale = torch.ones(()).expand(3)
    replay = capture(lambda x: [x * scale], [torch.ones(3)], [torch.ones(3)], restore=[scale])
    assert replay(torch.full((3,), 2.0))[0].tolist() == [2.0] * 3


def test_validation_is_as_before_after_a_failure(unchanged_switches):
    with unchanged_switches(), pytest.raises(CaptureError):
        capture(lambda x: [x if x.sum() > 0 else -x], [torch.ones(3)], [torch.ones(3)])


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_inductor_gives_the_programs_numbers(float64, name):
    program, _ = problem(name)
    compiled = capture(program, batch(), batch(), backend="inductor")
    assert compiled.backend == "inductor"
    inputs = batch()
    (expected, state), (found, other_state) = run(program, inputs), run(compiled, inputs)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert torch.equal(state, other_state)
