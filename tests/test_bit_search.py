"""The best product of Bernoullis of each point: against a closed form, brute force, and by sampled differences."""

import pytest
import torch
from bit_models import Apart, Belief, Counted, Encoder, Looked, NoisyOr, all_codes

from amortized_bayes.inference import bit_search, mean_field
from amortized_bayes.inference.bit_search import optimize_bits, search_bits
from amortized_bayes.inference.mean_field import best_product, elbo_of_codes
from amortized_bayes.inference.settings import LocalSettings
from amortized_bayes.joint import Bernoullis, code_values, codes_of, joint_density
from amortized_bayes.models import TwoBitMixture

MEANS = torch.tensor([[[1.0, 1.2], [1.4, -1.0]], [[-1.3, 0.8], [-0.5, -1.6]]], dtype=torch.float64)
OPPOSED = torch.tensor([[[2.0], [-2.0]], [[-2.1], [1.9]]], dtype=torch.float64)
"""Bits that agree or differ: there are two products for each x."""


def elbo_by_hand(table, logits):
    codes = all_codes(logits.shape[1])
    log_q = torch.distributions.Bernoulli(logits=logits[:, None]).log_prob(codes).sum(-1)
    return (log_q.exp() * (table - log_q)).sum(1)


def climbed(table, starts):
    """The best of many gradient climbs, by L-BFGS on log odds, (B,)."""
    alpha = starts.clone().requires_grad_()
    wide = table.repeat(len(starts), 1)

    def loss():
        alpha.grad = None
        total = -elbo_by_hand(wide, alpha.flatten(0, 1)).sum()
        total.backward()
        return total

    search = torch.optim.LBFGS([alpha], lr=0.5, max_iter=400, tolerance_grad=1e-9, line_search_fn="strong_wolfe")
    search.step(loss)
    return elbo_by_hand(wide, alpha.detach().flatten(0, 1)).reshape(len(starts), -1).amax(0)


@pytest.mark.parametrize("means", [MEANS, OPPOSED], ids=["one optimum", "two optima"])
def test_two_bits_have_the_optimum_that_is_known(means):
    model = TwoBitMixture(means, 1.0)
    x, _ = model.simulate(200, seed=0)
    table = model.log_joint(x).flatten(1)
    found = best_product(table, torch.zeros(0, len(x), 2), torch.Generator())
    torch.testing.assert_close(found.elbo, model.best_factorized(x).elbo, rtol=0, atol=1e-9)
    torch.testing.assert_close(elbo_of_codes(table, found.logits), model.factorized_elbo(x, found.logits))
    assert found.residual.max() < 1e-9
    assert (found.spread > 1e-3).any() == (means is OPPOSED)


@pytest.mark.parametrize("model", [Belief(6), Belief(6, steep=5.0), NoisyOr(6), Looked(5)])
@pytest.mark.slow_cases("model1", "model2", "model3")
def test_no_climb_from_thirty_starts_finds_a_better_one(model):
    x = model.simulate(20)
    table, num_bits = model.table(x).detach(), len(model.prior)
    found = best_product(table, torch.zeros(0, len(x), num_bits), torch.Generator().manual_seed(0))
    starts = 2 * torch.randn(30, len(x), num_bits, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert (climbed(table, starts) - found.elbo).max() < 1e-4
    torch.testing.assert_close(found.elbo, elbo_by_hand(table, found.logits.clamp(-500, 500)))
    assert (found.elbo <= table.logsumexp(1) + 1e-12).all()


def test_codes_are_read_as_they_are_written():
    codes = torch.arange(16).reshape(2, 8)
    assert torch.equal(code_values(codes[0, 6], 4), torch.tensor([0, 1, 1, 0]))
    assert torch.equal(codes_of(code_values(codes, 4).double()), codes)


def test_a_start_is_left_only_for_a_better_one():
    model = Belief(5)
    x = model.simulate(10)
    best = best_product(model.table(x), torch.zeros(0, 10, 5), torch.Generator())
    again = best_product(model.table(x), best.logits[None], torch.Generator())
    assert (again.elbo >= elbo_of_codes(model.table(x), best.logits)).all()


def test_independent_bits_are_found_exactly():
    model = Apart(5)
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = optimize_bits(model, None, x)
    torch.testing.assert_close(found.logits, model.prior + x - 0.5)
    torch.testing.assert_close(found.elbo_star, model.table(x).logsumexp(1))


def test_codes_that_cannot_be_are_left_out():
    model = Counted(4)
    table = model.table(model.simulate(60))
    assert (table == -torch.inf).any(1).sum() > 20
    found = best_product(table, torch.zeros(0, len(table), 4), torch.Generator())
    assert found.elbo.isfinite().all()
    assert (found.elbo >= table.amax(1) - 1e-12).all()  # a single code is a product too
    impossible = (table == -torch.inf).any(1)
    assert torch.equal(elbo_of_codes(table, torch.zeros(len(table), 4)) == -torch.inf, impossible)


@pytest.mark.parametrize("model", [Belief(8), NoisyOr(8)], ids=["belief", "noisy-or"])
def test_sampled_differences_come_to_the_optimum(model):
    x = model.simulate(30)
    table = model.table(x)
    exact = best_product(table, torch.zeros(0, len(x), 8), torch.Generator())
    joint = joint_density(model, x, bits=True)
    found = search_bits(joint, None, LocalSettings(num_score=2000), seed=0)
    reached = elbo_of_codes(table, found.logits)
    assert (exact.elbo - reached).mean() < 0.02
    z = (found.elbo_star - reached) / found.standard_error
    assert z.abs().max() < 4
    assert abs(z.mean()) < 3 / len(x) ** 0.5
    assert (found.residual - 3 * found.residual_error).max() < 0.02


@pytest.mark.parametrize("at_best", [False, True])
def test_the_residual_is_what_summing_gives(at_best):
    """At the best product it is 0, where the square of a noisy mean is not."""
    model = Belief(6)
    x = model.simulate(60)
    table = model.table(x)
    logits = Encoder(6).net(x).detach()
    if at_best:
        logits = best_product(table, logits[None], torch.Generator()).logits.clamp(-20, 20)
    exact = mean_field.residual_of(logits, mean_field._sweep(table[:, None], logits[:, None], follow=False)[:, 0])
    joint = joint_density(model, x, bits=True)
    generator = torch.Generator().manual_seed(0)
    steps = bit_search._differences(
        lambda z: joint(z.flatten(0, -3)).reshape(z.shape[:-1]), logits[None], torch.arange(6), 50, generator
    )[:, 0]
    found, error = bit_search._residual(logits, steps)
    away = found - exact
    assert abs(away.mean()) < 3 * away.std() / len(x) ** 0.5
    assert 0.3 < away.std() / error.square().mean().sqrt() < 3


def test_continuous_latents_are_refused():
    import pyro
    import pyro.distributions as dist

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="latents that are bits, got continuous ones"):
        optimize_bits(model, None, torch.zeros(3))


def test_a_guide_and_its_log_odds_are_the_same_start():
    model = Belief(4)
    x, guide = model.simulate(6), Encoder(4)
    both = [optimize_bits(model, start, x, sum_up_to=0) for start in (guide, Bernoullis(guide.net(x).detach()))]
    torch.testing.assert_close(both[0].elbo_star, both[1].elbo_star)
