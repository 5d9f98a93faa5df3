"""Discrete latents inside the plate, summed out: every number against a sum written by hand."""

import itertools
import math
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from enumerated_models import (
    LENGTHS,
    LOCS,
    LOGITS,
    MEANS,
    PARALLEL,
    WORDS,
    components,
    gaussian_guide,
    log_components,
    mixture,
    mixture_by_hand,
    nothing,
    points,
    topics,
    topics_guide,
)
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate

import amortized_bayes as ab
from amortized_bayes.enumeration import tracing
from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.weights import draw_weights

pytestmark = pytest.mark.usefixtures("float64")

pytestmark = pytest.mark.usefixtures("float64")


def test_a_mixture_without_other_latents_is_its_evidence():
    x = points()
    weights = ab.log_weights(components, nothing, x, num_particles=3)
    assert weights.local.shape == (1, 3, 6)
    torch.testing.assert_close(weights.local, log_components(x).expand(1, 3, 6))
    torch.testing.assert_close(weights.log_prior, torch.zeros(1, 3, 6))
    assert -TraceEnum_ELBO(max_plate_nesting=1).loss(components, nothing, x) == pytest.approx(weights.local[0, 0].sum())
    torch.testing.assert_close(ab.log_weights(components, nothing, x[:1]).local[0, 0], log_components(x[:1]))


def test_a_plate_without_a_size():
    @config_enumerate
    def unsized(x):
        with pyro.plate("data"):
            k = pyro.sample("k", dist.Categorical(logits=LOGITS.expand(len(x), -1)))
            pyro.sample("x", dist.Normal(LOCS[k], 0.7).to_event(1), obs=x)

    x = points()
    weights = ab.log_weights(unsized, nothing, x, num_particles=3)
    torch.testing.assert_close(weights.local, log_components(x).expand(1, 3, 6))


def test_log_weights_are_those_of_the_marginal_model():
    found = []
    for model in (mixture, mixture_by_hand):
        torch.manual_seed(4)
        found.append(ab.log_weights(model, gaussian_guide, points(), num_particles=5, num_shared=2))
    for ours, by_hand in zip(*found, strict=True):
        torch.testing.assert_close(ours, by_hand)
    assert (found[0].log_prior.std(1) > 0.1).all()


def test_the_elbo_in_total_is_pyros():
    x, losses = points(), []
    for loss in (
        lambda: -expected_log_weights(mixture, gaussian_guide, x, analytic_kl=False).local.sum().item(),
        lambda: TraceEnum_ELBO(max_plate_nesting=1).loss(mixture, gaussian_guide, x),
    ):
        torch.manual_seed(5)
        losses.append(loss())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_first_and_later_runs_use_the_same_random_numbers():
    def model(x):
        return mixture(x)

    runs = []
    for _ in range(2):
        torch.manual_seed(6)
        runs.append(draw_weights(model, gaussian_guide, points()).local)
        assert model in tracing._depths
    torch.testing.assert_close(*runs, rtol=0, atol=0)


def test_two_sites_that_depend_on_each_other_by_brute_force():
    x, mask = points(), torch.tensor([True, False, True, True, False, True])
    p = torch.tensor([0.3, 0.8], dtype=torch.float64)

    @config_enumerate
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.4))
            b = pyro.sample("b", dist.Bernoulli(p[a.long()]))
            with poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(a - 2 * b, 1.0), obs=x[:, 0])
            pyro.sample("y", dist.Normal(3 * b, 0.5), obs=x[:, 1])

    terms = []
    for a, b in itertools.product((0.0, 1.0), repeat=2):
        a, b = torch.tensor(a), torch.tensor(b)
        prior = dist.Bernoulli(0.4).log_prob(a) + dist.Bernoulli(p[a.long()]).log_prob(b)
        seen = torch.where(mask, dist.Normal(a - 2 * b, 1.0).log_prob(x[:, 0]), torch.zeros(()))
        terms.append(prior + seen + dist.Normal(3 * b, 0.5).log_prob(x[:, 1]))
    torch.testing.assert_close(ab.log_weights(model, nothing, x).local[0, 0], torch.stack(terms).logsumexp(0))


@pytest.mark.parametrize("mask", ["poutine", "distribution"])
def test_a_masked_enumerated_site_still_sums_to_one(mask):
    x, seen = points(), torch.tensor([True, True, False, True, False, False])

    @config_enumerate
    def model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            prior = dist.Categorical(logits=LOGITS)
            k = pyro.sample("k", prior if mask == "poutine" else prior.expand([len(x)]).mask(seen))
            pyro.sample("x", dist.Normal(LOCS[k], 0.7).to_event(1), obs=x)

    expected = torch.where(seen, log_components(x), torch.zeros(()))
    torch.testing.assert_close(ab.log_weights(model, nothing, x).local[0, 0], expected)


def test_topics_of_words_in_documents():
    """LDA: sites in a plate within the plate, ragged by a mask."""
    found = []
    for by_hand in (False, True):
        torch.manual_seed(7)
        options = {"plate": "documents", "num_particles": 4, "by_hand": by_hand}
        found.append(ab.log_weights(topics, topics_guide, WORDS, LENGTHS, **options))
    for ours, by_hand in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(ours, by_hand)
    z = torch.randn(2, 4, 2)
    ours, by_hand = (ab.log_joint(topics, WORDS, LENGTHS, plate="documents", by_hand=h)(z) for h in (False, True))
    torch.testing.assert_close(ours, by_hand)


def test_plates_that_are_deeper_with_other_arguments():
    """Two values in a dimension that a plate of two points takes later would pass for them."""

    @config_enumerate
    def model(x):
        with pyro.plate("data", len(x), dim=-1) if x.dim() == 1 else pyro.plate("data", len(x), dim=-2):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            with pyro.plate("more", 2, dim=-1) if x.dim() > 1 else nullcontext():
                pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    for x in (points()[:2, 0], points()[:2, :2], points()[:2, 1]):
        rows = x[:, None] if x.dim() == 1 else x
        parts = [dist.Bernoulli(0.3).log_prob(k) + dist.Normal(k, 1.0).log_prob(rows).sum(-1) for k in torch.eye(2)[0]]
        torch.testing.assert_close(ab.log_weights(model, nothing, x).local[0, 0], torch.stack(parts).logsumexp(0))


def test_latents_outside_the_plate_stay_shared():
    def model(x):
        means = pyro.sample("means", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 60, subsample=torch.arange(len(x))):
            k = pyro.sample("k", dist.Categorical(logits=LOGITS), infer=PARALLEL)
            pyro.sample("x", dist.Normal(means[k], 0.7), obs=x)

    def guide(x):
        pyro.sample("means", dist.Normal(torch.ones(3), 0.1).to_event(1))

    x = points()[:, 0]
    torch.manual_seed(12)
    found = ab.log_weights(model, guide, x, num_shared=3)
    torch.manual_seed(12)
    for local, shared in zip(found.local, found.shared, strict=True):
        means = dist.Normal(torch.ones(3), 0.1).sample()
        expected = (LOGITS + dist.Normal(means, 0.7).log_prob(x[:, None])).logsumexp(-1)
        torch.testing.assert_close(local, expected.expand(1, 6))
        torch.testing.assert_close(
            shared, (dist.Normal(0.0, 1.0).log_prob(means) - dist.Normal(1.0, 0.1).log_prob(means)).sum()
        )
    assert [site.name for site in ab.latent_sites(model, x).shared] == ["means"]
    assert ab.latent_sites(model, x).local == []


def test_a_hidden_markov_chain_within_each_point():
    x, move = points(4, 5), torch.tensor([[0.9, 0.1], [0.3, 0.7]])

    @config_enumerate
    def model(x):
        with pyro.plate("data", len(x)):
            state = torch.tensor(0)
            for time in pyro.markov(range(x.shape[1])):
                state = pyro.sample(f"state_{time}", dist.Categorical(move[state]))
                pyro.sample(f"x_{time}", dist.Normal(state.double(), 0.5), obs=x[:, time])

    forward = torch.tensor([0.0, -math.inf]).expand(4, 2)
    for time in range(5):
        seen = dist.Normal(torch.tensor([0.0, 1.0]), 0.5).log_prob(x[:, time, None])
        forward = (forward[..., None] + move.log()).logsumexp(1) + seen
    torch.testing.assert_close(ab.log_weights(model, nothing, x).local[0, 0], forward.logsumexp(-1))


def test_factors_that_contradict_each_other():
    """Pyro's contraction finds log 0 here: each factor is exponentiated on its own."""

    @config_enumerate
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(k, 0.02), obs=x)
            pyro.sample("y", dist.Normal(1 - k, 0.02), obs=x)

    x = torch.zeros(2)
    log_p = 2 * dist.Normal(0.0, 0.02).log_prob(torch.tensor(0.0)) - 0.5 / 0.02**2  # of k = 0, and of k = 1
    torch.testing.assert_close(ab.log_weights(model, nothing, x).local[0, 0], log_p.expand(2))


def test_a_program_that_does_not_broadcast_is_told_so():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5), infer=PARALLEL)
            pyro.sample("x", dist.Normal(torch.stack([k, x[:, 0]], -1).sum(-1), 1.0), obs=x[:, 1])

    with pytest.raises(ValueError, match=r"fails where \['k'\] hold all their values at once, .* broadcast"):
        ab.log_weights(model, nothing, points())


def test_half_of_the_labels_are_known():
    x, label = points(), torch.tensor([0, 2, 1, 0, 1, 2])
    known = torch.tensor([True, True, False, False, True, False])

    @config_enumerate  # with obs_mask, Pyro 1.9 loses what `infer=` says
    def model(x, label):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=LOGITS), obs=label, obs_mask=known)
            pyro.sample("x", dist.Normal(LOCS[k], 0.7).to_event(1), obs=x)

    given = LOGITS[label] + dist.Normal(LOCS[label], 0.7).log_prob(x).sum(-1)
    expected = torch.where(known, given, log_components(x))
    torch.testing.assert_close(ab.log_weights(model, nothing, x, label).local[0, 0], expected)


def test_a_mark_that_pyro_drops_is_not_asked_for_again():
    def model(x):
        with pyro.plate("data", len(x)):
            known, label = torch.arange(len(x)) % 2 == 0, torch.zeros(len(x))
            k = pyro.sample("k", dist.Categorical(logits=LOGITS), obs=label, obs_mask=known, infer=PARALLEL)
            pyro.sample("x", dist.Normal(LOCS[k.long()], 0.7).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"'k_unobserved'.*: use `pyro.infer.config_enumerate\(model\)`"):
        ab.log_weights(model, nothing, points())


def test_a_scale_is_outside_of_the_sum_and_one_for_all():
    def model(x, inner):
        with pyro.plate("data", 60, subsample=torch.arange(len(x))), poutine.scale(scale=0.5):
            k = pyro.sample("k", dist.Categorical(logits=LOGITS), infer=PARALLEL)
            with poutine.scale(scale=inner):
                pyro.sample("x", dist.Normal(LOCS[k], 0.7).to_event(1), obs=x)

    x = points()
    torch.testing.assert_close(ab.log_weights(model, nothing, x, 1.0).local[0, 0], 0.5 * log_components(x))
    with pytest.raises(ValueError, match=r"same scale, got 0\.5 at 'k' and 1 at 'x'"):
        ab.log_weights(model, nothing, x, 2.0)


def test_log_joint_is_that_of_the_marginal_model():
    x, z = points(), torch.randn(4, 6, 2)
    ours, by_hand = ab.log_joint(mixture, x), ab.log_joint(mixture_by_hand, x)
    torch.testing.assert_close(ours(z), by_hand(z))
    torch.testing.assert_close(ours.log_prior(z), by_hand.log_prior(z))
    torch.testing.assert_close(ours.select(torch.tensor([4, 1]))(z[:, [4, 1]]), by_hand(z)[:, [4, 1]])
    assert ours.unpack(z)["z"].shape == (4, 6, 2)
    torch.manual_seed(8)
    many = ours.sample_prior(4000)  # of a component each, not of all at once
    mean = LOGITS.exp() @ MEANS
    assert ((many.mean((0, 1)) - mean).abs() < 4 * many.std((0, 1)) / math.sqrt(24_000)).all()


def test_what_guides_provide_is_without_enumerated_sites():
    assert [site.name for site in ab.latent_sites(mixture, points()).local] == ["z"]
