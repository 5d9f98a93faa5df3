"""``diagnose`` with guides that are no factorized Gaussians: gaps as exact divergences, and words that fit."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoMultivariateNormal
from torch import Generator, Tensor
from torch.distributions import kl_divergence

from amortized_bayes import AISSettings, CertificateSettings, DiagnosisSettings, diagnose
from amortized_bayes.diagnosis import stages
from amortized_bayes.diagnosis.report import Diagnosis
from amortized_bayes.diagnosis.verdict import CONTAINS, OWN, UNKNOWN, Certificate, Reliability, Verdict, give_verdict
from amortized_bayes.evaluation.gaps import Estimate, gaps
from amortized_bayes.models import LinearGaussian

pytestmark = pytest.mark.usefixtures("float64")

QUICK = DiagnosisSettings(
    num_particles=200, ais=AISSettings(num_temperatures=30), certificate=CertificateSettings(20, 0.1, 200)
)
GENERATOR = Generator().manual_seed(4)
WEIGHT, Z, E = (torch.randn(*shape, generator=GENERATOR) for shape in ((8, 4), (20, 4), (20, 8)))
LINEAR = LinearGaussian(WEIGHT.double() / 1.5, torch.zeros(8, dtype=torch.float64), 0.8)
X = Z.double() @ LINEAR.weight.T + 0.8 * E.double()


def correlated(off: float = 0.0, stretch: float = 1.0) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        posterior = LINEAR.posterior(x)
        tril = stretch * posterior.scale_tril
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(posterior.mean + off * tril.sum(-1), scale_tril=tril))

    return guide


def same(found: Diagnosis, name: str, exact: Tensor, lost: float = 0.01) -> None:
    """Whether a gap is what it must be, within four errors over points and draws."""
    gap = getattr(found.gaps(), name)
    error = gap.standard_error.square().mean().sqrt() / math.sqrt(len(gap.value))
    assert abs(gap.mean - exact.mean()) < 4 * error + lost


@pytest.mark.slow
def test_a_guide_that_is_the_exact_posterior_has_no_gap() -> None:
    found = diagnose(LINEAR, correlated(), X, settings=QUICK)
    torch.testing.assert_close(found.estimate("elbo_star").value, LINEAR.log_evidence(X), rtol=0, atol=0.01)
    same(found, "amortization", torch.zeros(20))
    same(found, "approximation", torch.zeros(20))
    assert found.verdict.cause == "nothing"
    assert found.settings["family"] == found.summary().attrs["family"] == "full-covariance gaussian"
    assert "family of q*: full-covariance gaussian, as of the guide" in found.evidence()


@pytest.mark.slow
def test_a_poor_guide_of_full_covariance_is_to_blame_and_not_its_family() -> None:
    found = diagnose(LINEAR, correlated(0.6, 1.3), X, settings=QUICK)
    bend = 0.5 * (1.3**2 - 1) - math.log(1.3)
    same(found, "amortization", torch.tensor(4 * (0.5 * (0.6 * 1.3) ** 2 + bend)))
    same(found, "approximation", torch.zeros(20), lost=0.03)
    assert found.verdict.cause == "amortization"


def gamma_poisson(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 1.0))
        pyro.sample("x", dist.Poisson(3 * rate), obs=x)


def test_a_gamma_guide_is_measured_by_the_best_gammas() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(0.5 * (2 + x), 0.6 * 4.0))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = dist.Poisson(3 * dist.Gamma(2.0, 1.0).sample((30,))).sample()
    found = diagnose(gamma_poisson, guide, x, settings=QUICK)
    posterior, q = dist.Gamma(2 + x, torch.tensor(4.0)), dist.Gamma(0.5 * (2 + x), torch.tensor(2.4))
    same(found, "amortization", kl_divergence(q, posterior))
    same(found, "approximation", torch.zeros(30), lost=0.03)
    assert found.settings["family"] == "gamma"
    assert found.verdict.cause == "amortization"


@pytest.mark.slow
def test_a_guide_of_low_rank_gets_bounds() -> None:
    def guide(x: Tensor) -> None:
        mean = LINEAR.posterior(x).mean
        with pyro.plate("data", len(x)):
            diagonal = LINEAR.posterior_precision().diagonal().reciprocal().expand(len(x), 4)
            pyro.sample("z", dist.LowRankMultivariateNormal(mean, torch.zeros(len(x), 4, 1), diagonal))

    found = diagnose(LINEAR, guide, X, settings=QUICK)
    same(found, "amortization", LINEAR.log_evidence(X) - LINEAR.best_factorized_elbo(X))
    assert found.verdict.abstains
    assert "contains the guide's, so that amortization is at most" in found.verdict.words
    assert "which contains that of the guide" in found.evidence()


def two_sites(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Gamma(torch.ones(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(a + b.sum(-1), 1.0), obs=x)


def together(x: Tensor) -> None:
    """One draw for both sites, b before a."""
    with pyro.plate("data", len(x)):
        q = dist.MultivariateNormal(torch.zeros(len(x), 4), torch.eye(4))
        free = pyro.sample("free", q, infer={"is_auxiliary": True})
        pyro.sample("b", dist.Delta(free[:, :3].exp(), -free[:, :3].sum(-1), event_dim=1))
        pyro.sample("a", dist.Delta(free[:, 3]))


@pytest.mark.parametrize(
    ("model", "kind", "relation"),
    [
        (LINEAR, AutoMultivariateNormal, OWN),
        (LINEAR, partial(AutoLowRankMultivariateNormal, rank=1), CONTAINS),
        (two_sites, AutoMultivariateNormal, OWN),
        (two_sites, partial(AutoLowRankMultivariateNormal, rank=1), CONTAINS),
        (two_sites, lambda _: together, OWN),
        (two_sites, AutoDiagonalNormal, OWN),
    ],
)
def test_joint_autoguides(model: Any, kind: Any, relation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = X[:6] if model is LINEAR else X[:6, 0]
    guide = kind(model)
    guide(x)
    found: list[tuple[str, str]] = []

    def stop(job: Any, ground: Any, *_: Any) -> None:
        found.append((ground.described["relation"], ground.described["family"]))
        raise RuntimeError("enough")

    monkeypatch.setattr(stages, "_certify", lambda *_, **__: (None, ""))
    monkeypatch.setattr(stages, "_estimate", stop)
    with pytest.raises(RuntimeError, match="enough"):
        diagnose(model, guide, x)
    assert found == [(relation, "gaussian" if kind is AutoDiagonalNormal else "full-covariance gaussian")]


@pytest.mark.slow
def test_a_mixture_gets_no_cause() -> None:
    def guide(x: Tensor) -> None:
        loc = LINEAR.posterior(x).mean[:, None] + torch.tensor([-0.1, 0.1])[:, None]
        scale = 0.4 * torch.ones(len(x), 2, 4)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MixtureOfDiagNormals(loc, scale, torch.zeros(len(x), 2)))

    found = diagnose(LINEAR, guide, X, settings=QUICK)
    assert found.verdict.abstains
    assert "the family of this guide is unknown" in found.verdict.words
    assert "this holds" not in found.verdict.words
    assert "family of q*: gaussian, where that of the guide is unknown" in found.evidence()


def two_layers(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        low = pyro.sample("low", dist.Normal(torch.tanh(top), 0.7).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=low @ WEIGHT.T[:2].double()).to_event(1), obs=x)


def bottom_up(pull: float) -> Callable[[Tensor], None]:
    """As encoders of ladders of latents go: ``low`` given x, and ``top`` given the draw of ``low``."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            low = pyro.sample("low", dist.Normal(0.3 * (x[:, :2] - 0.5), 0.8).to_event(1))
            pyro.sample("top", dist.Normal(pull * low, 0.8).to_event(1))

    return guide


@pytest.mark.slow
def test_a_latent_that_follows_the_draw_of_another_gets_no_cause() -> None:
    x = (X > 0).double()
    found = diagnose(two_layers, bottom_up(0.6), x, settings=QUICK)
    assert found.verdict.abstains
    assert "the family of this guide is unknown" in found.verdict.words
    assert "this holds" not in found.verdict.words
    assert "family of q*: gaussian, where that of the guide is unknown" in found.evidence()
    named = diagnose(two_layers, bottom_up(0.0), x, settings=QUICK)
    assert "as of the guide" in named.evidence()
    # q* is the same Gaussian for both guides, and a bound on log p(x) of its own
    star, lower = named.estimate("elbo_star"), named.estimate("log_p_lower")
    assert ((star.value - found.estimate("elbo_star").value).abs() < 0.15).all()
    assert (star.value - lower.value).mean() < 0.05


NOWHERE = torch.zeros(1, 2)
SURE = Reliability(Certificate(NOWHERE, NOWHERE, NOWHERE, NOWHERE, 0.01, 0.005, False, ""), "", 0.1, 1000, 0.0, 0.0)
UNSURE = SURE._replace(certificate=None, why_uncertified="no data can be drawn")


def verdict(approximation: float, amortization: float, relation: str = OWN, reliability: Reliability = SURE) -> Verdict:
    """On a hundred points whose gaps have errors of a tenth of a percent of a nat."""
    star = torch.zeros(100) + 0.001 * torch.linspace(-1, 1, 100)
    found = gaps(Estimate(star.flip(0) - amortization), Estimate(star), ais=Estimate(approximation - star * 0.5))
    return give_verdict(found, reliability, 0.0, relation)


def test_a_negative_gap_abstains() -> None:
    assert verdict(0.5, 0.2).cause == "approximation"
    assert "the guide is better than q*" in verdict(0.5, -0.2).words
    assert "lies above the estimate of log p(x)" in verdict(-0.2, 0.5).words
    for gap in (verdict(0.5, -0.2), verdict(-0.2, 0.5), verdict(-0.2, 0.5, reliability=UNSURE)):
        assert gap.abstains
        assert "this holds" not in gap.words
    assert verdict(0.5, -0.002).cause == "approximation"  # less than a search leaves open
    assert verdict(0.5, -0.2, UNKNOWN).abstains
    assert "this holds: amortization 0.20" in verdict(0.5, 0.2, reliability=UNSURE).words


def test_a_family_that_contains_the_guides_blames_it_only_where_that_is_sure() -> None:
    assert verdict(0.5, 0.2, CONTAINS).words.startswith("approximation at least 0.50")
    assert verdict(0.2, 0.5, CONTAINS).abstains
    assert verdict(0.02, 0.03, CONTAINS).cause == "nothing"
    assert "this holds: amortization at most 0.20" in verdict(0.5, 0.2, CONTAINS, UNSURE).words
