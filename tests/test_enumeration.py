"""Discrete latents inside the plate, summed out: every number against a sum written by hand."""

import itertools
import math
from contextlib import nullcontext
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from torch.distributions import constraints

import amortized_bayes as ab
from amortized_bayes.enumeration import tracing
from amortized_bayes.expectations import expected_log_weights
from amortized_bayes.weights import trace_pair

pytestmark = pytest.mark.usefixtures("float64")

PARALLEL = {"enumerate": "parallel"}
LOGITS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
MEANS = torch.tensor([[-2.0, 0.0], [1.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
WEIGHT = torch.tensor([[1.0, 0.3], [-0.5, 1.2], [0.4, -0.8]], dtype=torch.float64)
LOCS = torch.cat([MEANS, WEIGHT[:, :1]], 1)


def nothing(*args, **kwargs):
    """A guide for a model whose latents are all summed out."""


def points(count=6, size=3):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@config_enumerate
def components(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(logits=LOGITS))
        pyro.sample("x", dist.Normal(LOCS[k], 0.7).to_event(1), obs=x)


def log_components(x):
    return (LOGITS + dist.Normal(LOCS, 0.7).log_prob(x[:, None]).sum(-1)).logsumexp(-1)


@config_enumerate
def mixture(x):
    """A mixture as the prior of z, and a Gaussian likelihood."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(logits=LOGITS))
        z = pyro.sample("z", dist.Normal(MEANS[k], 0.8).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHT.T, 1.0).to_event(1), obs=x)


class Mixture(dist.TorchDistribution):
    """The same prior by hand."""

    support = constraints.independent(constraints.real, 1)
    arg_constraints: ClassVar = {}

    def __init__(self, shape=()):
        super().__init__(torch.Size(shape), torch.Size((2,)), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Mixture(batch_shape)

    def sample(self, sample_shape=()):
        k = dist.Categorical(logits=LOGITS).sample(torch.Size(sample_shape) + self.batch_shape)
        return MEANS[k] + 0.8 * torch.randn(*k.shape, 2)

    def log_prob(self, value):
        return (LOGITS + dist.Normal(MEANS, 0.8).log_prob(value[..., None, :]).sum(-1)).logsumexp(-1)


def mixture_by_hand(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", Mixture())
        pyro.sample("x", dist.Normal(z @ WEIGHT.T, 1.0).to_event(1), obs=x)


def log_mixture(x):
    covariance = 0.64 * WEIGHT @ WEIGHT.T + torch.eye(3)
    parts = [dist.MultivariateNormal(WEIGHT @ mean, covariance).log_prob(x) for mean in MEANS]
    return (LOGITS + torch.stack(parts, -1)).logsumexp(-1)


def gaussian_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :2] * 0.5, 0.9).to_event(1))


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
        runs.append(ab.log_weights(model, gaussian_guide, points()).local)
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


TOPICS = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
WORDS = torch.tensor([[0, 1, 3], [2, 2, 0], [3, 3, 3], [1, 0, 2]])
LENGTHS = torch.tensor([3, 2, 3, 1])


def topics(words, lengths, by_hand=False):
    with pyro.plate("documents", len(words), dim=-2):
        theta = pyro.sample("theta", dist.Dirichlet(torch.ones(1, 3)))
        mask = torch.arange(words.shape[1]) < lengths[:, None]
        with pyro.plate("words", words.shape[1], dim=-1), poutine.mask(mask=mask):
            if by_hand:
                pyro.sample("word", dist.Categorical(theta @ TOPICS), obs=words)
            else:
                topic = pyro.sample("topic", dist.Categorical(theta), infer=PARALLEL)
                pyro.sample("word", dist.Categorical(TOPICS[topic]), obs=words)


def topics_guide(words, lengths, **kwargs):
    with pyro.plate("documents", len(words), dim=-2):
        pyro.sample("theta", dist.Dirichlet((1.0 + lengths)[:, None, None] * torch.tensor([1.0, 2.0, 0.5])))


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


# the guide enumerates


DECODER = torch.tensor([[0.5, -1.0], [1.5, 0.2]], dtype=torch.float64)


def decode(z, y):
    return z[..., None] * DECODER[0] + (z * y)[..., None] * DECODER[1]


class SemiSupervised:
    """A model of Kingma and others (2014): the label y is latent unless it is given, and q(z) depends on it."""

    def __init__(self, marks=PARALLEL):
        self.marks = marks
        self.logits = torch.nn.Parameter(torch.randn(2, 3))
        self.loc = torch.nn.Parameter(torch.randn(3))

    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=LOGITS), obs=y)
            z = pyro.sample("z", dist.Normal(0.3 * y, 1.0))
            pyro.sample("x", dist.Normal(decode(z, y), 0.7).to_event(1), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.Categorical(logits=x @ self.logits), infer=dict(self.marks))
            pyro.sample("z", dist.Normal(self.loc[y] + x[:, 0], 0.6))

    def elbo(self, x):
        """Of each point, the sum over y written out, with noise of the guide's shape."""
        log_q = (x @ self.logits).log_softmax(-1)
        terms = []
        noise = torch.randn(3, len(x))
        for y in range(3):
            q = dist.Normal(self.loc[y] + x[:, 0], 0.6)
            z = q.loc + 0.6 * noise[y]
            log_p = LOGITS[y] + dist.Normal(0.3 * y, 1.0).log_prob(z)
            log_p = log_p + dist.Normal(decode(z, y), 0.7).log_prob(x).sum(-1)
            terms.append(log_p - q.log_prob(z) - log_q[:, y])
        return (log_q.exp() * torch.stack(terms, -1)).sum(-1)


@pytest.mark.parametrize("analytic_kl", [False, True])
def test_the_guides_own_sites_are_averaged_over_exactly(analytic_kl):
    problem, x, found = SemiSupervised(), points(5, 2), []
    many = 100 if analytic_kl else 1

    def draw():
        return expected_log_weights(problem.model, problem.guide, x, analytic_kl=analytic_kl).local[0, 0]

    torch.manual_seed(9)
    ours = torch.stack([draw() for _ in range(many)])
    torch.manual_seed(9)
    by_hand = torch.stack([problem.elbo(x) for _ in range(5 * many if analytic_kl else 1)])
    if not analytic_kl:
        torch.testing.assert_close(ours, by_hand)
        torch.manual_seed(9)
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(problem.model, problem.guide, x)
        assert -loss == pytest.approx(ours.sum().item(), rel=1e-12)
        for value in (ours, by_hand):
            found.append(torch.autograd.grad(value.sum(), [problem.logits, problem.loc]))
        torch.testing.assert_close(*found)
    else:
        error = (ours.var(0) / len(ours) + by_hand.var(0) / len(by_hand)).sqrt()
        assert ((ours.mean(0) - by_hand.mean(0)).abs() <= 4 * error).all()


def test_labels_that_are_given_are_not_enumerated():
    problem, x, y = SemiSupervised(), points(5, 2), torch.tensor([0, 1, 2, 1, 0])
    torch.manual_seed(10)
    found = expected_log_weights(problem.model, problem.guide, x, y=y, analytic_kl=False).local[0, 0]
    torch.manual_seed(10)
    traces = trace_pair(problem.model, problem.guide, (x,), {"y": y})
    sites = [("z", 1), ("x", 1), ("y", 1)]
    total = sum(s * traces.log_prob(traces.model.nodes[n]) for n, s in sites)
    torch.testing.assert_close(found, total - traces.log_prob(traces.guide.nodes["z"]))


def test_importance_weights_draw_what_the_guide_enumerates():
    """Their mean is the evidence, here a sum over y of Gaussian integrals."""
    problem, x = SemiSupervised(), points(5, 2)
    with torch.no_grad():
        log_w = ab.log_weights(problem.model, problem.guide, x, num_particles=40_000).local[0]
    parts = []
    for y in range(3):
        row = torch.tensor([1.0, y], dtype=torch.float64) @ DECODER
        covariance = row[:, None] * row + 0.49 * torch.eye(2)
        parts.append(LOGITS[y] + dist.MultivariateNormal(0.3 * y * row, covariance).log_prob(x))
    ratio = (log_w - torch.stack(parts).logsumexp(0)).exp()
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / math.sqrt(len(ratio))).all()


def test_model_and_guide_enumerate_sites_of_their_own():
    """q(a) is averaged over, b is summed out given a."""

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.4))
            b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a), infer=PARALLEL)
            pyro.sample("x", dist.Normal(a - 2 * b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Bernoulli(x.sigmoid()), infer=PARALLEL)

    x, expected = points()[:, 0], 0.0
    for a in (torch.tensor(0.0), torch.tensor(1.0)):
        of_b = [
            dist.Bernoulli(0.2 + 0.5 * a).log_prob(b) + dist.Normal(a - 2 * b, 1.0).log_prob(x)
            for b in (torch.tensor(0.0), torch.tensor(1.0))
        ]
        log_q = dist.Bernoulli(x.sigmoid()).log_prob(a)
        log_p = dist.Bernoulli(0.4).log_prob(a) + torch.stack(of_b).logsumexp(0)
        expected = expected + log_q.exp() * (log_p - log_q)
    for analytic_kl in (False, True):
        found = expected_log_weights(model, guide, x, analytic_kl=analytic_kl)
        torch.testing.assert_close(found.local[0, 0], expected)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x)
    assert -loss == pytest.approx(expected.sum().item(), rel=1e-12)


def chain(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        a = pyro.sample("a", dist.Bernoulli(torch.sigmoid(z)))
        b = pyro.sample("b", dist.Categorical(torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])[a.long()]))
        u = pyro.sample("u", dist.Normal(a - b, 1.0))
        pyro.sample("x", dist.Normal(u + z, 0.5), obs=x)


def chain_guide(x):
    """Draws before and after two enumerated sites, of which one depends on the other."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x, 1.0))
        a = pyro.sample("a", dist.Bernoulli(torch.sigmoid(2 * z)))
        b = pyro.sample("b", dist.Categorical(torch.tensor([[0.3, 0.2, 0.5], [0.2, 0.3, 0.5]])[a.long()]))
        pyro.sample("u", dist.Normal(a + b, 0.7))


def words_guide(words, lengths):
    mask = torch.arange(words.shape[1]) < lengths[:, None]
    with pyro.plate("documents", len(words), dim=-2):
        pyro.sample("theta", dist.Dirichlet((1.0 + lengths)[:, None, None] * torch.tensor([1.0, 2.0, 0.5])))
        with pyro.plate("words", words.shape[1], dim=-1), poutine.mask(mask=mask):
            pyro.sample("topic", dist.Categorical(TOPICS.T[words]), infer=PARALLEL)


@pytest.mark.parametrize("expand", [False, True])
def test_several_sites_of_the_guide_in_total_as_in_pyro(expand):
    of_chain = (chain, config_enumerate(chain_guide, expand=expand), (points()[:, 0],), "data")
    of_words = (topics, words_guide, (WORDS, LENGTHS), "documents")
    for model, guide, args, plate in (of_chain, of_words):
        torch.manual_seed(14)
        ours = expected_log_weights(model, guide, *args, plate=plate, analytic_kl=False).local.sum().item()
        torch.manual_seed(14)
        loss = TraceEnum_ELBO(max_plate_nesting=2).loss(model, guide, *args)
        assert ours == pytest.approx(-loss, rel=1e-12)


def test_a_guide_that_draws_before_its_marks_is_captured():
    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.tensor(0.1))

        def forward(self, x):
            return config_enumerate(chain_guide)(x + self.loc)

    training = ab.Training(chain, Guide(), points()[:, 0], ab.FitOptions(batch_size=4), pass_index=False)
    list(training.run(2))
    assert training.captured is not None


def test_a_step_with_enumerated_sites_is_captured(caplog):
    problem, x = SemiSupervised(), points(8, 2)
    encoder = torch.nn.ParameterList([problem.logits, problem.loc])

    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, x):
            return problem.guide(x)

    training = ab.Training(problem.model, Guide(), x, ab.FitOptions(batch_size=4), pass_index=False)
    before = ab.elbo(problem.model, problem.guide, x).mean()[0]
    list(training.run(200))
    assert training.captured is not None
    assert ab.elbo(problem.model, problem.guide, x).mean()[0] > before + 0.3
    assert not caplog.records


# in both calls


def test_compare_meets_the_evidence_from_below():
    x = mixture_data(60)
    settings = ab.ComparisonSettings(epochs=30, rungs=1)
    report = ab.compare(mixture, x, widths=(4,), settings=settings, progress=False)
    best = report.to_frame()["elbo"].max()
    assert 0 < log_mixture(x).mean().item() - best < 0.5


def test_diagnose_meets_the_evidence():
    x = mixture_data(10)
    settings = ab.DiagnosisSettings(
        num_particles=200,
        ais=ab.AISSettings(num_temperatures=25),
        certificate=ab.CertificateSettings(4, 1.0, max_temperatures=25),
    )
    report = ab.diagnose(mixture, gaussian_guide, x, settings=settings)
    truth = log_mixture(x)
    for name in ("log_p_lower", "iwae"):
        value, error = report.values[name][0], report.errors[name][0]
        assert ((value - truth).abs() < 4.5 * error + 0.02).all(), name
    assert (report.values["elbo"][0] < truth + 4 * report.errors["elbo"][0]).all()


def mixture_data(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    k = torch.multinomial(LOGITS.exp(), count, True, generator=generator)
    z = MEANS[k] + 0.8 * torch.randn(count, 2, generator=generator)
    return z @ WEIGHT.T + torch.randn(count, 3, generator=generator)


# refused


def body(k="data", **options):
    """A model with one discrete site of these options, inside or outside the plate."""
    fn = options.pop("fn", dist.Categorical(logits=LOGITS))

    def model(x):
        outside = pyro.sample("k", fn, infer=options) if k == "outside" else None
        with pyro.plate("data", len(x)):
            value = pyro.sample("k", fn, infer=options) if outside is None else outside
            z = pyro.sample("z", dist.Normal(value.double(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def z_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


def seen_outside(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.5), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    pyro.sample("total", dist.Normal(k, 1.0), obs=torch.zeros(()))


REFUSED = [
    (body(), r"misses the model's latent site 'k': mark it infer=\{'enumerate': 'parallel'\} to have it"),
    (body(fn=dist.Poisson(2.0)), "latent site 'k': marginalize it or observe it"),
    (body(fn=dist.Poisson(2.0), **PARALLEL), r"'k' \(Poisson\) cannot be enumerated: .* marginalize it or observe it"),
    (body(enumerate="sequential"), "expected infer={'enumerate': 'parallel'} at site 'k', .* got 'sequential'"),
    (body(num_samples=10, **PARALLEL), "at site 'k', .* got 'num_samples=10'"),
    (body("outside", **PARALLEL), "'k' is outside plate 'data': points depend on each other"),
    (seen_outside, "'total' is outside plate 'data' and depends on"),
]


@pytest.mark.parametrize(("model", "words"), REFUSED)
def test_what_cannot_be_enumerated_point_by_point_is_refused(model, words):
    with pytest.raises(ValueError, match=words):
        ab.log_weights(model, z_guide, torch.zeros(5))


@pytest.mark.parametrize(("model", "words"), [(body(), "mark it"), REFUSED[2], REFUSED[3], REFUSED[5]])
def test_other_calls_refuse_them_alike(model, words):
    words = words.replace("misses the model's latent site 'k': ", "")
    for call in (ab.latent_sites, ab.log_joint):
        with pytest.raises(ValueError, match=words):
            call(model, torch.zeros(5))


def test_nothing_to_infer_is_said():
    with pytest.raises(ValueError, match=r"got none .enumerated ones are summed out.: there is nothing to amortize"):
        ab.compare(components, points(), progress=False)
    with pytest.raises(ValueError, match=r"got none .enumerated ones are summed out.: there is nothing to infer"):
        ab.diagnose(components, nothing, points())


def test_a_guide_that_draws_a_discrete_latent_is_not_trained():
    problem = SemiSupervised(marks={})
    with pytest.raises(ValueError, match=r"draws 'y' from Categorical, .* wrong gradient; mark it"):
        expected_log_weights(problem.model, problem.guide, points(5, 2))
    with torch.no_grad():
        assert ab.elbo(problem.model, problem.guide, points(5, 2)).value.isfinite().all()


def test_a_guide_that_draws_what_the_model_enumerates_is_not_diagnosed():
    problem = SemiSupervised()
    with pytest.raises(ValueError, match="the guide draws 'y', which the model enumerates"):
        ab.diagnose(config_enumerate(problem.model), problem.guide, points(5, 2))


def test_local_reparametrization_is_refused():
    with pytest.raises(ValueError, match="other weights for each value of the enumerated site 'k'"):
        expected_log_weights(mixture, gaussian_guide, points(), local_reparametrization=True)
