"""Gradients of bits against the sum over all codes: on average over the noise by integration, and by draws."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from bit_problems import Model, all_codes, exact, problem
from pyro.infer import SVI, TraceEnum_ELBO
from torch import nn

import amortized_bayes as ab
from amortized_bayes.guides import AmortizedBits
from amortized_bayes.models import TwoBitMixture

N = 20_000
UNBIASED = {"disarm": 1, "arm": 1, "reinforce": 4}
"""Estimators whose mean is the gradient, and particles."""


def gradients(estimator, model, guide, args, num_particles=1):
    """Values, and gradients of each point's ELBO with respect to its log odds and its bias."""
    found = ab.BernoulliELBO(estimator, num_particles).estimate(model, guide, *args)
    return found.local.detach(), *torch.autograd.grad(found.surrogate.sum(), [guide.logits, model.bias])


def draws_of(estimator, num_bits, num_particles=1, seed=0):
    """N draws of the value and of both gradients."""
    torch.manual_seed(seed)
    model, guide, args = problem(N, num_bits)
    return gradients(estimator, model, guide, args, num_particles), exact(model, guide, args[0])


def cells(logits):
    """Nodes (R, b) in the unit cube and their weights (R,): Gauss-Legendre between the places where a code changes."""
    at, weight = np.polynomial.legendre.leggauss(2)
    axes = []
    for p in logits.sigmoid().tolist():
        ends = sorted({0.0, p, 1 - p, 1.0})
        axes.append(
            [
                (lo + (hi - lo) * (t + 1) / 2, (hi - lo) * w / 2)
                for lo, hi in itertools.pairwise(ends)
                for t, w in zip(at, weight, strict=True)
            ]
        )
    grid = list(itertools.product(*axes))
    nodes = torch.tensor([[u for u, _ in one] for one in grid], dtype=torch.float64)
    return nodes, torch.tensor([math.prod(w for _, w in one) for one in grid], dtype=torch.float64)


def over_all_noise(estimator, num_bits, monkeypatch):
    """Values and gradients at nodes of the noise, the weights of these, and the exact value and gradients."""
    nodes, weights = cells(problem(1, num_bits)[1].logits[0].detach())
    model, guide, args = problem(len(nodes), num_bits)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: nodes.reshape(shape))
    found = gradients(estimator, model, guide, args)
    monkeypatch.undo()
    return found, weights, exact(model, guide, args[0])


@pytest.mark.parametrize("num_bits", [1, 2, 3])
@pytest.mark.parametrize("estimator", ["disarm", "arm"])
def test_the_mean_over_all_noise_is_the_sum_over_all_codes(estimator, num_bits, monkeypatch):
    found, weights, expected = over_all_noise(estimator, num_bits, monkeypatch)
    for one, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensordot(weights, one, 1), wanted, rtol=0, atol=1e-12)


def test_disarm_is_the_mean_of_arm_given_the_codes(monkeypatch):
    disarm, arm = (over_all_noise(name, 2, monkeypatch)[0][1] for name in ("disarm", "arm"))
    pairs = [one.reshape(3, 2, 3, 2, 2).mean((1, 3)) for one in (disarm, arm)]  # cells and nodes of both bits' noise
    torch.testing.assert_close(*pairs)
    assert not torch.allclose(disarm, arm)


@pytest.mark.parametrize("num_bits", [1, 2, 3])
def test_disarm_varies_less_than_arm_in_every_coordinate(num_bits, monkeypatch):
    variances = []
    for name in ("disarm", "arm"):
        (_, found, _), weights, (_, mean, _) = over_all_noise(name, num_bits, monkeypatch)
        variances.append(weights @ found**2 - mean**2)
    assert (variances[0] < 0.99 * variances[1]).all()


@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("estimator", UNBIASED)
def test_draws_average_to_the_sum_over_all_codes(estimator, num_bits):
    found, expected = draws_of(estimator, num_bits, UNBIASED[estimator])
    for draws, wanted in zip(found, expected, strict=True):
        error = draws.std(0) / math.sqrt(N)
        assert ((draws.mean(0) - wanted).abs() < 3 * error).all()
        assert (error > 0).all()


def test_draws_vary_less_with_disarm_at_eight_bits_and_with_more_particles():
    variance = {
        (name, k): draws_of(name, 8, k)[0][1].var(0).sum() for name, k in (("disarm", 1), ("arm", 1), ("disarm", 4))
    }
    assert variance["disarm", 1] < variance["arm", 1]
    torch.testing.assert_close(variance["disarm", 4], variance["disarm", 1] / 4, rtol=0.1, atol=0)


@pytest.mark.parametrize("estimator", UNBIASED)
def test_at_the_exact_posterior_no_draw_has_a_gradient(estimator):
    """There f is log p(x) at every code, so that log q has to be in it, and to have no gradient of its own."""
    model, guide, args = problem(50, 1)
    log_joint = model.log_joint(args[0][0], all_codes(1)).detach()
    guide.logits.data.fill_(log_joint[1] - log_joint[0])
    _, by_logits, _ = gradients(estimator, model, guide, args, UNBIASED[estimator])
    assert by_logits.abs().max() < 1e-12


@pytest.mark.parametrize("num_bits", [1, 3, 8])
def test_enumerated_is_exact(num_bits):
    model, guide, args = problem(2, num_bits)
    found = gradients("enumerated", model, guide, args)
    for one, wanted in zip(found, exact(model, guide, args[0]), strict=True):
        torch.testing.assert_close(one, wanted.expand(one.shape), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_bits", [1, 4])
def test_enumerated_is_pyros_own_in_value_and_gradients(num_bits):
    found = []
    for loss in (ab.BernoulliELBO("enumerated"), TraceEnum_ELBO(max_plate_nesting=1)):
        model, guide, args = problem(5, num_bits, "sites")
        value = loss.differentiable_loss(model, guide, *args)
        found.append([value.detach(), *torch.autograd.grad(value, [guide.logits, model.bias])])
        assert loss.loss(model, guide, *args) == pytest.approx(value.item())
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["sites", "plate"])
def test_bits_on_sites_or_in_a_plate_have_the_gradients_of_a_vector(form):
    model, guide, args = problem(N, 3, form)
    torch.manual_seed(1)
    expected = exact(model, guide, args[0])
    for draws, wanted in zip(gradients("disarm", model, guide, args), expected, strict=True):
        assert ((draws.mean(0) - wanted).abs() < 3 * draws.std(0) / math.sqrt(N)).all()
    for summed, wanted in zip(gradients("enumerated", *few(form)), expected, strict=True):
        torch.testing.assert_close(summed, wanted.expand(summed.shape), rtol=0, atol=1e-12)


def few(form):
    return problem(3, 3, form)


class Mixed(nn.Module):
    """Bits, and a Gaussian latent that log odds may depend on: x ~ N(w b + z, 1), z ~ N(0, 1)."""

    weight = torch.tensor([1.3, -0.7], dtype=torch.float64)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            bits = pyro.sample("bits", dist.Bernoulli(0.5 * torch.ones(len(x), 2).to(x)).to_event(1))
            pyro.sample("x", dist.Normal(bits @ self.weight + z, 1.0), obs=x)


class MixedGuide(nn.Module):
    """Q(z) = N(loc, 0.6²) and q(bits) with log odds of each point."""

    def __init__(self, num_data):
        super().__init__()
        self.loc = nn.Parameter(torch.full((num_data,), 0.4, dtype=torch.float64))
        self.logits = nn.Parameter(torch.tensor([0.5, -1.0], dtype=torch.float64).repeat(num_data, 1))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 0.6))
            pyro.sample("bits", dist.Bernoulli(logits=self.logits).to_event(1))


@pytest.mark.parametrize("estimator", UNBIASED)
def test_other_draws_have_their_path_gradient(estimator):
    torch.manual_seed(0)
    guide, x = MixedGuide(N), torch.full((N,), 0.9, dtype=torch.float64)
    found = ab.BernoulliELBO(estimator, UNBIASED[estimator]).estimate(Mixed(), guide, x)
    by_loc, by_logits = torch.autograd.grad(found.surrogate.sum(), [guide.loc, guide.logits])
    loc, logits = guide.loc[0], guide.logits[0]
    p = logits.sigmoid()
    mean, variance = p @ Mixed.weight + loc, (p * (1 - p)) @ Mixed.weight**2 + 0.36
    entropy = dist.Bernoulli(logits=logits).entropy().sum() + dist.Normal(0.0, 0.6).entropy()
    expected = -0.5 * ((0.9 - mean) ** 2 + variance) - 0.5 * (loc**2 + 0.36) - math.log(2 * math.pi)
    expected = expected - 2 * math.log(2) + entropy
    assert abs(found.local.mean() - expected) < 3 * found.local.std() / math.sqrt(N)
    for draws, wanted in zip((by_loc, by_logits), torch.autograd.grad(expected, [loc, logits]), strict=True):
        assert ((draws.mean(0) - wanted).abs() < 3 * draws.std(0) / math.sqrt(N)).all()


class Linear(Model):
    """x that is linear in the bits, with a likelihood that is too: straight-through is exact where f is linear."""

    def forward(self, x, index):
        with pyro.plate("data", len(x)):
            bits = pyro.sample("bits", dist.Bernoulli(0.5 * torch.ones(len(x), len(self.prior))).to_event(1))
            pyro.factor("x", self.bias[index, 0] * (bits @ self.first[:, 0].to(bits)))


def test_straight_through_is_pyros_relaxed_draw_and_has_the_value_of_bits():
    """Of a linear f, E ∂b/∂α at temperature t tends to σ'(α) as t falls to 0, so the bias goes."""
    _, guide, args = problem(N, 2)
    model = Linear(N, 2)
    torch.manual_seed(0)
    found = ab.BernoulliELBO("straight-through", temperature=0.05).estimate(model, guide, *args)
    by_logits, by_bias = torch.autograd.grad(found.surrogate.sum(), [guide.logits, model.bias])
    p, slope = guide.logits[0].detach().sigmoid(), model.bias[0, 0].detach() * model.first[:, 0]
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
    exactly = p @ slope - 2 * math.log(2) + entropy
    assert abs(found.local.mean() - exactly) < 3 * found.local.std() / math.sqrt(N)
    wanted = (slope - guide.logits[0].detach()) * p * (1 - p)
    assert ((by_logits.mean(0) - wanted).abs() < 3 * by_logits.std(0) / math.sqrt(N) + 0.01).all()
    assert abs(by_bias[:, 0].mean() - p @ model.first[:, 0]) < 3 * by_bias[:, 0].std() / math.sqrt(N)


# In use ---------------------------------------------------------------------------------------------------------------

SQUARE = torch.tensor([[[1.0, 1.0], [1.0, -1.0]], [[0.0, 0.0], [-1.0, 0.0]]])


class Table(nn.Module):
    """Log odds of two bits for each point."""

    def __init__(self, num_data):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_data, 2))

    def forward(self, x, index):
        logits = self.logits[index]
        with pyro.plate("data", len(x)):
            for place, name in enumerate(("first", "second")):
                pyro.sample(name, dist.Bernoulli(logits=logits[:, place]))


@pytest.mark.parametrize("estimator", [*UNBIASED, "enumerated"])
@pytest.mark.slow_cases("reinforce")
def test_fit_finds_the_best_product_of_each_point(estimator):
    torch.manual_seed(0)
    model, guide = TwoBitMixture(SQUARE, 1.0), Table(40)
    model.means.requires_grad_(False)
    x, _ = model.simulate(10, seed=0)
    options = ab.FitOptions(
        batch_size=40,
        objective=estimator,
        num_particles=UNBIASED.get(estimator, 1),
        shared_learning_rate=0.05,
        learning_rate=0.05,
        schedule=lambda done: 1 - done,
        average=None,
    )
    ab.fit(model, guide, x, num_steps=400, options=options)
    best = model.best_factorized(x).elbo
    gap = best - model.factorized_elbo(x, guide.logits.detach())
    assert gap.mean() < 0.01
    assert gap.min() > -1e-6


@pytest.mark.parametrize("estimator", [*UNBIASED, "enumerated"])
def test_a_captured_fit_is_the_uncaptured_one(estimator):
    found = []
    for capture in ("off", "replay"):
        torch.manual_seed(0)
        model = TwoBitMixture(SQUARE, 1.0)
        guide = AmortizedBits(("first", "second"), nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)))
        x, _ = model.simulate(5, seed=0)
        count = UNBIASED.get(estimator, 1)
        options = ab.FitOptions(batch_size=10, objective=estimator, num_particles=count, capture=capture)
        training = ab.Training(model, guide, x, options, 3)
        list(training.run(8))
        assert (training.captured is not None) == (capture == "replay")
        found.append([p.detach().clone() for p in (*model.parameters(), *guide.parameters())])
    assert not torch.equal(found[0][0], SQUARE)
    for off, replayed in zip(*found, strict=True):
        torch.testing.assert_close(off, replayed)


def test_pyros_svi_has_the_gradients_of_a_fit_times_the_points():
    torch.manual_seed(0)
    model = TwoBitMixture(SQUARE, 1.0)
    guide = AmortizedBits(("first", "second"), nn.Linear(2, 2))
    x, _ = model.simulate(3, seed=0)
    options = ab.FitOptions(batch_size=12, objective="disarm", num_particles=3)
    training, index = ab.Training(model, guide, x, options), torch.arange(12)
    torch.manual_seed(4)
    loss, *expected = training.loss_and_gradients(x, index)
    elbo = ab.BernoulliELBO("disarm", 3)
    elbo.loss(model, guide, x, index)
    torch.manual_seed(4)
    assert elbo.loss_and_grads(model, guide, x, index) == pytest.approx(12 * loss.item())
    for parameter, wanted in zip(training.variables.parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, 12 * wanted)


def test_pyros_svi_moves_every_parameter():
    torch.manual_seed(0)
    model, guide = TwoBitMixture(SQUARE, 1.0), AmortizedBits(("first", "second"), nn.Linear(2, 2))
    x, _ = model.simulate(3, seed=0)
    before = [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), ab.BernoulliELBO("disarm")).step(x)
    assert not any(
        torch.equal(p, old) for p, old in zip((*model.parameters(), *guide.parameters()), before, strict=True)
    )
