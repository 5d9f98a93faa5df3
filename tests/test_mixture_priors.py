"""Mixtures as priors of z, as of a GMM-VAE or a VampPrior, against integrals on a grid."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortized_bayes as ab
from amortized_bayes.inference.settings import LocalSettings

pytestmark = pytest.mark.usefixtures("float64")

LOCS, SCALES, SHARES = ((-2.0, 1.0, 2.5), (0.9, 0.7, 0.8), (0.2, 0.5, 0.3))
NOISE = 0.6
QUICK = ab.DiagnosisSettings(
    num_particles=400,
    ais=ab.AISSettings(num_temperatures=20, num_chains=8),
    certificate=ab.CertificateSettings(8, 0.2, 40),
    local=LocalSettings(max_steps=150),
)


def prior(kind=dist.Normal):
    mix = dist.Categorical(torch.tensor(SHARES))
    return dist.MixtureSameFamily(mix, kind(torch.tensor(LOCS), torch.tensor(SCALES)))


def model(x, kind=dist.Normal):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", prior(kind))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x)


def guide(x, kind=dist.Normal):
    with pyro.plate("data", len(x)):
        pyro.sample("z", kind(0.8 * x, 0.4))


def data(count=8):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return prior().sample((count,)) + NOISE * torch.randn(count)


def log_evidence(x: Tensor, grid: Tensor, kind=dist.Normal) -> Tensor:
    """By the rule of rectangles."""
    log_p = prior(kind).log_prob(grid)[:, None] + dist.Normal(grid[:, None], NOISE).log_prob(x)
    return log_p.logsumexp(0) + (grid[1] - grid[0]).log()


def gaussian_elbo(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """ELBO of N(loc, scale) by the rule of rectangles, broadcast over members."""
    eps = torch.linspace(-6, 6, 121)
    weight = dist.Normal(0.0, 1.0).log_prob(eps).exp() * (eps[1] - eps[0])
    z = loc[..., None] + scale[..., None] * eps
    log_q = dist.Normal(loc[..., None], scale[..., None]).log_prob(z)
    log_p = prior().log_prob(z) + dist.Normal(z, NOISE).log_prob(x[..., None])
    return ((log_p - log_q) * weight).sum(-1)


def test_diagnose_meets_integrals_on_a_grid():
    x = data()
    found = ab.diagnose(model, guide, x, settings=QUICK, progress=False)
    log_p = log_evidence(x, torch.linspace(-9, 9, 9001))
    elbo = gaussian_elbo(x, 0.8 * x, torch.tensor(0.4))
    locs, scales = torch.meshgrid(torch.linspace(-3, 4, 71), torch.linspace(0.2, 1.1, 31), indexing="ij")
    star = gaussian_elbo(x[:, None], locs.reshape(1, -1), scales.reshape(1, -1)).amax(-1)
    exact = {"elbo": elbo, "elbo_star": star, "log_p_lower": log_p, "iwae": log_p}
    for name, values in exact.items():
        value, error = found.estimate(name)
        known = error.nan_to_num(nan=0.1) if name == "iwae" else error
        off = (value - values).mean().abs()
        assert off < 3 * known.square().sum().sqrt() / len(x) + 0.01, name
    assert found.settings["family"] == "gaussian"
    assert found.settings["relation"] == "own"
    assert found.certificate is not None
    assert abs(found.certificate.mean_gap) < 0.1


def test_a_mixture_of_positive_components_lies_on_their_support():
    x = data().abs()
    density = ab.log_joint(model, x, kind=dist.LogNormal)
    z = torch.linspace(-12, 8, 4001)
    log_p = density(z[:, None, None].expand(-1, len(x), 1)).logsumexp(0) + (z[1] - z[0]).log()
    torch.testing.assert_close(
        log_p, log_evidence(x, torch.linspace(1e-4, 60, 60001), dist.LogNormal), rtol=0, atol=1e-3
    )


def test_compare_meets_the_elbo_of_what_it_fitted():
    x = data(40)
    quick = ab.ComparisonSettings(epochs=60, rungs=1, num_draws=200)
    report = ab.compare(model, x, widths=(4,), guides=("factorized",), settings=quick, progress=False)
    loc, log_scale = report.best.apply().guide.locate(x, torch.arange(len(x))).detach().unbind(-1)
    exact = gaussian_elbo(x, loc, log_scale.exp())
    found = report.best.elbo
    error = found.standard_error.square().sum().sqrt() / len(x)
    assert abs(found.value.mean() - exact.mean()) < 3 * error
    assert (exact < log_evidence(x, torch.linspace(-9, 9, 9001))).all()


def test_components_with_supports_of_their_own_are_refused():
    def pieces(x):
        with pyro.plate("data", len(x)):
            parts = dist.Uniform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0]))
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    for call in (lambda: ab.diagnose(pieces, guide, data()), lambda: ab.compare(pieces, data(), progress=False)):
        with pytest.raises(ValueError, match="components of latent 'z' to share one support, got lower_bounds that"):
            call()


def test_a_support_without_a_bijection_is_refused_in_one_line():
    def sphere(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.ProjectedNormal(torch.ones(3)))
            pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)

    with pytest.raises(ValueError, match="support that maps to all reals, got 'z' of ProjectedNormal") as refused:
        ab.compare(sphere, torch.randn(10, 3), progress=False)
    assert "\n" not in str(refused.value)
