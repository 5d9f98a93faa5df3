"""AIS of bits against the sum over all codes, forwards and backwards, and its transitions against detailed balance."""

import math

import pytest
import torch
from bit_models import Belief, Counted, Encoder, Looked, NoisyOr, all_codes

import amortized_bayes as ab
from amortized_bayes.evaluation.bdmc import simulated_points
from amortized_bayes.evaluation.bit_flips import flip_transition
from amortized_bayes.evaluation.hmc import PathEnds, start_chains
from amortized_bayes.joint import joint_density


def path(model, x):
    """Both ends of a path from even codes to p(x, z), as a function of z (C, B, D), with gradients."""

    def density(z):
        z = z.detach().requires_grad_()
        log_prior = torch.distributions.Bernoulli(logits=model.prior, validate_args=False).log_prob(z).sum(-1)
        log_end = log_prior + model.likelihood(z).log_prob(x).sum(-1)
        (slope,) = torch.autograd.grad(log_end.sum(), z)
        even = torch.full_like(log_end, -z.shape[-1] * math.log(2)).detach()
        return PathEnds(even, log_end.detach(), torch.zeros_like(z).detach(), slope)

    return density


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("beta", [0.3, 1.0])
@pytest.mark.parametrize("model", [Belief(3), Looked(3)], ids=["slopes", "blind"])
@pytest.mark.slow_cases(
    "blind-0.3-1", "blind-0.3-2", "blind-1.0-2", "slopes-0.3-1", "slopes-0.3-2", "slopes-1.0-1", "slopes-1.0-2"
)
def test_a_transition_keeps_the_density_and_is_reversible(model, beta, num_steps):
    """Of draws of f_beta as many go from one code to another as come back."""
    num, codes, x = 400_000, all_codes(3), model.simulate(1)
    density = path(model, x)
    log_f = density(codes[:, None]).log_density(torch.tensor(beta))[:, 0]
    generator = torch.Generator().manual_seed(0)
    before = torch.multinomial(log_f.softmax(0), num, replacement=True, generator=generator)
    state = start_chains(density, codes[before][:, None])
    one, step = torch.tensor(beta, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    state, info = flip_transition(density, state, one, step, torch.ones(1, 3).double(), num_steps, generator)
    after = (state.z[:, 0].long() * torch.tensor([4, 2, 1])).sum(-1)
    counts = torch.zeros(8, 8, dtype=torch.float64).index_put_((before, after), torch.ones(num).double(), True)
    assert counts.diagonal().sum() < 0.9 * num
    z = (counts - counts.T) / (counts + counts.T).sqrt()
    often = (counts + counts.T > 20).triu(1)
    assert often.sum() > 5
    assert z[often].square().sum() < often.sum() + 4 * (2 * often.sum()).sqrt()
    flow = (counts.sum(0) - counts.sum(1)) / (counts + counts.T - 2 * counts.diag().diag()).sum(0).sqrt()
    assert flow.nan_to_num().abs().max() < 3.5  # a code that no draw has had has no flow
    torch.testing.assert_close(state.ends.log_end[:, 0], log_end_of(density, state.z)[:, 0])
    assert 0 < info.acceptance.mean() <= 1


def log_end_of(density, z):
    return density(z).log_end


MODELS = {"belief": lambda: (Belief(8), 8), "noisy-or": lambda: (NoisyOr(8), 8), "no gradient": lambda: (Looked(4), 40)}
"""With how many temperatures: blind flips leave heavy tails at few."""


@pytest.mark.parametrize("start", ["guide", "prior"])
@pytest.mark.parametrize("name", MODELS)
def test_both_walks_have_the_evidence_as_their_mean(name, start):
    """E[w] = p(x) forwards and E[1/w] = 1/p(x) backwards, at any number of temperatures."""
    model, num_temperatures = MODELS[name]()
    x = model.simulate(600)
    guide = Encoder(len(model.prior), x.shape[1])
    settings = ab.AISSettings(num_chains=4, num_temperatures=num_temperatures, num_pilot=8, start=start)
    found = ab.bdmc(model, guide, x, settings=settings, certificate=ab.CertificateSettings(600), seed=1)
    joint, _ = simulated_points(joint_density(model, x, bits=True), 600, 1, "simulate")
    log_p = model.table(joint.leaves[0]).logsumexp(1)
    for ratio in ((found.lower - log_p).exp(), (log_p - found.upper).exp()):
        error = ratio.std() / math.sqrt(len(ratio))
        assert abs(ratio.mean() - 1) < 3 * error
        assert 1e-4 < error < 0.1
    assert found.mean_gap >= 0
    assert 0.2 < found.acceptance.mean() < 1


@pytest.mark.parametrize("start", ["guide", "prior"])
@pytest.mark.slow
def test_bounds_close_in_on_the_sum_over_all_codes(start):
    model = Belief(10)
    x = model.simulate(100)
    guide = Encoder(10)
    settings = ab.AISSettings(num_temperatures=200, start=start)
    found = ab.ais(model, guide, x, settings=settings)
    log_p = model.table(x).logsumexp(1)
    away = found.log_p - log_p
    assert abs(away.mean()) < 3 * away.std() / 10
    assert away.abs().mean() < 0.1
    assert ab.bdmc(model, guide, x, settings=settings, certificate=ab.CertificateSettings(100)).mean_gap < 0.1


def test_codes_that_cannot_be_have_no_weight():
    model = Counted(5)
    x = model.simulate(300)
    found = ab.ais(model, Encoder(5), x, settings=ab.AISSettings(num_temperatures=50))
    log_p = model.table(x).logsumexp(1)
    ratio = (found.log_p - log_p).exp()
    assert abs(ratio.mean() - 1) < 3 * ratio.std() / math.sqrt(len(ratio))


def test_a_guide_of_dependent_bits_is_a_start_by_its_frequencies():
    import pyro
    import pyro.distributions as dist

    def guide(x):
        with pyro.plate("data", len(x)):
            first = pyro.sample("a", dist.Bernoulli(torch.full((len(x),), 0.5).double()))
            pyro.sample("b", dist.Bernoulli(0.1 + 0.8 * first))

    def model(x):
        half = torch.full((len(x),), 0.5).double()
        with pyro.plate("data", len(x)):
            a, b = (pyro.sample(name, dist.Bernoulli(half)) for name in "ab")
            pyro.sample("x", dist.Normal(2 * a + b, 1.0), obs=x)

    x = torch.linspace(-1, 4, 40).double()
    normals = torch.distributions.Normal(torch.arange(4.0).double(), 1.0)
    log_p = normals.log_prob(x[:, None]).logsumexp(1) - math.log(4)
    found = ab.ais(model, guide, x, settings=ab.AISSettings(num_temperatures=100))
    assert ((found.log_p - log_p).mean()).abs() < 0.05


def test_starts_of_another_kind_are_refused():
    model, x = Belief(3), Belief(3).simulate(5)
    from amortized_bayes.joint import Bernoullis, Gaussian

    zeros = torch.zeros(5, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="a start for bits, got Gaussians"):
        ab.ais(model, Gaussian(zeros, zeros + 1), x)
    with pytest.raises(ValueError, match=r"log odds of shape \(5, 3\)"):
        ab.ais(model, Bernoullis(zeros[:4]), x)
    assert ab.ais(model, Bernoullis(zeros), x, settings=ab.AISSettings(num_temperatures=10)).log_p.isfinite().all()
