"""Chains that start at a guide of full covariance walk where it is standard: the same densities, far fewer steps."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Generator, Tensor

from amortized_bayes.evaluation import annealing
from amortized_bayes.evaluation.bdmc import bdmc
from amortized_bayes.evaluation.settings import AISSettings, CertificateSettings
from amortized_bayes.joint import joint_density
from amortized_bayes.models import LinearGaussian

pytestmark = pytest.mark.usefixtures("float64")

SPREAD = torch.linspace(0.3, 3, 12).double()
TURN = torch.linalg.qr(torch.randn(12, 12, generator=Generator().manual_seed(2)).double())[0]


def correlated() -> tuple[LinearGaussian, Tensor]:
    """Posteriors of 12 latents whose scales differ tenfold along axes that are turned, and data."""
    torch.manual_seed(0)
    weight = torch.randn(30, 12, dtype=torch.float64) / 30**0.5
    model = LinearGaussian(weight * SPREAD @ TURN, torch.zeros(30, dtype=torch.float64), 0.3)
    x = torch.randn(60, 12, dtype=torch.float64) @ model.weight.T + 0.3 * torch.randn(60, 30, dtype=torch.float64)
    return model, x


def guide_of(model: LinearGaussian, *, full: bool, off: float = 0.3) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        posterior = model.posterior(x)
        tril = 1.1 * posterior.scale_tril
        loc = posterior.mean + off * tril.sum(-1)
        with pyro.plate("data", len(x)):
            if full:
                pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))
            else:
                pyro.sample("z", dist.Normal(loc, tril.square().sum(-1).sqrt()).to_event(1))

    return guide


def two_sites(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(torch.tensor(0.0), 1.0))
        b = pyro.sample("b", dist.Gamma(torch.ones(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(a + b.sum(-1), 1.0), obs=x)


TRIL = torch.tensor([[0.5, 0, 0, 0], [0.3, 0.2, 0, 0], [0.1, -0.4, 0.3, 0], [0.2, 0.1, -0.1, 0.7]]).double()


def together(x: Tensor) -> None:
    """One draw for both sites, b before a: not the order of z."""
    with pyro.plate("data", len(x)):
        loc = x[:, None] * torch.arange(4.0, dtype=x.dtype)
        free = pyro.sample("free", dist.MultivariateNormal(loc, scale_tril=TRIL), infer={"is_auxiliary": True})
        pyro.sample("b", dist.Delta(free[:, :3].exp(), -free[:, :3].sum(-1), event_dim=1))
        pyro.sample("a", dist.Delta(free[:, 3]))


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_both_ends_are_those_of_z_but_for_the_volume(start: str) -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    joint = joint_density(two_sites, x)
    settings = AISSettings(num_chains=7, start=start, widen=1.0)  # pyright: ignore[reportArgumentType]
    (chunk,) = annealing.chunks(joint, together, settings, 0, annealing.Ticker(None, settings, 1))
    z = torch.randn(7, 5, 4, dtype=torch.float64, generator=Generator().manual_seed(0))
    state = chunk.start_at(z)
    q = torch.distributions.MultivariateNormal(x[:, None] * torch.arange(4.0, dtype=x.dtype), scale_tril=TRIL)
    volume = TRIL.diagonal().log().sum()
    in_order = z[..., [1, 2, 3, 0]]
    log_start = q.log_prob(in_order) if start == "guide" else joint.log_prior(z)
    torch.testing.assert_close(state.ends.log_start, log_start + volume)
    torch.testing.assert_close(state.ends.log_end, joint(z) + volume)
    u = torch.linalg.solve_triangular(TRIL, (in_order - q.mean)[..., None], upper=False)[..., 0]
    torch.testing.assert_close(state.z, u)
    leaf = z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(joint(leaf).sum(), leaf)
    torch.testing.assert_close(state.ends.grad_end, grad[..., [1, 2, 3, 0]] @ TRIL)


@pytest.mark.parametrize("start", ["guide", "prior"])
@pytest.mark.slow_cases("prior")
def test_the_exact_evidence_stays_inside(start: str) -> None:
    model, x = correlated()
    settings = AISSettings(num_chains=8, num_temperatures=16, start=start)  # pyright: ignore[reportArgumentType]
    seen: list[Tensor] = []

    def spied(x: Tensor) -> None:
        seen.append(x)
        model(x)

    found = bdmc(spied, guide_of(model, full=True), x, settings=settings, certificate=CertificateSettings(60))
    simulated = next(t for t in seen if len(t) >= 60 and not torch.isin(t[0], x).all())[:60]
    exact = model.log_evidence(simulated)
    for off in (found.lower - exact, exact - found.upper):
        assert off.mean() < 3 * off.std() / 60**0.5
    assert found.mean_gap < (0.2 if start == "guide" else 10)


@pytest.mark.slow
def test_correlations_cost_no_temperatures() -> None:
    """Those that start at its factorized Gaussian need many more."""
    model, x = correlated()
    settings, wanted = AISSettings(num_chains=4, num_temperatures=12), CertificateSettings(60)
    gaps = {
        full: bdmc(model, guide_of(model, full=full), x, settings=settings, certificate=wanted).mean_gap
        for full in (True, False)
    }
    assert gaps[True] < 0.2 * gaps[False]


def test_unit_masses_are_those_of_the_latents_themselves() -> None:
    model, x = correlated()
    settings = AISSettings(num_chains=4, mass="unit")
    joint, tick = joint_density(model, x), annealing.Ticker(None, settings, 1)
    (chunk,) = annealing.chunks(joint, guide_of(model, full=True), settings, 0, tick)
    assert chunk.white is None
    torch.testing.assert_close(chunk.start_at(z := torch.zeros(4, 60, 12).double()).z, z)
