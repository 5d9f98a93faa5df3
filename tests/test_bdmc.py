"""The sandwich closes on the exact evidence, and opens the wrong way for a sampler that is broken on purpose."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Generator, Tensor

from amortized_bayes.evaluation import annealing, hmc
from amortized_bayes.evaluation import bdmc as bdmc_module
from amortized_bayes.evaluation.bdmc import BDMCResult, bdmc
from amortized_bayes.evaluation.hmc import ChainState, PathDensity
from amortized_bayes.evaluation.ladder import growth
from amortized_bayes.evaluation.settings import AISSettings, CertificateSettings
from amortized_bayes.evaluation.simulation import simulate
from amortized_bayes.joint import joint_density

SCALE = 0.7


pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def w() -> Tensor:
    return 1.5 * torch.randn(30, 20, generator=Generator().manual_seed(3)) / 20**0.5


class LinearGaussian:
    """z ~ N(0, I) of 20 dimensions, x ~ N(W z, SCALE²); remembers nothing of its data."""

    def __init__(self, w: Tensor) -> None:
        self.w = w
        precision = torch.eye(20) + w.T @ w / SCALE**2
        self.gain, self.scale = torch.linalg.solve(precision, w.T / SCALE**2), precision.diagonal().rsqrt()
        self.evidence = torch.distributions.MultivariateNormal(torch.zeros(30), w @ w.T + SCALE**2 * torch.eye(30))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.w.T, SCALE).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.gain.T, self.scale).to_event(1))


def sandwich(w: Tensor, settings: AISSettings, num_points: int = 60) -> tuple[BDMCResult, Tensor]:
    """Bounds, and exact log p(x) of the very points that were simulated."""
    linear = LinearGaussian(w)
    seen: list[Tensor] = []

    def model(x: Tensor) -> None:
        seen.append(x)
        linear.model(x)

    x = linear.evidence.sample((num_points,))
    guide = linear.guide if settings.start == "guide" or settings.mass == "guide" else None
    result = bdmc(model, guide, x, settings=settings, certificate=CertificateSettings(num_points))
    simulated = next(t for t in seen if len(t) >= num_points and not torch.isin(t[0], x).all())[:num_points]
    return result, linear.evidence.log_prob(simulated)


def z_scores(result: BDMCResult, exact: Tensor) -> tuple[float, float]:
    """How far the lower bound is above, and the upper bound below, the exact value, in standard errors."""
    above, below = result.lower - exact, exact - result.upper
    return tuple((d.mean() / (d.std() / len(d) ** 0.5)).item() for d in (above, below))  # type: ignore[return-value]


@pytest.mark.parametrize("start", ["guide", "prior"])
@pytest.mark.parametrize("temperatures", [15, 100])
def test_exact_evidence_is_inside(w: Tensor, start: str, temperatures: int) -> None:
    settings = AISSettings(num_temperatures=temperatures, start=start)  # pyright: ignore[reportArgumentType]
    result, exact = sandwich(w, settings)
    assert max(z_scores(result, exact)) < 3
    assert result.gap_error > 0
    assert result.mean_gap > -3 * result.gap_error
    if (temperatures, start) == (100, "guide"):
        assert result.mean_gap < 0.1 + 3 * result.gap_error


def test_both_bounds_close_in_on_the_exact_evidence(w: Tensor) -> None:
    """From either side; more chains bring them closer, as they do only where the backward weights are averaged as 1/w'.

    A bound of the wrong sign lies a hundred nats away, where only its distance tells it from a very loose one.
    """
    off = []
    for chains in (2, 50):
        result, exact = sandwich(w, AISSettings(num_chains=chains, num_temperatures=15))
        assert max(z_scores(result, exact)) < 3
        torch.testing.assert_close(result.gap, result.upper - result.lower)
        off.append([d.mean().item() for d in (exact - result.lower, result.upper - exact)])
    for few, many in zip(*off, strict=True):
        assert many < few / 2
        assert abs(many) < 1


def broken_leapfrog(
    density: PathDensity,
    state: ChainState,
    momentum: Tensor,
    beta: Tensor,
    step_size: Tensor,
    inverse_mass: Tensor,
    num_steps: int,
) -> tuple[ChainState, Tensor]:
    """Ends with a full and then a half kick: not reversible."""
    state, momentum = sound_leapfrog(density, state, momentum, beta, step_size, inverse_mass, num_steps)
    return state, momentum + step_size[..., None] * state.ends.grad(beta)


sound_leapfrog = hmc.leapfrog


def test_a_broken_kick_breaks_the_sandwich(w: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    # At the default acceptance of 0.9 the steps of a broken kick shrink until it hardly moves.
    settings = AISSettings(num_temperatures=60, num_leapfrog=10, start="prior", mass="unit", target_acceptance=0.75)
    sound, exact = sandwich(w, settings)
    assert max(z_scores(sound, exact)) < 3
    monkeypatch.setattr(hmc, "leapfrog", broken_leapfrog)
    broken, exact = sandwich(w, settings)
    above, _ = z_scores(broken, exact)
    assert above > 5  # a lower bound above the exact value, by 2 nats
    assert (broken.lower - exact).mean() > 1


@pytest.mark.slow
def test_target_gap_picks_the_number_of_temperatures(w: Tensor) -> None:
    linear = LinearGaussian(w)
    x = linear.evidence.sample((40,))
    few = AISSettings(num_temperatures=5, start="prior", mass="unit")
    result = bdmc(linear.model, None, x, settings=few, certificate=CertificateSettings(target_gap=1.0))
    assert result.reached
    assert result.mean_gap <= 1.0
    assert result.settings.num_temperatures > 5
    assert result.difficulty is None
    stopped = bdmc(linear.model, None, x, settings=few, certificate=CertificateSettings(200, 1e-6, max_temperatures=8))
    assert stopped.reached is False
    assert stopped.settings.num_temperatures == 8


def test_the_next_round_follows_the_gaps_that_were_seen() -> None:
    assert growth([(80, 0.2)], 0.1) == pytest.approx(2.4)  # 1/T is taken for granted, and a fifth more
    # So much nearer to the target as the last two rounds promise.
    for power in (0.5, 1.0, 2.0):
        gaps = [(num, 5 * num**-power) for num in (80, 320)]
        assert growth(gaps, gaps[1][1] / 2) == pytest.approx(2.2 ** (1 / power))
    assert growth([(80, 0.3), (320, 0.3)], 0.2) == pytest.approx(1.65**2)  # none seen: slow
    assert growth([(80, 0.3), (320, 0.101)], 0.1) == 1.25
    assert growth([(80, float("inf"))], 0.1) == growth([(80, 9.0), (320, 5.0)], 0.01) == 8.0
    assert growth([(80, float("inf")), (320, 0.2)], 0.1) == pytest.approx(2.4)


def test_what_is_certified_did_not_choose_the_settings(w: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings look better on the points that they were chosen on than on others."""
    linear, seen = LinearGaussian(w), []
    sandwich_of = bdmc_module._sandwich

    def spy(joint: Any, z: Tensor, *rest: Any) -> Any:
        seen.append(z)
        return sandwich_of(joint, z, *rest)

    monkeypatch.setattr(bdmc_module, "_sandwich", spy)
    few = AISSettings(num_temperatures=5, start="prior", mass="unit")
    x = linear.evidence.sample((40,))
    result = bdmc(linear.model, None, x, settings=few, certificate=CertificateSettings(40, target_gap=1.5))
    *pilots, certified = seen
    assert [len(z) for z in pilots] == [10] * len(pilots)
    assert len(pilots) > 1
    assert len(certified) == len(result.gap) == 40
    assert not torch.isclose(certified[:, None], pilots[-1][None]).all(-1).any()
    assert result.highest_gap == pytest.approx(result.mean_gap + 1.645 * result.gap_error)
    assert result.reached == (result.highest_gap <= 1.5)


@pytest.mark.slow
def test_rounds_of_the_search_share_a_program(w: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for the pilot's points, whatever the rounds, and one for those of the certificate; the numbers stay."""
    linear, captured = LinearGaussian(w), []
    x, few = linear.evidence.sample((40,)), AISSettings(num_temperatures=5, start="prior", mass="unit")
    capture, sandwich = annealing.captured_or_plain, bdmc_module._sandwich

    def found() -> BDMCResult:
        captured.clear()
        return bdmc(linear.model, None, x, settings=few, certificate=CertificateSettings(40, target_gap=1.5))

    monkeypatch.setattr(annealing, "captured_or_plain", lambda *args: captured.append(args) or capture(*args))
    shared = found()
    assert len(captured) == 2
    monkeypatch.setattr(bdmc_module, "_sandwich", lambda *args: sandwich(*args[:6]))
    each = found()
    assert len(captured) > 2
    assert torch.equal(each.gap, shared.gap)
    assert each.settings == shared.settings


def test_simulated_points_are_compared_with_real_ones(w: Tensor) -> None:
    linear = LinearGaussian(w)
    x = linear.evidence.sample((60,))

    def narrow(x: Tensor) -> None:
        # Good on data like the model's, poor on data three times as large.
        with pyro.plate("data", len(x)):
            shift = 0.1 * (x.square().mean(-1, keepdim=True) - 2).clamp(min=0)
            pyro.sample("z", dist.Normal(x @ linear.gain.T + shift, linear.scale).to_event(1))

    settings = AISSettings(num_temperatures=5, num_chains=4)
    alike = bdmc(linear.model, linear.guide, x, settings=settings)
    assert alike.difficulty is not None
    assert alike.difficulty.alike
    assert "real points have no upper bound" in alike.evidence()
    assert "about as hard for the encoder as the real ones" in alike.evidence()
    easier = bdmc(linear.model, narrow, 3 * x, settings=settings)
    assert easier.difficulty is not None
    assert not easier.difficulty.alike
    assert "easier for the encoder" in easier.evidence()


def test_simulated_data_take_the_place_of_the_arguments() -> None:
    def model(x: Tensor, covariate: Tensor, y: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(covariate, 1.0))
            pyro.sample("x", dist.Normal(z[:, None].expand(-1, 4), 0.1).to_event(1), obs=x.flatten(1))
            pyro.sample("y", dist.Bernoulli(logits=z), obs=y)

    covariate = torch.linspace(-50, 50, 6)
    joint = joint_density(model, torch.zeros(6, 2, 2), covariate, torch.ones(6), plate="rows")
    simulated, z = simulate(joint)
    x, kept, y = simulated.leaves
    assert x.shape == (6, 2, 2)
    torch.testing.assert_close(kept, covariate)
    assert (x.flatten(1) - z).abs().max() < 0.6
    assert (z[:, 0] - covariate).abs().max() < 5
    assert set(y.tolist()) == {0.0, 1.0}
    torch.testing.assert_close(simulated(z[None])[0], simulated(z))


def test_each_value_is_drawn_by_itself_where_its_density_broadcasts() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 0.5).to_event(1), obs=x)

    torch.manual_seed(0)
    simulated, z = simulate(joint_density(model, torch.zeros(2_000, 3)))
    noise = simulated.leaves[0] - z
    assert noise.T.cov().numpy() == pytest.approx(0.25 * torch.eye(3).numpy(), abs=4 * 0.25 * (2 / 2_000) ** 0.5)


def test_models_that_cannot_be_simulated_are_refused(w: Tensor) -> None:
    def scaled(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x / 255)

    def factor(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("energy", -(z - x).square())

    for model, words in ((scaled, "site 'x' to be an argument"), (factor, "factor 'energy'")):
        with pytest.raises(ValueError, match=words):
            simulate(joint_density(model, torch.tensor([1.0, 2.0])))
    linear = LinearGaussian(w)
    with pytest.raises(ValueError, match="target_gap above 0"):
        bdmc(linear.model, linear.guide, torch.zeros(3, 30), certificate=CertificateSettings(target_gap=-1.0))
