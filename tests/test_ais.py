"""AIS against exact evidence: linear-Gaussian in 20 dimensions, a constrained site by quadrature, odd guides."""

import logging
import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import Planar
from torch import Generator, Tensor

from amortized_bayes.evaluation import annealing
from amortized_bayes.evaluation.ais import AISSettings, ais, mean_and_error
from amortized_bayes.evaluation.bdmc import bdmc
from amortized_bayes.evaluation.hmc import anneal
from amortized_bayes.joint import draw_shared, gaussian_start, joint_density

pytestmark = pytest.mark.usefixtures("float64")


class LinearGaussian:
    """z ~ N(0, I) of 20 dimensions, x ~ N(W z, 0.7²); the guide has the best factorized scales."""

    def __init__(self, num_points: int = 40) -> None:
        generator = Generator().manual_seed(3)
        self.w = 1.5 * torch.randn(30, 20, generator=generator) / 20**0.5
        precision = torch.eye(20) + self.w.T @ self.w / 0.49
        self.gain = torch.linalg.solve(precision, self.w.T / 0.49)
        self.scale = precision.diagonal().rsqrt()
        z, e = torch.randn(num_points, 20, generator=generator), torch.randn(num_points, 30, generator=generator)
        self.x = z @ self.w.T + 0.7 * e
        covariance = self.w @ self.w.T + 0.49 * torch.eye(30)
        self.log_p = torch.distributions.MultivariateNormal(torch.zeros(30), covariance).log_prob(self.x)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.w.T, 0.7).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.gain.T, self.scale).to_event(1))


PRIOR = AISSettings(start="prior", mass="unit")


@pytest.mark.parametrize("settings", [AISSettings(), AISSettings(start="prior"), PRIOR], ids=["q", "prior, q", "prior"])
def test_weights_are_unbiased(settings: AISSettings) -> None:
    exact = LinearGaussian()
    result = ais(exact.model, exact.guide, exact.x, settings=settings)
    mean_weight = (result.log_weights - exact.log_p).exp().mean(0)
    error = mean_weight.std() / len(mean_weight) ** 0.5
    assert abs(mean_weight.mean() - 1) < 3 * error
    assert ((result.acceptance > 0.5) & (result.acceptance < 0.98)).all()
    assert result.divergences.sum() == 0
    assert result.log_weights.shape == (16, 40)
    assert ((result.ess >= 1) & (result.ess <= 16)).all()


def test_the_bias_is_negative_and_shrinks_with_temperatures() -> None:
    exact = LinearGaussian(60)
    errors = []
    for temperatures in (4, 20, 100):
        settings = AISSettings(num_temperatures=temperatures, start="prior", mass="unit", num_chains=8)
        errors.append(ais(exact.model, None, exact.x, settings=settings).log_p - exact.log_p)
    means = [e.mean().item() for e in errors]
    standard = [e.std().item() / 60**0.5 for e in errors]
    assert means[0] < -5 * standard[0]
    assert means[1] < -5 * standard[1]
    assert means[2] < 3 * standard[2]
    assert means[0] < means[1] < means[2]


def test_more_temperatures_than_the_exact_answer_needs_agree_with_it() -> None:
    exact = LinearGaussian(30)
    result = ais(exact.model, exact.guide, exact.x, settings=AISSettings(num_temperatures=300))
    difference = result.log_p - exact.log_p
    assert abs(difference.mean()) < 3 * difference.std() / 30**0.5 + 0.01
    assert 0.4 < (difference / result.standard_error).std() < 2.5


def test_the_seed_decides_and_chunks_are_all_there() -> None:
    exact, settings = LinearGaussian(11), AISSettings(num_temperatures=10, num_chains=4)
    state = torch.get_rng_state()
    once = ais(exact.model, exact.guide, exact.x, settings=replace(settings, memory_budget=4e4), seed=5)
    torch.testing.assert_close(torch.get_rng_state(), state)
    again = ais(exact.model, exact.guide, exact.x, settings=replace(settings, memory_budget=4e4), seed=5)
    torch.testing.assert_close(once.log_weights, again.log_weights, rtol=0, atol=0)
    assert once.log_p.shape == (11,)
    other = ais(exact.model, exact.guide, exact.x, settings=settings, seed=6)
    assert not torch.equal(other.log_p, once.log_p)
    assert (once.log_p - other.log_p).abs().max() < 5


@pytest.mark.usefixtures("captured")
def test_no_graph_grows_with_the_temperatures() -> None:
    """Every evaluation, captured or not, gets and gives tensors without a history."""
    exact = LinearGaussian(4)
    weight = torch.nn.Parameter(exact.w)
    exact.w = weight
    joint = joint_density(exact.model, exact.x)
    settings = AISSettings(num_temperatures=5, num_chains=4)
    tick = annealing.Ticker(None, settings, 1)
    (chunk,) = annealing.chunks(joint, exact.guide, settings, 0, tick)
    program = annealing._program(joint, settings)
    plain = program(torch.randn(4, 4, 20), torch.zeros(4, 20), torch.ones(4, 20), *joint.inputs(4))
    state = chunk.draw_start(4)
    assert not any(t.requires_grad for t in (*plain, *state.ends, state.z))
    walk = anneal(chunk.density, state, chunk.ladder, chunk.generator)
    assert not walk.log_weights.requires_grad
    assert weight.grad is None


def test_progress_ends_at_its_total() -> None:
    exact, calls = LinearGaussian(7), []
    settings = AISSettings(num_temperatures=6, num_chains=4, num_pilot=3)
    ais(
        exact.model,
        exact.guide,
        exact.x,
        settings=replace(settings, memory_budget=4e4),
        progress=lambda *c: calls.append(c),
    )
    assert calls[-1][0] == calls[-1][1] == len(calls)


def test_a_constrained_site_against_quadrature() -> None:
    x = torch.tensor([0.0, 1.0, 3.0, 9.0])

    def model(x: Tensor) -> None:
        with pyro.plate("observations", len(x)):
            u = pyro.sample("u", dist.LogNormal(0.3, 0.8))
            pyro.sample("x", dist.Poisson(u), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("observations", len(x)):
            pyro.sample("u", dist.Gamma(x + 1.5, torch.tensor(1.8)))

    log_u = torch.linspace(-7, 7, 20_001)
    log_f = dist.Normal(0.3, 0.8).log_prob(log_u) + dist.Poisson(log_u.exp()).log_prob(x[:, None])
    log_p = log_f.logsumexp(-1) + math.log(14 / 20_000)
    for settings in (AISSettings(num_chains=64), AISSettings(num_chains=64, start="prior", mass="unit")):
        result = ais(model, guide, x, plate="observations", settings=settings)
        assert ((result.log_p - log_p).abs() < 4 * result.standard_error + 1e-3).all()
        assert (result.standard_error < 0.1).all()


def two_sites(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a[:, None].expand(-1, 2), 0.5).to_event(1))
        pyro.sample("x", dist.Normal(b, 1.0).to_event(1), obs=x)


def test_two_sites_with_a_guide_that_depends_on_its_own_draws() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.5 * x.mean(-1), 0.6))
            pyro.sample("b", dist.Normal(0.5 * (x + a[:, None]), 0.45).to_event(1))

    x = torch.randn(6, 2) * 1.5
    covariance = torch.ones(2, 2) + 1.25 * torch.eye(2)
    exact = torch.distributions.MultivariateNormal(torch.zeros(2), covariance).log_prob(x)
    result = ais(two_sites, guide, x, settings=AISSettings(num_chains=64, num_temperatures=40))
    assert ((result.log_p - exact).abs() < 4 * result.standard_error).all()
    assert (result.standard_error < 0.1).all()


def test_a_flow_without_a_density_is_replaced_by_a_gaussian() -> None:
    exact = LinearGaussian(5)
    planar = Planar(20)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            base = dist.Normal(x @ exact.gain.T, exact.scale).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [planar]))

    joint = joint_density(exact.model, exact.x)
    fitted, read = gaussian_start(joint, guide, 200), gaussian_start(joint, exact.guide, 200)
    torch.testing.assert_close(read.loc, exact.x @ exact.gain.T)
    torch.testing.assert_close(read.scale, exact.scale.expand(5, 20))
    assert (fitted.scale / read.scale - 1).abs().max() < 0.6
    result = ais(exact.model, guide, exact.x, settings=AISSettings(num_chains=64))
    assert ((result.log_p - exact.log_p).abs() < 5 * result.standard_error).all()


def test_a_gaussian_of_full_covariance_is_read_off() -> None:
    exact = LinearGaussian(5)
    factor = 0.3 * torch.randn(20, 20).tril(-1) + torch.diag(exact.scale)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x @ exact.gain.T, scale_tril=factor))

    start = gaussian_start(joint_density(exact.model, exact.x), guide, 10)
    torch.testing.assert_close(start.loc, exact.x @ exact.gain.T)
    torch.testing.assert_close(start.scale, (factor @ factor.T).diagonal().sqrt().expand(5, 20))


def test_several_chunks_have_fewer_pilot_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, walked = LinearGaussian(12), []
    tune = annealing.tune
    monkeypatch.setattr(
        annealing, "tune", lambda density, state, *a: walked.append(state.z) or tune(density, state, *a)
    )
    for budget, chains, count in ((None, 16, 1), (2e5, 4, 3)):
        settings = AISSettings(num_temperatures=40, memory_budget=budget)
        result = ais(exact.model, exact.guide, exact.x, settings=settings)
        assert [len(z) for z in walked] == [chains] * count
        assert ((result.log_p - exact.log_p).abs() < 5 * result.standard_error + 0.05).all()
        assert result.log_weights.shape == (16, 12)
        walked.clear()


@pytest.mark.usefixtures("captured")
def test_a_model_that_cannot_be_captured_runs_plainly(caplog: pytest.LogCaptureFixture) -> None:
    exact = LinearGaussian(4)

    def stubborn(x: Tensor) -> None:
        float(x.sum().item())
        exact.model(x)

    settings = AISSettings(num_temperatures=10, num_chains=4)
    with caplog.at_level(logging.WARNING):
        plain = ais(stubborn, exact.guide, exact.x, settings=settings)
    assert caplog.text.count("the model is run uncaptured") == 1
    captured = ais(exact.model, exact.guide, exact.x, settings=settings)
    torch.testing.assert_close(plain.log_weights, captured.log_weights)


def test_jackknife_of_the_log_of_a_mean() -> None:
    weights = torch.randn(12, 3)
    value, error = mean_and_error(weights)
    left_out = torch.stack([torch.cat([weights[:c], weights[c + 1 :]]).logsumexp(0) - math.log(11) for c in range(12)])
    torch.testing.assert_close(value, weights.logsumexp(0) - math.log(12))
    torch.testing.assert_close(error, (11 / 12 * (left_out - left_out.mean(0)).square().sum(0)).sqrt())
    alone = torch.full((12, 1), -math.inf)
    alone[0] = 0.0
    assert mean_and_error(alone)[1].isinf().all()


def test_spacings_rise_from_0_to_1() -> None:
    exact = LinearGaussian(4)
    for schedule in ("linear", "sigmoid", "adaptive"):
        settings = AISSettings(num_temperatures=30, num_chains=8, schedule=schedule)
        tick = annealing.Ticker(None, settings, 1)
        (chunk,) = annealing.chunks(joint_density(exact.model, exact.x), exact.guide, settings, 0, tick)
        betas = chunk.ladder.betas
        assert betas.shape == (31,)
        assert chunk.ladder.step_sizes.shape == (30, 4)
        assert (betas[0], betas[-1]) == (0, 1)
        assert (betas.diff() > 0).all()


def test_bad_settings_and_guides() -> None:
    exact = LinearGaussian(3)
    with pytest.raises(ValueError, match="num_chains of 2 or more, got 1"):
        AISSettings(num_chains=1)
    with pytest.raises(ValueError, match="schedule among"):
        AISSettings(schedule="geometric")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="expected a guide, got None"):
        ais(exact.model, None, exact.x)
    with pytest.raises(ValueError, match="misses the model's latent site 'z'"):
        ais(exact.model, lambda x: None, exact.x)
    broken = LinearGaussian(3)
    broken.scale = torch.full((20,), math.nan)
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="finite mean and positive scale at point 0"):
        ais(broken.model, broken.guide, broken.x)


def test_a_table_of_rows_is_read_at_the_points_of_each_chunk() -> None:
    exact = LinearGaussian(6)
    table = exact.x @ exact.gain.T

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)) as index:
            pyro.sample("z", dist.Normal(table[index], exact.scale).to_event(1))

    def guide_with_index(x: Tensor, index: Tensor) -> None:
        with pyro.plate("data", 6, subsample=index):
            pyro.sample("z", dist.Normal(table[index], exact.scale).to_event(1))

    def model_with_index(x: Tensor, index: Tensor) -> None:
        with pyro.plate("data", 6, subsample=index):
            z = pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ exact.w.T, 0.7).to_event(1), obs=x)

    points = torch.tensor([4, 1])
    for model, q, args in (
        (exact.model, guide, (exact.x,)),
        (model_with_index, guide_with_index, (exact.x, torch.arange(6))),
    ):
        start = gaussian_start(joint_density(model, *args).select(points), q, 100)
        torch.testing.assert_close(start.loc, table[points])
        result = ais(model, q, *args, settings=AISSettings(num_chains=4, memory_budget=4e4))
        assert ((result.log_p - exact.log_p).abs() < 5 * result.standard_error + 0.05).all()


@pytest.mark.slow
def test_shared_latents_are_held_fixed() -> None:
    """Given the weight, the model is linear-Gaussian in one dimension, whatever the guide says of the weight."""

    def model(x: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None] * weight, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("weight", dist.Normal(torch.ones(3), 0.1).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.4))

    x = torch.randn(5, 3)
    for fixed in draw_shared(guide, x, num_draws=2):
        w = fixed["weight"]
        covariance = w[:, None] * w + 0.25 * torch.eye(3)
        exact = torch.distributions.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)
        result = ais(model, guide, x, fixed=fixed, settings=AISSettings(num_chains=32))
        assert ((result.log_p - exact).abs() < 4 * result.standard_error + 1e-3).all()
        certificate = bdmc(model, guide, x, fixed=fixed, settings=AISSettings(num_temperatures=30))
        assert abs(certificate.mean_gap) < 0.1 + 3 * certificate.gap_error
