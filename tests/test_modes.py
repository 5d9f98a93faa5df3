"""A mode that guide and chains miss on real points only: simulated points certify, and the verdict must abstain."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized_bayes as ab
from amortized_bayes.diagnosis import verdict

NOISE = 0.5


def decode(z):
    """The identity, but for a bump at z = -3, where 8 latents in 1,000 are: there x = 5 is reached by another way."""
    return z + 8 * torch.exp(-0.5 * ((z + 3) / 0.3) ** 2)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(decode(z), NOISE), obs=x)


def guide(x):
    """Right but for the bump, and too narrow at every point, real or simulated, by the same factor."""
    precision = 1 + NOISE**-2
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x * NOISE**-2 / precision, 0.25 * precision**-0.5))


def log_evidence(x):
    z = torch.linspace(-8, 12, 20_001, dtype=torch.float64)
    log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(decode(z), NOISE).log_prob(x.double()[:, None])
    return log_p.logsumexp(-1) + math.log(20 / 20_000)


@pytest.mark.slow
def test_no_certificate_of_simulated_points_overrules_khat_at_most_real_ones(monkeypatch):
    x = torch.linspace(4.5, 5.5, 20)
    settings = ab.DiagnosisSettings(
        num_particles=400,
        ais=ab.AISSettings(num_temperatures=80, target_acceptance=0.75),
        certificate=ab.CertificateSettings(20, 0.1, 200),
    )
    report = ab.diagnose(model, guide, x, settings=settings)
    missed = log_evidence(x) - report.values["log_p_lower"][0]
    assert missed.mean() > 2  # nats, with a certificate of less than 0.1
    assert report.certificate.mean_gap + 1.645 * report.certificate.gap_error < 0.1
    assert not report.certificate.easier
    assert report.doubtful > 0.6
    assert report.verdict.abstains
    assert "simulated ones do not show what is missed at real ones" in report.verdict.words
    assert report.summary().loc["iwae", ["standard_error", "low", "high"]].isna().all()
    assert report.errors["iwae"].isnan().double().mean() > 0.6
    assert "errors of IWAE do not hold" in report.evidence()
    monkeypatch.setattr(verdict, "MOST", 1.0)
    assert report.verdict.cause == "amortization"  # what the certificate alone would let be said


@pytest.mark.parametrize("num_particles", [400, 2000])
def test_iwae_has_no_error_where_khat_is_above_its_threshold(num_particles):
    x = torch.linspace(0.3, 1.5, 8)

    def wide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.6))

    assert ab.iwae(model, guide, x, num_particles=num_particles).standard_error.isnan().double().mean() > 0.5
    found = ab.iwae(model, wide, x, num_particles=num_particles)
    assert (found.standard_error > 0).all()
    assert ((found.value - log_evidence(x)).abs() < 5 * found.standard_error + 1e-3).all()
