"""Diagnoses of y = z² + noise, whose posterior has a mode on either side of 0 that no Gaussian has both of."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized_bayes as ab

NOISE = 0.3
GRID = torch.linspace(-8, 8, 16001)
SETTINGS = ab.DiagnosisSettings(
    num_particles=200,
    ais=ab.AISSettings(num_temperatures=40, num_chains=8),
    certificate=ab.CertificateSettings(14, 0.2, 100),
    local=ab.LocalSettings(max_steps=150, max_rounds=2, num_score=200),
)


@pytest.fixture
def y():
    generator = torch.Generator().manual_seed(6)
    z = torch.randn(14, generator=generator)
    return z**2 + NOISE * torch.randn(14, generator=generator)


def log_evidence(y):
    joint = dist.Normal(0.0, 1.0).log_prob(GRID) + dist.Normal(GRID**2, NOISE).log_prob(y[:, None])
    return joint.logsumexp(1) + (GRID[1] - GRID[0]).log()


def model(y):
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z**2, NOISE), obs=y)


@pytest.mark.slow
def test_chains_of_real_points_start_as_those_of_the_simulated_ones(y):
    """From the best Gaussian by the guide's one mode they would miss the other, which no certificate would show."""

    def table(y):
        loc = pyro.param("two_modes_loc", lambda: y.clamp(min=0.01).sqrt())
        with pyro.plate("rows", len(y)):
            pyro.sample("z", dist.Normal(loc, 0.15))

    found = ab.diagnose(model, table, y, settings=SETTINGS, progress=False)
    error = found.estimate("log_p_lower").value - log_evidence(y).double()
    assert error.mean().abs() < 0.15  # 0.3 where they start at q*
    assert found.certificate.mean_gap < 0.2


def test_a_search_that_is_stuck_between_the_modes_has_not_converged(y):
    """Draws in pairs have no gradient there. Residuals far below 0 with errors as large say nothing."""

    def between(y):
        with pyro.plate("rows", len(y)):
            pyro.sample("z", dist.Normal(torch.zeros(len(y)), 1.0))

    found = ab.diagnose(model, between, y, settings=SETTINGS, progress=False)
    assert found.gaps().approximation.mean > 5  # the mode of one side has 0.5 with the same family
    assert "q* has not converged" in str(found.verdict)
    noisy = {"residual": torch.full((1, 14), -4.0)}, {"residual": torch.full((1, 14), 20.0)}
    values, errors = ({**known, **other} for known, other in zip((found.values, found.errors), noisy, strict=True))
    found = replace(found, values=values, errors=errors)
    assert not found.converged
    assert "would gain up to 6.69 nats" in str(found.verdict)
