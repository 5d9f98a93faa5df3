"""Guides with per-point parameters: chains of simulated points cannot start there."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import amortized_bayes as ab

QUICK = ab.DiagnosisSettings(
    num_particles=200,
    ais=ab.AISSettings(num_temperatures=40),
    certificate=ab.CertificateSettings(12, 0.1, 40),
    local=ab.LocalSettings(max_steps=150),
)
NOISE = 0.5
WEIGHT = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.3, 0.2]])
NUM = 24


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHT.T, NOISE).to_event(1), obs=x)


EXACT = ab.LinearGaussian(WEIGHT, torch.zeros(3), NOISE)


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(2)
    z, e = torch.randn(NUM, 2, generator=generator), torch.randn(NUM, 3, generator=generator)
    return 2 * z @ WEIGHT.T + NOISE * e  # real points lie farther out than simulated ones


def best(x):
    posterior = EXACT.posterior(x)
    return posterior.mean, EXACT.posterior_precision().diagonal().rsqrt().expand(len(x), 2)


def factorized(x):
    guide = ab.Factorized(ab.latent_sites(model, x).local, len(x))
    loc, scale = best(x)
    with torch.no_grad():
        guide.table.weight.copy_(torch.cat([loc, scale.log()], -1))
    return guide


def autonormal(x):
    guide = AutoNormal(model)
    guide(x)
    loc, scale = best(x)
    with torch.no_grad():
        guide.locs.z.copy_(loc)
    guide.scales.z = scale.clone()
    return guide


@pytest.mark.parametrize("kind", [factorized, autonormal])
@pytest.mark.slow
def test_chains_of_real_and_simulated_points_start_at_a_search(x, kind):
    found = ab.diagnose(model, kind(x), x, settings=QUICK)
    assert found.certificate is not None, found.why_uncertified
    assert found.certificate.words.startswith("the guide's parameters belong to the real points")
    assert found.certificate.mean_gap < 0.15  # nats, of short chains
    bound, exact = found.estimate("log_p_lower"), EXACT.log_evidence(x)
    assert ((bound.value - exact).abs() < 5 * bound.standard_error + 0.05).all()
    assert abs(found.gaps().amortization.mean) < 0.05


def test_rows_of_real_points_are_no_start_for_simulated_ones(x):
    settings = ab.AISSettings(num_temperatures=20, num_chains=4)
    with pytest.raises(ValueError, match="per-point parameters, which say nothing of simulated points"):
        ab.bdmc(model, factorized(x), x, settings=settings)
    from_prior = ab.AISSettings(num_temperatures=80, start="prior", mass="unit")
    found = ab.bdmc(model, factorized(x), x, settings=from_prior, certificate=ab.CertificateSettings(20))
    assert found.difficulty is None
    assert found.mean_gap < 0.3


def test_one_q_for_all_points_and_an_encoder_are_starts_for_any(x):
    sites = ab.latent_sites(model, x).local
    settings = ab.AISSettings(num_temperatures=5, num_chains=4, num_pilot=4)
    for guide in (ab.Constant(sites, NUM), ab.Amortized(sites, num_data=NUM, observed=3, width=4)):
        assert ab.bdmc(model, guide, x, settings=settings).difficulty is not None


@pytest.mark.slow
def test_chains_take_gaussians_as_a_start(x):
    q = ab.optimize_local(model, None, x, settings=QUICK.local).q
    found = ab.ais(model, q, x, settings=QUICK.ais)
    assert ((found.log_p - EXACT.log_evidence(x)).abs() < 5 * found.standard_error + 0.05).all()
    with pytest.raises(ValueError, match=r"start with loc and positive scale of shape \(24, 2\), got \(5, 2\)"):
        ab.ais(model, type(q)(q.loc[:5], q.scale[:5]), x, settings=QUICK.ais)


def laplace(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Laplace(torch.zeros(len(x), 2), 1.0).to_event(1))


def of_a_mixture(x):
    parts = dist.Normal(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 1.0).to_event(1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))


def made_of_a_draw(x, shift=0.0):
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Laplace(torch.zeros(len(x), 2), 1.0).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u + shift, event_dim=1))


@pytest.mark.parametrize("guide", [laplace, of_a_mixture, made_of_a_draw])
@pytest.mark.slow_cases("made_of_a_draw")
def test_one_q_for_all_points_need_not_be_gaussian(x, guide):
    """Fitted to draws, its moments differ from point to point; its density does not."""
    settings = ab.AISSettings(num_temperatures=5, num_chains=4, num_pilot=4)
    assert ab.bdmc(model, guide, x, settings=settings).difficulty is not None


def laplace_rows(x):
    loc = pyro.param("rows", best(x)[0])
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Laplace(loc[: len(x)], 1.0).to_event(1))


def made_rows(x):
    made_of_a_draw(x, pyro.param("rows", best(x)[0])[: len(x)])


@pytest.mark.parametrize("guide", [laplace_rows, made_rows])
def test_rows_of_other_families_are_rows(x, guide):
    guide(x)  # makes the table, of the real points
    with pytest.raises(ValueError, match="per-point parameters, which say nothing of simulated points"):
        ab.bdmc(model, guide, x, settings=ab.AISSettings(num_temperatures=5, num_chains=4))


def test_a_q_that_cannot_be_scored_is_not_said_to_have_rows(x):
    """A planar flow has no density of draws that are not its own; whether it is one for all points stays open."""
    flow = dist.transforms.Planar(2)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def planar(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    with pytest.raises(ValueError, match=r"not seen to be one for all points: .*, or draws that it has no density of"):
        ab.bdmc(model, planar, x, settings=ab.AISSettings(num_temperatures=5, num_chains=4))
