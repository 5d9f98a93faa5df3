"""Guides and models as their authors write them: autoguides, closed tensors, states of their own."""

import logging
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoIAFNormal, AutoNormal
from torch import nn

import amortized_bayes as ab
from amortized_bayes.comparing.any_model import ComparisonSettings
from amortized_bayes.inference.options import FitOptions

NOISE = 0.5
X = torch.linspace(-1.5, 2, 6)[:, None]
QUICK = ab.DiagnosisSettings(
    num_particles=200, ais=ab.AISSettings(num_temperatures=40), certificate=ab.CertificateSettings(20, 0.1, 40)
)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[:, None], NOISE).to_event(1), obs=x)


def exact_elbo(x, loc, scale):
    """Of q(z_n) = N(loc_n, scale^2), per point."""
    likelihood = -0.5 * math.log(2 * math.pi * NOISE**2) - ((x - loc) ** 2 + scale**2) / (2 * NOISE**2)
    divergence = 0.5 * (loc**2 + scale**2 - 1 - math.log(scale**2))
    return likelihood - divergence


@pytest.mark.parametrize("kind", [AutoNormal])
@pytest.mark.slow
def test_an_autoguide_is_evaluated_particle_by_particle(kind, caplog):
    guide = kind(model, init_scale=0.3)
    guide(X)
    loc = next(p for name, p in guide.named_parameters() if "loc" in name)
    with torch.no_grad():
        loc.copy_(torch.linspace(-1, 1, 6).reshape(loc.shape))
    with caplog.at_level(logging.WARNING):
        weights = ab.log_weights(model, guide, X, num_particles=1000)
    assert "particles are drawn in turn" in caplog.text
    exact = exact_elbo(X[:, 0], torch.linspace(-1, 1, 6), 0.3)
    error = weights.local.std(1) / math.sqrt(1000)
    assert ((weights.local.mean(1) - exact) / error).abs().max() < 4


def test_particles_in_turn_share_the_draw_of_the_latents_outside_the_plate():
    def with_shift(x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(X)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(X)), 1.0))
            pyro.sample("x", dist.Normal((z + shift)[:, None], NOISE).to_event(1), obs=X)

    def of_prior(x):
        pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(X)):
            pyro.sample("z", dist.Normal(torch.zeros(len(X)), 1e-6))

    weights = ab.log_weights(with_shift, of_prior, X, num_particles=3, num_shared=2)
    likelihood = weights.log_likelihood
    torch.testing.assert_close(likelihood[:, 0], likelihood[:, 2], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(likelihood[0], likelihood[1], atol=0.05)
    assert (weights.shared == 0).all()


def test_a_guide_that_draws_all_points_jointly_is_refused():
    guide = AutoIAFNormal(model, hidden_dim=[8])
    guide(X)
    with pytest.raises(ValueError, match="'_AutoIAFNormal_latent': a point has no weight of its own"):
        ab.log_weights(model, guide, X, num_particles=3)


def test_the_generator_and_batch_norm_are_as_before():
    norm = nn.BatchNorm1d(1)

    def normed(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(norm(z[:, None]), NOISE).to_event(1), obs=x)

    torch.manual_seed(3)
    expected = torch.randn(3)
    torch.manual_seed(3)
    settings = ComparisonSettings(epochs=2, num_draws=2, fit=FitOptions(capture="off"))
    x = torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="batch norm in training mode"):
        ab.compare(normed, x, settings=settings, progress=False)
    assert norm.num_batches_tracked.item() == 0
    norm.eval()
    ab.compare(normed, x, settings=settings, progress=False)
    assert torch.equal(torch.randn(3), expected)
    assert norm.running_mean.item() == 0
    assert norm.num_batches_tracked.item() == 0


@pytest.mark.slow
def test_what_a_guide_observes_is_no_part_of_q():
    """A classifier that is trained beside q scores data; counted as log q it would lift the ELBO."""

    def guide(x, factor=None):
        with pyro.plate("data", len(x)):
            pyro.sample("side", dist.Normal(0.0, 0.2).expand([len(x), 1]).to_event(1), obs=x)
            pyro.sample("z", dist.Normal(x[:, 0], 0.3))
            if factor is not None:
                pyro.factor("loss", factor * x[:, 0], has_rsample=False)

    exact = exact_elbo(X[:, 0], X[:, 0], 0.3)
    weights = ab.log_weights(model, guide, X, num_particles=500)
    assert ((weights.local.mean(1) - exact) / (weights.local.std(1) / math.sqrt(500))).abs().max() < 4
    torch.testing.assert_close(ab.elbo(model, guide, X, num_draws=500).value, exact, rtol=0, atol=0.15)  # 0.69 if it is
    with pytest.raises(ValueError, match=r"has_rsample=True\), got 'loss'.*hide=\['loss'\]"):
        ab.log_weights(lambda x, _: model(x), guide, X, 2.0)
    ab.log_weights(lambda x, _: model(x), pyro.poutine.block(guide, hide=["loss"]), X, 2.0)


def test_an_autoguide_of_shared_and_local_latents():
    """AutoNormal has an auxiliary draw of each latent, those outside the plate too."""

    def shifted(x):
        shift = pyro.sample("shift", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal((z + shift)[:, None], NOISE).to_event(1), obs=x)

    guide = AutoNormal(shifted, init_scale=0.1)
    guide(X)
    found = ab.elbo(shifted, guide, X, num_draws=100)
    total = found.value.sum()
    losses = torch.tensor([pyro.infer.Trace_ELBO().loss(shifted, guide, X) for _ in range(100)])
    assert abs(total + losses.mean()) < 4 * losses.std() / 10 * math.sqrt(2)


def test_a_plate_whose_subsample_is_the_data():
    """As in pyro.contrib.cevae: the data stand where places of points are expected."""

    def subsampled(x):
        with pyro.plate("data", len(x), subsample=x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Normal(z[:, None], NOISE).to_event(1), obs=x)

    def posterior(x):
        with pyro.plate("data", len(x), subsample=x):
            pyro.sample("z", dist.Normal(0.8 * x[:, 0], 0.2**0.5))

    weights = ab.log_weights(subsampled, posterior, X, num_particles=3)
    evidence = dist.Normal(0.0, math.hypot(1, NOISE)).log_prob(X[:, 0])
    torch.testing.assert_close(weights.local, evidence.expand(1, 3, -1))
