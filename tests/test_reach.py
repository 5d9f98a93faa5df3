"""Guides with bounds within the posterior: weights leave a part of p(x) out, and k-hat cannot tell."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_diagnose import QUICK
from torch.distributions.transforms import AffineTransform

import amortized_bayes as ab
from amortized_bayes.diagnosis import diagnose_block, prepare_blocks, stages
from amortized_bayes.evaluation import bounds

X = torch.linspace(-1.5, 1.5, 7)
NOISE = 0.5
EVIDENCE = dist.Normal(0.0, math.hypot(1.0, NOISE)).log_prob(X)
SCALE = NOISE / math.hypot(1.0, NOISE)
MEAN = X / (1 + NOISE**2)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x)


def uniform(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x)


def guide_of(q):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q(x))

    return guide


half = guide_of(lambda x: dist.HalfNormal(1.0))
CALLS = {
    "iwae": lambda *programs: ab.iwae(*programs, X),
    "iwae in blocks": lambda *programs: ab.iwae(*programs, X, num_particles=2000),
    "log_predictive": lambda *programs: ab.log_predictive(*programs, X),
    "diagnose": lambda *programs: ab.diagnose(*programs, X, progress=False),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_guide_on_half_of_the_support_is_refused_with_what_it_misses(call):
    words = (
        r"got 'z' on \(0, inf\) alone, where the model has it on \(-inf, inf\): at 6 of 7 points"  # 0.4% of the last
    )
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=words) as refused:
        call(model, half)
    assert "\n" not in str(refused.value)
    missed = -dist.Normal(MEAN, SCALE).cdf(torch.zeros(7)).neg().log1p().min()  # -log P(z > 0 | x), at the worst
    (told,) = re.findall(r"beyond, ([\d.]+) nats", str(refused.value))
    assert float(told) == pytest.approx(missed.item(), rel=0.2)


@pytest.mark.slow
def test_bounds_and_chains_that_need_no_more_answer():
    bound, mean = ab.elbo(model, half, X, num_draws=400), math.sqrt(2 / math.pi)
    given = -0.5 * math.log(2 * math.pi * NOISE**2) - (X**2 - 2 * X * mean + 1) / (2 * NOISE**2)
    exact = given - math.log(2)  # the divergence of a half from the whole
    assert ((bound.value - exact) / bound.standard_error).abs().max() < 4
    assert (exact < EVIDENCE).all()
    found = ab.ais(model, half, X, settings=ab.AISSettings(num_temperatures=100))
    assert ((found.log_p - EVIDENCE).abs() < 5 * found.standard_error + 0.05).all()


def test_points_that_are_reached_are_not_counted():
    """Far above zero the posterior is above it: 6.5 of its scales for the last three."""
    with pytest.raises(ValueError, match="at 2 of 5 points"):
        ab.iwae(
            model, guide_of(lambda x: dist.LogNormal(x.clamp(min=0.5).log(), 0.3)), torch.tensor([0.2, 0.4, 4, 4.5, 5])
        )


@pytest.mark.parametrize("high", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
def test_half_of_an_interval_is_refused(high):
    with pytest.raises(ValueError, match=r"got 'z' on \(0, 0.5\) alone, where the model has it on \(0, 1\): at 7 of 7"):
        ab.iwae(uniform, guide_of(lambda x: dist.Uniform(0.0, high)), X)
    bound = ab.iwae(uniform, guide_of(lambda x: dist.Beta(1.0, 1.0)), X, num_particles=1000)
    normal = dist.Normal(X, NOISE)
    exact = (normal.cdf(torch.ones(7)) - normal.cdf(torch.zeros(7))).log()
    assert ((bound.value - exact).abs() < 4 * bound.standard_error).all()


def test_bounds_of_each_points_own_are_named_so():
    with pytest.raises(ValueError, match=r"'z' on \(bounds that differ, bounds that differ\) alone"):
        ab.iwae(model, guide_of(lambda x: dist.Uniform(x - 0.5, x + 0.5)), X)


@pytest.mark.parametrize("q", [lambda x: dist.Uniform(-6.0, 6.0), lambda x: dist.Uniform(MEAN - 4, MEAN + 4)])
@pytest.mark.slow_cases("<lambda>1")
def test_bounds_beyond_which_nothing_lies_are_no_matter(q):
    found = ab.iwae(model, guide_of(q), X, num_particles=1000)
    assert ((found.value - EVIDENCE).abs() < 4 * found.standard_error).all()


def waiting(x):
    """p(x, z) ends at z = x, whatever support the latent has: log p(x) is that of the exponential integral."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Exponential(1.0))
        pyro.sample("x", dist.Uniform(0.0, z), obs=x)


def test_a_posterior_with_bounds_of_its_own_may_have_a_guide_with_them():
    x = torch.tensor([0.5, 1.0, 2.0])
    exact = torch.tensor([0.5597736, 0.2193839, 0.0489005]).log()  # E1(x): Abramowitz & Stegun (1964), table 5.1
    guide = guide_of(
        lambda x: dist.TransformedDistribution(dist.Exponential(torch.ones(len(x))), [AffineTransform(x, 1.0)])
    )
    found = ab.iwae(waiting, guide, x, num_particles=1000)
    assert ((found.value - exact).abs() < 4 * found.standard_error).all()


def test_of_several_numbers_each_is_looked_at():
    """The first of ten misses 5%. Of 100 draws of a point, 10 reflect it, and stand for 100: a hit is a tenth."""

    def ten(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.zeros(10), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0 * z[:, 0], 1.0), obs=x)

    low = torch.zeros(10).index_fill(0, torch.tensor([0]), 0.05)
    guide = guide_of(lambda x: dist.Uniform(low, 1.0).expand([len(x), 10]).to_event(1))
    torch.manual_seed(1)
    with pytest.raises(ValueError, match=r"'z' on \(bounds that differ, 1\) alone, .* on \(0, 1\)") as refused:
        ab.iwae(ten, guide, torch.zeros(60))
    ((count, worst),) = re.findall(r"at (\d+) of 60 points .* beyond, ([\d.]+) nats", str(refused.value))
    hit = (
        1 - (1 - 0.005 / 0.95) ** 100
    )  # of a point; one in ten draws, one in nineteen of them within the model's bounds
    assert abs(int(count) - 60 * hit) < 3 * math.sqrt(60 * hit * (1 - hit))
    assert min(abs(float(worst) - math.log1p(0.1 * hits)) for hits in (2, 3, 4, 5)) < 0.01


# Points that come later -----------------------------------------------------------------------------------------------


later = guide_of(lambda x: dist.Uniform(0.0, 1.0 - 0.5 * (x > 1.2)))
"""The whole interval for all points but the last, of which half is left out."""
LATER = {
    "iwae": lambda: ab.iwae(uniform, later, X, max_rows=200),
    "iwae in blocks": lambda: ab.iwae(uniform, later, X, num_particles=1_100),
    "log_predictive": lambda: ab.log_predictive(uniform, later, X, max_rows=32),
    "diagnose": lambda: ab.diagnose(uniform, later, X, progress=False),
    "diagnose_block": lambda: diagnose_block(uniform, later, X[4:], ground=first_points(), progress=False),
}


def first_points():
    return prepare_blocks(uniform, later, X[:4], settings=QUICK, progress=False)


@pytest.mark.parametrize("call", LATER.values(), ids=LATER)
@pytest.mark.slow_cases("diagnose_block")
def test_points_beyond_the_first_are_looked_at_too(call, monkeypatch):
    monkeypatch.setattr(bounds, "POINTS_STREAMED", 2)
    monkeypatch.setattr(stages, "CHECKED", 2)
    with pytest.raises(ValueError, match=r"got 'z' on \(.*\) alone, where the model has it on \(0, 1\): at 1 of"):
        call()


@pytest.mark.slow
def test_blocks_of_points_that_are_reached_answer():
    found = diagnose_block(uniform, later, X[4:6], ground=first_points(), settings=QUICK, progress=False)
    assert found["elbo"][0].shape == (1, 2)


# Latents that the points share ----------------------------------------------------------------------------------------


def shifted(x):
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(theta, 1.0))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x)


def above(x):
    """A half of theta, and given it the exact posterior of each z."""
    theta = pyro.sample("theta", dist.HalfNormal(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(theta + (x - theta) / (1 + NOISE**2), SCALE))


@pytest.mark.slow
def test_a_half_of_a_shared_latent_costs_its_divergence_and_leaves_bounds_bounds(float64):
    """E_q log p(x_n | theta) - KL(q || p) / N in closed form, and below log p(x) / N."""
    x, variance = X.double(), 1 + NOISE**2
    first, second = 0.5 * math.sqrt(2 / math.pi), 0.5**2
    given = -0.5 * math.log(2 * math.pi * variance) - (x**2 - 2 * x * first + second) / (2 * variance)
    divergence = math.log(2) - math.log(0.5) - 0.5 + 0.5 * second
    exact = given - divergence / len(x)
    whole = dist.MultivariateNormal(torch.zeros(7), torch.full((7, 7), 1.0) + variance * torch.eye(7)).log_prob(x)
    assert exact.sum() < whole
    for found in (
        ab.iwae(shifted, above, x, num_particles=3, num_shared=300),
        ab.elbo(shifted, above, x, num_draws=300, analytic_kl=False),
    ):
        assert ((found.value - exact) / found.standard_error).abs().max() < 4
        assert found.standard_error.max() < 0.1
