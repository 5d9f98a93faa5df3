"""``diagnose`` on models whose gaps are known, and verdicts that abstain when they must."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from shared_shift import SharedShift
from torch import Generator, Tensor, nn
from torch.distributions import MultivariateNormal

from amortized_bayes.diagnosis import Diagnosis, DiagnosisSettings, diagnose, stages
from amortized_bayes.diagnosis.report import COLUMNS, Certificate
from amortized_bayes.evaluation.psis import khat_threshold
from amortized_bayes.evaluation.settings import AISSettings, CertificateSettings
from amortized_bayes.flows import FlowSettings
from amortized_bayes.inference.settings import LocalSettings
from amortized_bayes.joint import draw_shared
from amortized_bayes.models import LinearGaussian

pytestmark = pytest.mark.usefixtures("float64")

CERTIFICATE = CertificateSettings(20, target_gap=0.1, max_temperatures=1000)
QUICK = DiagnosisSettings(num_particles=400, ais=AISSettings(num_temperatures=30), certificate=CERTIFICATE)


class Problem:
    """A linear-Gaussian model of D = 4 whose guide misses the best factorized mean and scale by known amounts."""

    def __init__(self, off: float, stretch: float = 1.0, num_points: int = 24) -> None:
        generator = Generator().manual_seed(4)
        weight = torch.randn(8, 4, generator=generator) / 1.5
        self.model = LinearGaussian(weight, torch.zeros(8), 0.8)
        z, e = torch.randn(num_points, 4, generator=generator), torch.randn(num_points, 8, generator=generator)
        self.x = z @ weight.T + 0.8 * e
        precision = self.model.posterior_precision()
        self.scale = precision.diagonal().rsqrt()
        self.shift, self.stretch = off * self.scale, stretch
        self.approximation = (self.model.log_evidence(self.x) - self.model.best_factorized_elbo(self.x)).mean().item()
        bend = 0.5 * (stretch**2 - 1) - math.log(stretch)
        self.amortization = (0.5 * self.shift @ precision @ self.shift + 4 * bend).item()

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            mean = self.model.posterior(x).mean + self.shift
            pyro.sample("z", dist.Normal(mean, self.stretch * self.scale).to_event(1))


@cache
def diagnosed() -> tuple[Problem, Diagnosis]:
    problem = Problem(off=0.8, stretch=1.3)
    return problem, diagnose(problem.model, problem.guide, problem.x, settings=QUICK)


@pytest.fixture
def spoiled(float64: None) -> tuple[Problem, Diagnosis]:
    """Found once, for tests that change nothing in it."""
    return diagnosed()


def test_both_gaps_in_closed_form(spoiled: tuple[Problem, Diagnosis]) -> None:
    problem, found = spoiled
    gaps = found.gaps()
    for gap, exact in ((gaps.approximation, problem.approximation), (gaps.amortization, problem.amortization)):
        assert gap.standard_error is not None
        error = gap.standard_error.square().sum().sqrt() / 24
        assert abs(gap.mean - exact) < 4 * error + 0.03
    assert gaps.inference.mean == pytest.approx(gaps.approximation.mean + gaps.amortization.mean)
    exact_p = problem.model.log_evidence(problem.x)
    bound = found.estimate("log_p_lower")
    assert bound.standard_error is not None
    assert ((bound.value - exact_p).abs() < 5 * bound.standard_error + 0.05).all()
    assert found.verdict.cause == "amortization"
    assert "fit the guide better" in found.verdict.words  # it has no encoder to widen
    assert "% of the total" in str(found.verdict)


def test_the_frame_has_every_column_and_a_row_a_point(spoiled: tuple[Problem, Diagnosis]) -> None:
    _, found = spoiled
    frame = found.to_frame()
    assert set(COLUMNS) | {f"{name}_error" for name in COLUMNS} <= set(frame.columns)
    real, simulated = frame[frame["kind"] == "real"], frame[frame["kind"] == "simulated"]
    assert (len(real), len(simulated)) == (24, 20)
    assert real["log_p_upper"].isna().all()
    known = [c for c in COLUMNS if c != "log_p_upper"]
    assert real[known].notna().all().all()
    assert (real[[f"{c}_error" for c in known if c not in ("ess", "acceptance", "iwae")]] >= 0).all().all()
    assert (real["iwae_error"].isna() == (real["k_hat"] > khat_threshold(400))).all()
    assert simulated[["log_p_lower", "log_p_upper"]].notna().all().all()
    assert (simulated["log_p_upper"] - simulated["log_p_lower"]).mean() < 0.1
    summary = found.summary()
    assert summary.loc["amortization_gap", "mean"] == pytest.approx(real["amortization_gap"].mean())
    assert summary["standard_error"].drop("iwae").notna().all()
    assert summary["low"]["inference_gap"] < summary["mean"]["inference_gap"]
    assert "\n" not in repr(found)
    assert repr(found).startswith("Diagnosis(24 points; amortization")
    assert "nats apart" in found.evidence()
    assert found.plot().axes


def test_saved_and_loaded(spoiled: tuple[Problem, Diagnosis], tmp_path: Path) -> None:
    _, found = spoiled
    path = tmp_path / "found.safetensors"
    found.save(path)
    again = Diagnosis.load(path)
    assert again.to_frame().equals(found.to_frame())
    assert again.verdict == found.verdict
    assert again.settings == found.settings
    data = path.read_bytes()
    for broken in (data[:-9], data[:-1] + bytes([data[-1] ^ 1]), b"no safetensors"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"truncated|changed"):
            Diagnosis.load(path)
    with pytest.raises(ValueError, match="cannot read"):
        Diagnosis.load(tmp_path / "nothing")


@pytest.mark.slow
def test_a_good_encoder_leaves_the_family_to_blame() -> None:
    problem = Problem(off=0.0)
    found = diagnose(problem.model, problem.guide, problem.x, settings=QUICK)
    assert abs(found.gaps().amortization.mean) < 0.06
    assert found.verdict.cause == "approximation"
    assert "richer family" in found.verdict.words


@pytest.mark.slow
def test_an_exact_guide_leaves_nothing_to_mend() -> None:
    problem = Problem(off=0.0)

    def model(x: Tensor) -> None:
        with pyro.plate("observations", len(x)):
            u = pyro.sample("u", dist.LogNormal(0.3, 0.8))
            pyro.sample("x", dist.LogNormal(u.log(), 0.5), obs=x)

    def guide(x: Tensor) -> None:
        precision = 1 / 0.64 + 1 / 0.25
        with pyro.plate("observations", len(x)):
            pyro.sample("u", dist.LogNormal((0.3 / 0.64 + x.log() / 0.25) / precision, precision**-0.5))

    x = problem.x[:, 0].exp()
    found = diagnose(model, guide, x, plate="observations", settings=QUICK)
    assert found.verdict.cause == "nothing"
    exact = dist.LogNormal(0.3, math.hypot(0.8, 0.5)).log_prob(x)
    torch.testing.assert_close(found.estimate("elbo").value, exact)  # every weight is the evidence
    assert found.doubtful == 0


@pytest.mark.slow
def test_restarts_and_progress() -> None:
    problem, calls = Problem(off=0.3, num_points=6), []
    found = diagnose(
        problem.model,
        problem.guide,
        problem.x,
        settings=replace(QUICK, local=LocalSettings(num_restarts=2)),
        progress=lambda *c: calls.append(c),
    )
    optimization = found.gaps().optimization
    assert optimization is not None
    assert abs(optimization.mean) < 0.1
    assert "optimization_gap" in found.summary().index
    assert {stage for stage, _, _ in calls} == {"bdmc", "q*", "ais"}
    assert ("q*", 12, 12) in calls


def test_the_verdict_abstains_where_the_certificate_fails(spoiled: tuple[Problem, Diagnosis]) -> None:
    _, found = spoiled
    assert found.certificate is not None
    for change, words in (
        ({"mean_gap": 0.4}, "0.40±"),
        ({"mean_gap": math.nan}, "certificate fails"),
        ({"mean_gap": -1.0}, "upper bound lies below"),
        ({"easier": True}, "does not carry over"),
    ):
        verdict = replace(found, certificate=found.certificate._replace(**change)).verdict
        assert verdict.abstains
        assert words in verdict.words
        assert "this holds: amortization" in verdict.words
    alone = replace(found, certificate=None, why_uncertified="no data can be drawn").verdict
    assert alone.abstains
    assert "no data can be drawn" in alone.words


@pytest.mark.slow
def test_chains_too_short_for_the_target_are_not_certified() -> None:
    problem = Problem(off=3.0)
    short = AISSettings(num_temperatures=2, num_chains=2, start="prior", mass="unit")
    settings = replace(QUICK, ais=short, certificate=CertificateSettings(20, 0.1, max_temperatures=2))
    found = diagnose(problem.model, problem.guide, problem.x, settings=settings)
    assert isinstance(found.certificate, Certificate)
    assert found.certificate.mean_gap > 0.1
    assert found.verdict.abstains


def test_the_verdict_abstains_where_khat_fails(spoiled: tuple[Problem, Diagnosis]) -> None:
    _, found = spoiled
    values = dict(found.values)
    values["iwae"] = values["log_p_lower"] + 0.2  # the higher mean: IWAE stands for log p(x)
    values["k_hat"] = torch.full_like(values["k_hat"], 0.9)
    verdict = replace(found, values=values).verdict
    assert verdict.abstains
    assert "k̂ is above 0.62 at 100%" in verdict.words
    values["k_hat"] = torch.full_like(values["k_hat"], 0.3)
    assert not replace(found, values=values).verdict.abstains


def test_the_verdict_abstains_where_q_star_has_not_converged(spoiled: tuple[Problem, Diagnosis]) -> None:
    _, found = spoiled
    values = {**found.values, "residual": torch.full_like(found.values["residual"], 5.0)}
    verdict = replace(found, values=values).verdict
    assert verdict.abstains
    assert "has not converged" in verdict.words
    assert "this holds" not in verdict.words


def test_what_q_star_still_gains_has_to_be_small_beside_each_gap(spoiled: tuple[Problem, Diagnosis]) -> None:
    """It is taken from the approximation gap: the quarter of the whole that it may be is more than there is of that."""
    _, found = spoiled
    left = 0.2 * found.gaps().inference.mean
    assert left > 0.25 * abs(found.gaps().approximation.mean)
    values = {**found.values, "residual": torch.full_like(found.values["residual"], left)}
    errors = {**found.errors, "residual": torch.zeros_like(found.errors["residual"])}
    verdict = replace(found, values=values, errors=errors).verdict
    assert verdict.abstains
    assert f"would gain up to {left:.2f} nats and move approximation" in verdict.words


def test_a_model_that_gives_no_data_is_diagnosed_without_a_certificate() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("energy", -0.5 * (z - x).square())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 1.0))

    found = diagnose(model, guide, torch.linspace(-1, 1, 6), settings=QUICK)
    assert found.certificate is None
    assert "factor 'energy'" in found.why_uncertified
    assert set(found.to_frame()["kind"]) == {"real"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.slow_cases("dtype0")
def test_an_exact_guide_leaves_no_gap_in_either_precision(dtype: torch.dtype) -> None:
    weight = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    weight[:, 1] -= weight[:, 0] * (weight[:, 0] @ weight[:, 1]) / weight[:, 0].square().sum()  # q factorizes
    model = LinearGaussian(weight.to(dtype), torch.full((6,), 30.0, dtype=dtype), 0.7)
    x = 30 + torch.randn(20, 6, dtype=dtype)

    def guide(x: Tensor) -> None:
        posterior = model.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(posterior.mean, posterior.variance.sqrt()).to_event(1))

    found = diagnose(model, guide, x, settings=QUICK)
    assert found.doubtful == 0
    assert (found.values["elbo"] - model.log_evidence(x)).abs().max() < (1e-3 if dtype == torch.float32 else 1e-9)
    assert found.verdict.cause == "nothing"


def two_sites(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a[:, None].expand(-1, 2), 0.5).to_event(1))
        pyro.sample("x", dist.Normal(b, 1.0).to_event(1), obs=x)


@pytest.mark.slow
def test_two_sites() -> None:
    precision = torch.tensor([[9.0, -4.0, -4.0], [-4.0, 5.0, 0.0], [-4.0, 0.0, 5.0]])
    gain = torch.linalg.solve(precision, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))

    def guide(x: Tensor) -> None:
        mean = x @ gain.T
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(mean[:, 0] + 0.3, 1 / 3))
            pyro.sample("b", dist.Normal(mean[:, 1:], 5**-0.5).to_event(1))

    found = diagnose(two_sites, guide, 1.5 * torch.randn(20, 2), settings=QUICK).gaps()
    exact = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()
    assert abs(found.approximation.mean - exact) < 4 * found.approximation.mean_error + 0.03
    assert abs(found.amortization.mean - 0.5 * 9 * 0.09) < 4 * found.amortization.mean_error + 0.03


@pytest.mark.slow
def test_shared_latents_are_averaged_over_and_their_spread_given() -> None:
    def model(x: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None] * weight, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("weight", dist.Normal(torch.ones(3), 0.1).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.28))

    x = torch.randn(10, 1) + 0.5 * torch.randn(10, 3)
    found = diagnose(model, guide, x, settings=replace(QUICK, num_shared=2))
    assert found.num_shared == 2
    assert found.values["elbo"].shape == (2, 10)
    frame = found.to_frame()
    assert (frame["log_p_lower_spread"].iloc[:10] > 0).all()
    assert (found.summary()["spread"] > 0).all()
    assert abs(found.gaps().approximation.mean) < 0.05  # one dimension: the posterior is Gaussian
    assert found.certificate is not None
    assert found.certificate.lower.shape == (2, 10)


@pytest.mark.slow
def test_every_estimate_is_given_the_same_draw_of_the_shared_latents(
    linear_problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guide is the exact posterior given theta, so that each of its weights is log p(x | theta), which is known."""
    model, x = SharedShift(linear_problem.model), linear_problem.x
    calls: list[list[dict[str, Tensor]]] = []

    def remembered(*args: Any, **kwargs: Any) -> list[dict[str, Tensor]]:
        calls.append(draw_shared(*args, **kwargs))
        return calls[-1]

    monkeypatch.setattr(stages, "draw_shared", remembered)
    settings = replace(QUICK, num_shared=2, certificate=CertificateSettings(4, 0.5, max_temperatures=30))
    settings = replace(settings, flow=FlowSettings("gaussian"))  # q* factorized, whatever the guide is
    found = diagnose(model, model.guide(torch.zeros(5), 0.5), x, settings=settings)
    covariance = model.marginal_covariance()
    exact = torch.stack([MultivariateNormal(d["theta"], covariance).log_prob(x) for d in calls[0]])
    assert exact.shape == (2, len(x))
    assert exact.std(0).min() > 0.5  # another draw would show
    for name in ("elbo", "iwae"):
        torch.testing.assert_close(found.values[name], exact)
    assert ((found.values["log_p_lower"] - exact).abs() < 5 * found.errors["log_p_lower"] + 0.05).all()
    posterior = linear_problem.model.posterior_precision()
    loss = 0.5 * (posterior.diagonal().log().sum() - posterior.logdet())  # of the best factors, whatever theta
    assert ((found.values["elbo_star"] - exact + loss).abs() < 5 * found.errors["elbo_star"] + 0.05).all()


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), 0.3).to_event(1))


def discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("count", dist.Poisson(1.0))
        pyro.sample("x", dist.Normal(torch.zeros(8), 1.0).to_event(1), obs=x)


def discrete_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("count", dist.Poisson(1.0))


def broken_encoder(x: Tensor) -> nn.Module:
    encoder = Encoder()
    nn.init.constant_(encoder.net.weight, math.nan)
    return encoder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: {"plate": "rows"}, "in a plate 'rows' over data points, found plates: 'data'"),
        (lambda p: {"model": discrete, "guide": discrete_guide}, "continuous latents, got 'count' of Poisson"),
        (lambda p: {"guide": lambda x: None}, "misses the model's latent site 'z'"),
        (lambda p: {"x": p.x.masked_fill(p.x > 1, math.nan)}, "expected finite data, got"),
        (lambda p: {"x": p.x[:, :5]}, r"cannot take x of shape \(24, 5\)"),
        (lambda p: {"guide": Encoder(), "x": p.x[:, :5]}, r"cannot take x of shape \(24, 5\)"),
        (lambda p: {"guide": broken_encoder(p.x)}, "nan or inf in 'net.weight'"),
        (lambda p: {"x": p.x[:1]}, r"two points or more, got \(1, 8\)"),
        (lambda p: {"settings": replace(QUICK, num_particles=5)}, "num_particles of 25 or more"),
        (lambda p: {"settings": replace(QUICK, certificate=CertificateSettings())}, "with a target_gap, got none"),
    ],
)
def test_bad_input(change: Callable[[Problem], dict[str, Any]], words: str) -> None:
    problem = Problem(off=0.0)

    def changed() -> Diagnosis:
        options = {"model": problem.model, "guide": problem.guide, "x": problem.x, "settings": QUICK, **change(problem)}
        return diagnose(options.pop("model"), options.pop("guide"), options.pop("x"), **options)

    with pytest.raises(ValueError, match=words):
        changed()
