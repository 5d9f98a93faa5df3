"""q* of guides that draw several sites of a point together: one Gaussian of full covariance over all of them."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from amortized_bayes import LocalSettings, optimize_local
from amortized_bayes.guides.autoguides import as_per_point
from amortized_bayes.joint import Factor, global_seed, joint_density, read_family
from amortized_bayes.models import LinearGaussian

pytestmark = pytest.mark.usefixtures("float64")

GENERATOR = Generator().manual_seed(4)
WEIGHT = torch.randn(6, 4, generator=GENERATOR).double()
LINEAR = LinearGaussian(WEIGHT, torch.zeros(6).double(), 0.8)
X = (torch.randn(8, 4, generator=GENERATOR) @ WEIGHT.float().T + 0.8 * torch.randn(8, 6, generator=GENERATOR)).double()


def model(x: Tensor) -> None:
    """The linear-Gaussian model with its latents in three sites."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        c = pyro.sample("c", dist.Normal(torch.zeros(1, 1), 1.0).to_event(2))
        z = torch.cat([a, b[:, None], c[..., 0]], -1)
        pyro.sample("x", dist.Normal(z @ WEIGHT.T, 0.8).to_event(1), obs=x)


def joint(off: float = 0.0, stretch: float = 1.0, extra: int = 0, log_density: float = 0.0) -> Callable[[Tensor], None]:
    """One draw with c first and b last, off the exact posterior at will."""

    def guide(x: Tensor) -> None:
        posterior, order = LINEAR.posterior(x), torch.tensor([3, 0, 1, 2])
        covariance = stretch**2 * posterior.covariance_matrix[..., order, :][..., order]
        wide = torch.eye(4 + extra).repeat(len(x), 1, 1)
        wide[:, :4, :4] = covariance
        loc = torch.cat([posterior.mean[:, order] + off, torch.zeros(len(x), extra)], -1)
        with pyro.plate("data", len(x)):
            free = pyro.sample("free", dist.MultivariateNormal(loc, wide), infer={"is_auxiliary": True})
            pyro.sample("a", dist.Delta(free[:, 1:3], torch.tensor(log_density), event_dim=1))
            pyro.sample("b", dist.Delta(free[:, 3]))
            pyro.sample("c", dist.Delta(free[:, :1, None], event_dim=2))

    return guide


def factors_of(guide: Any) -> list[Factor] | None:
    with global_seed(0):
        return read_family(joint_density(model, X), guide)


@pytest.mark.parametrize("kind", ["by hand", "autoguide"])
def test_the_best_is_the_exact_posterior(kind: str) -> None:
    """All points at once: sites in another order than the draw, or drawn one given the other."""
    guide: Any = joint(off=0.3, stretch=1.5) if kind == "by hand" else AutoMultivariateNormal(model, init_scale=0.5)
    guide(X)
    found = optimize_local(model, guide, X, family="own", settings=LocalSettings(num_score=200, max_steps=400))
    assert found.family == "full-covariance gaussian"
    assert not found.contains
    off = found.elbo_star - LINEAR.log_evidence(X)
    assert (off.abs() < 5 * found.standard_error + 0.02).all()
    assert found.factors is not None
    assert list(found.factors) == ["a & b & c"]
    posterior, q = LINEAR.posterior(X), next(iter(found.factors.values()))
    assert isinstance(q, MultivariateNormal)
    torch.testing.assert_close(found.q.loc, posterior.mean, rtol=0, atol=0.12)
    torch.testing.assert_close(found.q.scale, posterior.stddev.expand(8, 4), rtol=0.1, atol=0)


def test_the_start_is_the_guide_itself() -> None:
    """A search of no step scores the guide: log p(x) minus a KL divergence in closed form."""
    still = LocalSettings(max_steps=1, num_windows=1, learning_rate=1e-9, num_score=2000)
    found = optimize_local(model, joint(0.3, 1.5), X, family="own", settings=still)
    posterior = LINEAR.posterior(X)
    q = MultivariateNormal(posterior.mean + 0.3, 1.5**2 * posterior.covariance_matrix)
    exact = LINEAR.log_evidence(X) - kl_divergence(q, posterior)
    assert ((found.elbo_star - exact).abs() < 4 * found.standard_error).all()


def test_conditionals_of_an_autoguide_make_the_gaussian_that_it_says() -> None:
    guide = AutoMultivariateNormal(model, init_scale=0.5)
    guide(X)
    guide.scale_tril = guide.scale_tril + 0.3 * torch.randn(32, 32).tril(-1)
    factors = factors_of(guide)
    assert factors is not None
    (factor,) = factors
    with global_seed(1):
        draws = log_weights_of(guide)
    scored = MultivariateNormal(factor.parameters["loc"][:, 0], scale_tril=factor.parameters["scale_tril"][:, 0])
    torch.testing.assert_close(scored.log_prob(draws[0]), draws[1])


def log_weights_of(guide: Any) -> tuple[Tensor, Tensor]:
    """A draw of all sites in the order of z, and the guide's log q of it, ``(B,)``."""
    trace = pyro.poutine.trace(as_per_point(guide, "data")).get_trace(X)
    trace.compute_log_prob()
    nodes: Any = trace.nodes
    z = torch.cat([nodes[name]["value"].reshape(len(X), -1) for name in "abc"], -1)
    return z, torch.stack([nodes[name]["log_prob"] for name in "abc"]).sum(0)


def test_all_parts_have_a_name() -> None:
    assert factors_of(joint()) is not None


def test_a_density_that_is_no_moves_is_refused() -> None:
    with pytest.raises(ValueError, match="minus the log determinant of the Jacobian"):
        factors_of(joint(log_density=0.1))


def test_a_part_that_no_site_has_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'free' of 5 numbers and 4 made of them"):
        factors_of(joint(extra=1))
