"""What is reported as ±1 s.e. covers the truth about as often as it says, on the linear-Gaussian model.

The points are the sample: each repetition draws new ones from the model, and the truth is the mean over all of them.
"""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized_bayes as ab
from amortized_bayes.comparing.between import Rung, compare_fits
from amortized_bayes.guides.registry import Fit
from amortized_bayes.per_point import mean_over_points

pytestmark = pytest.mark.usefixtures("float64")

REPETITIONS = 200
POINTS = 24
BETWEEN = (0.60, 0.76)
"""Shares of repetitions; 68% is meant, and its own error is 3.3%."""
D, P = 2, 4


class Problem:
    """A model, a guide that misses the best factorized mean by S (x - b), and means over x ~ p(x) in closed form."""

    def __init__(self, stretch=1.2, miss=0.12):
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(P, D, generator=generator)
        weight[:, 1] += 0.8 * weight[:, 0]
        self.model = ab.LinearGaussian(weight, torch.randn(P, generator=generator), 0.8)
        self.off = miss * torch.randn(D, P, generator=generator)
        self.stretch = stretch
        self.covariance = weight @ weight.T + 0.64 * torch.eye(P)
        self.precision = self.model.posterior_precision()
        self.best_scale = self.precision.diagonal().rsqrt()

    def draw(self, number, generator):
        noise = torch.randn(number, P, generator=generator)
        return self.model.bias + noise @ torch.linalg.cholesky(self.covariance).T

    def guide(self, x):
        self._guide(x, self.off, self.stretch)

    def best(self, x):
        self._guide(x, torch.zeros(D, P), 1.0)

    def _guide(self, x, off, stretch):
        mean = self.model.posterior(x).mean + (x - self.model.bias) @ off.T
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, stretch * self.best_scale).to_event(1))

    @property
    def log_p(self):
        """E log p(x), minus an entropy."""
        return -0.5 * (torch.logdet(self.covariance) + P * (1 + math.log(2 * math.pi))).item()

    @property
    def approximation(self):
        return 0.5 * (self.precision.diagonal().log().sum() - torch.logdet(self.precision)).item()

    @property
    def amortization(self):
        missed = 0.5 * torch.trace(self.precision @ self.off @ self.covariance @ self.off.T)
        return (missed + D * (0.5 * (self.stretch**2 - 1) - math.log(self.stretch))).item()

    @property
    def elbo(self):
        return self.log_p - self.approximation - self.amortization

    def iwae(self, particles, number=400_000):
        """E IWAE. Log p(z|x) - log q(z|x) needs no data but their share in the mean that is missed."""
        generator = torch.Generator().manual_seed(5)
        missed = torch.randn(number, P, generator=generator) @ torch.linalg.cholesky(self.covariance).T @ self.off.T
        noise = torch.randn(particles, number, D, generator=generator)
        away = missed + noise * self.stretch * self.best_scale
        log_q = (-0.5 * noise.square() - (self.stretch * self.best_scale).log()).sum(-1)
        log_p = 0.5 * torch.logdet(self.precision) - 0.5 * (away @ self.precision * away).sum(-1)
        return self.log_p + ((log_p - log_q).logsumexp(0) - math.log(particles)).mean().item()


def coverage(found, truth):
    """Share of repetitions whose mean ± standard error holds the truth, of those that give an error: nearly all."""
    given = [(mean, error) for mean, error in found if not math.isnan(error)]
    assert len(given) > 0.95 * len(found)
    return sum(abs(mean - truth) <= error for mean, error in given) / len(given)


def means_of(estimate):
    """Mean ± s.e. of an estimate of the points of each repetition."""
    problem, generator = Problem(), torch.Generator().manual_seed(11)
    return [mean_over_points(estimate(problem, problem.draw(POINTS, generator))) for _ in range(REPETITIONS)]


def assert_covers(found, truth):
    share = coverage(found, truth)
    print(f"coverage {share:.1%}")
    assert BETWEEN[0] <= share <= BETWEEN[1]


@pytest.mark.slow
@pytest.mark.parametrize("analytic", [True, False])
def test_elbo(analytic):
    found = means_of(lambda p, x: ab.elbo(p.model, p.guide, x, num_draws=5, analytic_kl=analytic))
    assert_covers(found, Problem().elbo)


@pytest.mark.slow
def test_iwae():
    found = means_of(lambda p, x: ab.iwae(p.model, p.guide, x, num_particles=8).value)
    assert_covers(found, Problem().iwae(8))


@pytest.mark.slow
def test_family_gap():
    """Of a guide that is kept as it is, behind the best factorized one, as ``compare`` has it."""
    problem, generator, found = Problem(), torch.Generator().manual_seed(12), []
    for _ in range(REPETITIONS):
        x = problem.draw(POINTS, generator)
        ladders = {}
        for fit, guide in ((Fit("factorized"), problem.best), (Fit("amortized", 4), problem.guide)):
            top = ab.elbo(problem.model, guide, x, num_draws=5)
            ladders[fit] = (Rung(1, 1, 1.0, top), Rung(2, 2, 2.0, top))
        (gap,) = (f for f in compare_fits(ladders) if f.metric == "family_gap" and f.fit.guide == "amortized")
        found.append((gap.measure.value, gap.measure.error))
    assert_covers(found, problem.amortization)


@pytest.fixture(scope="module", name="parts")
def diagnosed():
    """A diagnosis of all points, cut into the repetitions: the points are as independent as if they came one by one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    problem = Problem()
    x = problem.draw(POINTS * REPETITIONS, torch.Generator().manual_seed(13))
    settings = ab.DiagnosisSettings(num_particles=400, ais=ab.AISSettings(num_temperatures=80))
    found = ab.diagnose(problem.model, problem.guide, x, settings=settings)
    torch.set_default_dtype(before)
    parts = []
    for points in torch.arange(len(x)).split(POINTS):
        values = {name: value[:, points] for name, value in found.values.items()}
        errors = {name: error[:, points] for name, error in found.errors.items()}
        parts.append(replace(found, values=values, errors=errors).summary())
    return parts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elbo", "elbo_star", "approximation_gap", "amortization_gap", "inference_gap"])
def test_diagnosis(parts, name):
    problem = Problem()
    truth = {
        "elbo": problem.elbo,
        "elbo_star": problem.log_p - problem.approximation,
        "approximation_gap": problem.approximation,
        "amortization_gap": problem.amortization,
        "inference_gap": problem.approximation + problem.amortization,
    }[name]
    assert_covers([(part.loc[name, "mean"], part.loc[name, "standard_error"]) for part in parts], truth)
