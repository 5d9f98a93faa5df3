"""Importance weights in blocks: the numbers of all at once, in memory that does not grow with them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from bit_models import Belief, Encoder
from shared_shift import EVERY, N, SharedShift, rows_near_the_optimum
from torch.distributions import Independent, Normal, kl_divergence

from amortized_bayes.evaluation import bounds, streaming
from amortized_bayes.evaluation.bounds import iwae
from amortized_bayes.evaluation.streaming import LogMeanExp, weight_blocks
from amortized_bayes.guides import Amortized, Constant, MeanField
from amortized_bayes.joint import joint_density, read_start
from amortized_bayes.models import DeepGenerative, LinearGaussian
from amortized_bayes.sites import latent_sites

UNEVEN = (1, 7, 300, 92, 2)


def cut(values, sizes=UNEVEN):
    mean = LogMeanExp()
    for block in values.split(sizes):
        mean.add(block)
    return mean


# Sums kept as logarithms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, -5_000.0, 5_000.0])
def test_blocks_give_the_log_mean_and_the_error_of_all_at_once(dtype, shift):
    values = (torch.randn(402, 9, dtype=torch.float64) * torch.linspace(0.1, 8, 9) + shift).to(dtype)
    mean = cut(values)
    whole = values.double()
    assert mean.count == 402
    assert mean.value.dtype == torch.float64
    torch.testing.assert_close(mean.value, whole.logsumexp(0) - math.log(402), rtol=0, atol=1e-9)
    torch.testing.assert_close(mean.standard_error, bounds._log_mean_exp(whole)[1], rtol=1e-6, atol=1e-9)


def test_the_order_and_the_sizes_of_blocks_do_not_matter():
    values = 3 * torch.randn(402, 5, dtype=torch.float64)
    first, second = cut(values), cut(values.flip(0), (401, 1))
    torch.testing.assert_close(first.value, second.value)
    torch.testing.assert_close(first.standard_error, second.standard_error)


def test_the_error_is_calibrated():
    """Log-normal weights, whose mean is known: the error is the spread of estimates."""
    scores = []
    for _ in range(40):
        mean = cut(0.7 * torch.randn(402, 50, dtype=torch.float64))
        scores.append((mean.value - 0.5 * 0.7**2) / mean.standard_error)
    assert torch.stack(scores).square().mean().item() == pytest.approx(1, abs=0.15)


def test_equal_weights_have_no_error_and_one_has_none_to_give():
    mean = cut(torch.full((402, 3), -1_234.5))
    torch.testing.assert_close(mean.value, torch.full((3,), -1_234.5, dtype=torch.float64))
    assert mean.standard_error.max() < 1e-7
    assert cut(torch.zeros(1, 3), (1,)).standard_error.isnan().all()


def test_weights_of_zero_count():
    values = torch.zeros(4, 2, dtype=torch.float64)
    values[:2, 0] = -math.inf
    mean = cut(values, (2, 2))
    torch.testing.assert_close(mean.value, torch.tensor([math.log(0.5), 0.0], dtype=torch.float64))
    torch.testing.assert_close(mean.standard_error, bounds._log_mean_exp(values)[1])


# Weights in blocks ----------------------------------------------------------------------------------------------------


def weights(joint, guide, count, max_rows=20_000):
    blocks = list(weight_blocks(joint, guide, count, max_rows))
    return torch.cat(blocks), [len(b) for b in blocks]


def by_the_seam(monkeypatch):
    """Take every guide for one that is no factorized Gaussian."""
    monkeypatch.setattr(streaming, "read_start", lambda *_: None)


@pytest.mark.parametrize("way", ["read off", "seam"])
def test_weights_have_the_mean_and_the_evidence_in_closed_form(linear_problem, monkeypatch, way):
    """E log w is the ELBO of q, and E w is the evidence, whichever way the draws are made."""
    model, x, _ = linear_problem
    guide = rows_near_the_optimum(model, x, excess=0.7)
    joint = joint_density(model, x, EVERY)
    q = read_start(joint, guide)
    assert q is not None
    evidence = model.log_evidence(x)
    exact = evidence - kl_divergence(Independent(Normal(q.loc, q.scale), 1), model.posterior(x))
    if way == "seam":
        by_the_seam(monkeypatch)
    found, sizes = weights(joint, guide, 5_003)
    assert found.shape == (5_003, N)
    assert len(set(sizes[:-1])) == 1
    assert 0 < sizes[-1] < sizes[0]
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - exact) / error).abs().max() < 4
    mean = cut(found, (5_000, 3))
    assert ((mean.value - evidence) / mean.standard_error).abs().max() < 4
    assert (evidence - exact).min() > 10 * error.max()  # or either would pass for the other


def test_both_ways_have_the_same_law(linear_problem, monkeypatch):
    model, x, _ = linear_problem
    guide = rows_near_the_optimum(model, x, excess=0.7)
    joint = joint_density(model, x, EVERY)
    one, _ = weights(joint, guide, 4_000)
    by_the_seam(monkeypatch)
    other, _ = weights(joint, guide, 4_000)
    assert not torch.equal(one, other)
    for power in (1, 2):
        first, second = ((w - one.mean(0)) ** power for w in (one, other))
        error = (first.var(0) + second.var(0)).sqrt() / math.sqrt(4_000)
        assert ((first.mean(0) - second.mean(0)) / error).abs().max() < 4


def test_an_amortized_guide_is_read_off_and_run_only_to_read_it(linear_problem):
    model, x, _ = linear_problem
    guide = Amortized(latent_sites(model, x).local, N, 5, width=8)
    runs = []

    def counted(x, index=None):
        runs.append(len(x))
        return guide(x, index)

    found, _ = weights(joint_density(model, x, EVERY), counted, 3_000)
    assert found.shape == (3_000, N)
    assert runs == [N, N]


def test_a_replayed_graph_gives_the_numbers_of_the_program(linear_problem, request):
    model, x, _ = linear_problem
    joint, guide = joint_density(model, x, EVERY), rows_near_the_optimum(model, x)
    torch.manual_seed(5)
    plain, _ = weights(joint, guide, 700)  # of few calls
    request.getfixturevalue("captured")
    torch.manual_seed(5)
    replayed, _ = weights(joint, guide, 700)
    torch.testing.assert_close(replayed, plain, rtol=1e-12, atol=1e-10)


def test_no_gradients_are_kept(linear_problem):
    model, x, _ = linear_problem
    found, _ = weights(joint_density(model, x, EVERY), rows_near_the_optimum(model, x), 20)
    assert not found.requires_grad
    assert torch.is_grad_enabled()


# IWAE -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("excess", [0.5, 0.9])
@pytest.mark.parametrize("way", ["read off", "seam"])
def test_streamed_iwae_is_the_unstreamed_one(linear_problem, monkeypatch, excess, way):
    model, x, _ = linear_problem
    guide = rows_near_the_optimum(model, x, excess)
    if way == "seam":
        by_the_seam(monkeypatch)
    streamed = iwae(model, guide, x, EVERY, num_particles=3_001)
    monkeypatch.setattr(bounds, "STREAM_ABOVE", 10_000)
    monkeypatch.setattr(streaming, "weight_blocks", None)
    whole = iwae(model, guide, x, EVERY, num_particles=3_001)
    error = torch.hypot(streamed.standard_error, whole.standard_error)
    assert ((streamed.value - whole.value) / error).abs().max() < 4
    torch.testing.assert_close(streamed.standard_error, whole.standard_error, rtol=0.2, atol=0)


def test_streamed_iwae_lies_below_the_evidence(linear_problem):
    """Of narrow q's, whose weights vary much, by more than the error; of wide ones by less."""
    model, x, _ = linear_problem
    x = x.repeat(40, 1)
    evidence, best = model.log_evidence(x), model.best_factorized_elbo(x)
    gaps = [
        evidence - iwae(model, rows_near_the_optimum(model, x, excess), x, num_particles=1_001).value
        for excess in (-0.5, 0.7)
    ]
    errors = [gap.std() / math.sqrt(len(x)) for gap in gaps]
    assert gaps[0].mean() > 4 * errors[0]
    assert gaps[1].mean() > -4 * errors[1]
    assert gaps[1].abs().mean() < 0.1 * (evidence - best).mean()


@pytest.mark.parametrize("draws", [1, 3])
def test_streamed_iwae_of_the_exact_posterior_is_the_evidence(linear_problem, draws):
    model, x, guide = linear_problem
    assert read_start(joint_density(model, x), guide) is None  # its factors are correlated
    found = iwae(model, guide, x, num_particles=1_500, num_shared=draws)
    torch.testing.assert_close(found.value, model.log_evidence(x), rtol=0, atol=1e-9)
    assert found.standard_error.max() < 1e-7


@pytest.mark.parametrize("way", ["index", "keyword", "none"])
@pytest.mark.slow_cases("keyword", "none")
def test_points_keep_their_places_over_chunks(float64, way):
    """More points than are streamed at once, each with a q of its own."""
    count = 2 * bounds.POINTS_STREAMED + 50
    model = LinearGaussian(torch.tensor([[1.0, 0.4], [0.2, 1.0], [0.5, 0.5]]), torch.zeros(3), 0.7, num_data=count)
    x = 3 * torch.randn(count, 3)
    guide = rows_near_the_optimum(model, x, excess=0.7)
    every = torch.arange(count)
    args, kwargs = ((x, every) if way == "index" else (x,)), ({"index": every} if way == "keyword" else {})
    found = iwae(model, guide, *args, num_particles=1_200, **kwargs)
    assert found.value.shape == (count,)
    assert ((found.value - model.log_evidence(x)) / found.standard_error).abs().max() < 5
    assert found.standard_error.max() < 0.1


@pytest.mark.parametrize(("with_index", "num_data"), [(True, None), (False, 600)])
@pytest.mark.slow_cases("True-None")
def test_streamed_iwae_with_a_shared_latent_takes_a_share_of_its_divergence(linear_problem, with_index, num_data):
    model, x = SharedShift(linear_problem.model), linear_problem.x
    loc, variance = 0.1 * torch.arange(5.0), 0.05
    args = (x, EVERY) if with_index else (x,)
    options = {} if num_data is None else {"num_data": num_data}
    found = iwae(model, model.guide(loc, variance), *args, num_particles=1_001, num_shared=60, **options)
    exact = model.expected_log_evidence(x, loc, variance) - model.shared_kl(loc, variance) / (num_data or N)
    assert ((found.value - exact) / found.standard_error).abs().max() < 4
    assert found.standard_error.max() < 0.2
    assert found.standard_error.min() > 0.005  # over theta, of which each draw is another


@pytest.mark.slow
def test_streamed_iwae_of_a_bayesian_decoder_is_the_unstreamed_one(float64, monkeypatch):
    model = DeepGenerative(5, 2, [4], N)
    x = torch.bernoulli(torch.full((N, 5), 0.5))
    sites = latent_sites(model, x)
    guide = Constant(sites.local, N, shared=MeanField(sites.shared, locs=sites.shared_draw, log_scale=-2.5))
    streamed = iwae(model, guide, x, EVERY, num_particles=1_001, num_shared=20)
    monkeypatch.setattr(bounds, "STREAM_ABOVE", 10_000)
    whole = iwae(model, guide, x, EVERY, num_particles=300, num_shared=200)
    error = torch.hypot(streamed.standard_error, whole.standard_error)
    assert ((streamed.value - whole.value) / error).abs().max() < 4
    share = (iwae(model, guide, x, EVERY, num_particles=1, num_shared=50, num_data=10**9).value - whole.value).mean()
    assert share.abs() > 4 * error.mean()  # that of theta, without which the two would differ


@pytest.mark.parametrize("way", ["read off", "seam"])
@pytest.mark.parametrize("max_rows", [20_000, 500, 5])
@pytest.mark.slow_cases("5-seam")
def test_memory_does_not_grow_with_particles(linear_problem, monkeypatch, way, max_rows):
    model, x, _ = linear_problem
    guide = rows_near_the_optimum(model, x)
    seen = []

    def watched(x, index=None):
        seen.append(len(x))
        return model(x, index)

    if way == "seam":
        by_the_seam(monkeypatch)
    largest = {}
    for particles in (1_001, 1_500, 3_000) if max_rows > 5 else (1_001,):
        found = iwae(watched, guide, x, EVERY, num_particles=particles, max_rows=max_rows)
        assert found.value.isfinite().all()
        largest[particles] = max(seen)
        seen.clear()
    assert max(largest.values()) <= max(2 * N, max_rows)  # two of each: what the density is checked on
    if way == "read off" or max_rows < 20_000:
        assert len(set(largest.values())) == 1
    if way == "read off":
        assert max(largest.values()) <= streaming.ROWS_AT_ONCE


@pytest.mark.parametrize("count", [1_001, 1_999, 2_000])
def test_every_particle_counts_once(linear_problem, monkeypatch, count):
    model, x, _ = linear_problem
    counts = []

    class Counted(LogMeanExp):
        def add(self, block):
            super().add(block)
            counts.append((self.count, block.shape[1]))

    monkeypatch.setattr(streaming, "LogMeanExp", Counted)
    iwae(model, rows_near_the_optimum(model, x), x, EVERY, num_particles=count)
    assert counts[-1] == (count, N)


def test_up_to_a_thousand_particles_are_taken_at_once(linear_problem, monkeypatch):
    model, x, _ = linear_problem
    monkeypatch.setattr(streaming, "weight_blocks", None)
    guide = rows_near_the_optimum(model, x)
    assert iwae(model, guide, x, EVERY, num_particles=1_000).value.shape == (N,)
    with pytest.raises(TypeError):
        iwae(model, guide, x, EVERY, num_particles=1_001)


# Weights of what chains could not walk in -----------------------------------------------------------------------------


def switched(x):
    """A shared shift, and a switch of each point."""
    shift = pyro.sample("shift", dist.Normal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        on = pyro.sample("on", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(shift + 2 * on, 1.0), obs=x)


def log_terms(x, shift):
    """Log p(x, on | shift), on the last dimension."""
    on = torch.tensor([0.0, 1.0])
    return dist.Normal(shift + 2 * on, 1.0).log_prob(x[:, None]) + torch.tensor([0.7, 0.3]).log()


def switching(shift, logits):
    def guide(x):
        drawn = pyro.sample("shift", shift)
        with pyro.plate("data", len(x)):
            pyro.sample("on", dist.Bernoulli(logits=logits(x, drawn)))

    return guide


def test_discrete_draws_are_streamed_as_they_are_unstreamed(float64):
    """With the exact posterior given theta each weight is p(x | theta), however many there are."""
    x, q = torch.linspace(-2, 4, 7), dist.Normal(0.4, 0.2)
    guide = switching(q, lambda x, shift: log_terms(x, shift).diff(dim=-1)[:, 0])
    found = []
    for particles in (3, 1_001, 2_500):
        torch.manual_seed(0)
        found.append(iwae(switched, guide, x, num_particles=particles, num_shared=2))
    for one in found[1:]:
        torch.testing.assert_close(one.value, found[0].value, rtol=0, atol=1e-9)
        torch.testing.assert_close(one.standard_error, found[0].standard_error, rtol=1e-6, atol=1e-9)


def test_streamed_weights_of_discrete_draws_have_the_evidence_for_their_mean(float64):
    """And an error that is that of a share: weights have two values."""
    x, at = torch.linspace(-2, 4, 7), 0.4
    fixed = switching(dist.Delta(torch.tensor(at)), lambda x, shift: 0 * x)
    model = pyro.poutine.condition(switched, data={"shift": torch.tensor(at)})
    guide = pyro.poutine.block(fixed, hide=["shift"])
    found = iwae(model, guide, x, num_particles=4_001)
    terms = log_terms(x, at)
    exact, share = terms.logsumexp(-1), terms.softmax(-1)[:, 0]
    exact = exact + dist.Normal(0.0, 0.5).log_prob(torch.tensor(at)) / len(x)
    error = (2 * share - 1).abs() / math.sqrt(4_001)
    torch.testing.assert_close(found.standard_error, error, rtol=0.1, atol=1e-4)
    assert ((found.value - exact) / error).abs().max() < 4


def test_bits_are_read_off_and_have_the_evidence_for_their_mean(monkeypatch):
    """Every weight is drawn from the log odds: none by the seam."""
    model, guide = Belief(4), Encoder(4)
    x = model.simulate(40)
    monkeypatch.setattr(streaming, "draw_weights", None)
    torch.manual_seed(0)
    found = iwae(model, guide, x, num_particles=4_001)
    z = (found.value - model.table(x).logsumexp(1)) / found.standard_error
    assert z.isnan().sum() < 4  # where the largest weight may have no variance
    assert abs(z.nanmean()) < 3 / math.sqrt(40)
    assert z.nan_to_num().abs().max() < 4.5


def half_marked(x):
    half = torch.full((len(x),), 0.5)
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(half), infer={"enumerate": "parallel"})
        b = pyro.sample("b", dist.Bernoulli(half))
        pyro.sample("x", dist.Normal(a + 2 * b, 1.0), obs=x)


@pytest.mark.parametrize("names", ["b", "ab"])
def test_bits_that_are_marked_are_summed_or_drawn_as_the_guide_has_them(float64, names):
    def guide(x):
        with pyro.plate("data", len(x)):
            for name in names:
                pyro.sample(name, dist.Bernoulli(logits=x - 0.5))

    x = torch.linspace(-1, 3, 20)
    exact = Normal(torch.arange(4.0), 1.0).log_prob(x[:, None]).logsumexp(1) - math.log(4)
    torch.manual_seed(0)
    found = iwae(half_marked, guide, x, num_particles=2_001)
    z = (found.value - exact) / found.standard_error
    assert abs(z.nanmean()) < 3 / math.sqrt(20)
    assert z.isfinite().any()


def test_other_refusals_are_no_reason_to_take_the_slower_way(linear_problem, monkeypatch):
    model, x, _ = linear_problem

    def refuse(*_, **__):
        raise ValueError("no density")

    monkeypatch.setattr(streaming, "joint_density", refuse)
    with pytest.raises(ValueError, match="no density"):
        iwae(model, rows_near_the_optimum(model, x), x, EVERY, num_particles=1_001)
