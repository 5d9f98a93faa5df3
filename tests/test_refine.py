"""Steps from the encoder's answer: where they lead on models with exact answers, and what they are compared with."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized_bayes as ab
from amortized_bayes import RefineSettings, refine
from amortized_bayes.inference import refine as refining
from amortized_bayes.joint import Gaussian

N, P, D = 40, 6, 3


def linear(seed=0):
    """A model with exact answers, its data, and Gaussians half a scale or so off the best."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ab.LinearGaussian(torch.randn(P, D), torch.randn(P), 0.7)
        x = torch.randn(N, P) @ torch.randn(P, P)
        start = Gaussian(torch.randn(N, D), torch.full((N, D), 0.8))
    return model, x, start


def exact_elbo(model, x, q):
    """In closed form: the ELBO of the mean and the variances of each point."""
    loading, offset, scale = model.weight.double(), model.bias.double(), float(model.scale)
    q = Gaussian(q.loc.double(), q.scale.double())
    residual = x.double() - q.loc @ loading.T - offset
    squares = residual.square().sum(-1) + (q.scale.square() @ loading.square().T).sum(-1)
    likelihood = -0.5 * squares / scale**2 - P * (math.log(scale) + 0.5 * math.log(2 * math.pi))
    kl = 0.5 * (q.loc.square() + q.scale.square() - 1 - 2 * q.scale.log()).sum(-1)
    return likelihood - kl


def test_what_is_reported_is_the_elbo_of_each_q():
    model, x, start = linear()
    found = refine(model, start, x, settings=RefineSettings(steps=(0, 3)))
    for row, q in ((0, start), (1, found.q)):
        z = (found.elbo[row] - exact_elbo(model, x, q)) / found.standard_error[row]
        assert abs(z.mean()) < 3 / math.sqrt(N)
        assert z.abs().max() < 5
    exact = exact_elbo(model, x, found.q) - exact_elbo(model, x, start)
    z = (found.gain[1] - exact) / found.gain_error[1]
    assert abs(z.mean()) < 3 / math.sqrt(N)


@pytest.mark.parametrize(("optimizer", "rate", "left"), [("natural", 0.7, 0.01), ("adam", 0.5, 0.05)])
def test_many_steps_lead_to_the_best_gaussian(optimizer, rate, left):
    model, x, start = linear()
    settings = RefineSettings(steps=(300,), optimizer=optimizer, learning_rate=rate, half_time=20.0)
    found = refine(model, start, x, settings=settings)
    behind = model.best_factorized_elbo(x) - exact_elbo(model, x, found.q)
    assert behind.min() > -1e-4
    assert behind.max() < left


def test_few_steps_win_most():
    """5 natural steps leave less than a tenth of the gap of the start, and 5 of Adam more."""
    model, x, start = linear()
    gap = model.best_factorized_elbo(x) - exact_elbo(model, x, start)
    for optimizer, most in (("natural", 0.1), ("adam", 1.0)):
        found = refine(model, start, x, settings=RefineSettings(steps=(5,), optimizer=optimizer))
        left = (model.best_factorized_elbo(x) - exact_elbo(model, x, found.q)).mean() / gap.mean()
        assert left < most
        if optimizer == "adam":
            assert left > 0.1


@pytest.mark.slow
def test_no_step_is_the_guide():
    model, x, _ = linear()
    sites = ab.latent_sites(model, x).local
    guide = ab.Amortized(sites, num_data=N, observed=P, width=8)
    found = refine(model, guide, x, settings=RefineSettings(steps=(0,)))
    assert found.steps == (0,)
    assert (found.gain == 0).all()
    of_guide = ab.elbo(model, guide, x, num_draws=2_000)
    difference = found.elbo[0].mean() - of_guide.value.double().mean()
    errors = (found.standard_error[0].square().sum() + of_guide.standard_error.square().sum()).sqrt() / N
    assert abs(difference) < 3 * errors


def test_steps_are_those_of_a_longer_run():
    """After 5 of 20 steps a q is where it is after 5 of 5, and the start is there whether asked for or not."""
    model, x, start = linear()
    long, short = (refine(model, start, x, settings=RefineSettings(steps=steps)) for steps in ((20, 5), (5,)))
    assert long.steps == (0, 5, 20)
    assert torch.equal(long.elbo[:2], short.elbo)
    assert (long.seconds.diff() > 0).all()


@pytest.mark.slow
def test_chunks_serve_their_own_points(monkeypatch):
    model, x, start = linear()
    monkeypatch.setattr(refining, "points_per_chunk", lambda *_: 7)
    found = refine(model, start, x, settings=RefineSettings(steps=(300,), half_time=20.0))
    assert found.elbo.shape == (2, N)
    assert (model.best_factorized_elbo(x) - exact_elbo(model, x, found.q)).max() < 0.01


def test_units_do_not_matter():
    """A latent of a tiny unit: steps are in units of q's own scale, and its posterior is known."""
    unit = 1e-4

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), unit))
            pyro.sample("x", dist.Normal(z[:, None], unit).expand([len(x), 3]).to_event(1), obs=x)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = unit * torch.randn(30, 3)
    found = refine(model, None, x, settings=RefineSettings(steps=(20,)))
    torch.testing.assert_close(found.q.loc[:, 0] / unit, x.sum(1) / 4 / unit, rtol=0, atol=0.02)
    torch.testing.assert_close(found.q.scale[:, 0] / unit, torch.full((30,), 0.5), rtol=0.02, atol=0)


@pytest.mark.slow
def test_supports_do_not_matter():
    def model(x):
        with pyro.plate("data", len(x)):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Gamma(20.0, 20.0 / scale[:, None]).expand([len(x), 4]).to_event(1), obs=x)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.distributions.Gamma(20.0, 20.0).sample((30, 4))
    found = refine(model, None, x, settings=RefineSettings(steps=(50,)))
    best = ab.optimize_local(model, None, x)
    assert abs((best.elbo_star - found.elbo[-1]).mean()) < 0.02
    assert found.gain[-1].mean() > 1


def test_gains_are_of_common_draws():
    model, x, start = linear()
    found = refine(model, start, x, settings=RefineSettings(steps=(1,), learning_rate=0.01))
    apart = torch.hypot(*found.standard_error)
    assert (found.gain_error[1] < 0.3 * apart).all()


def test_a_start_far_away_is_no_harm():
    model, x, start = linear()
    found = refine(model, Gaussian(start.loc + 30, start.scale / 10), x, settings=RefineSettings(steps=(1, 5, 50, 400)))
    assert (found.elbo.diff(dim=0) > 0).all()


def test_a_q_that_is_no_number_stops_it(monkeypatch):
    model, x, start = linear()
    step = refining._Chunk._step

    def poisoned(chunk, family, rows, moments, number):
        return step(chunk, family, rows, moments, number) * (math.nan if number == 2 else 1)

    monkeypatch.setattr(refining._Chunk, "_step", poisoned)
    with pytest.raises(ab.Divergence, match="not finite after step 5"):
        refine(model, start, x, settings=RefineSettings(steps=(5,)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": ()}, "expected steps with one or more different values"),
        ({"steps": (1, 1)}, "different values"),
        ({"steps": (-1,)}, "expected steps of 0 or more"),
        ({"num_samples": 5}, "draws come in pairs, got 5"),
        ({"optimizer": "sgd"}, "natural"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        RefineSettings(**settings)
