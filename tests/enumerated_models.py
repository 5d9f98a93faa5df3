"""Models and guides with discrete latents, and what they come to, summed by hand."""

from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor
from torch.distributions import constraints

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


def mixture_data(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    k = torch.multinomial(LOGITS.exp(), count, True, generator=generator)
    z = MEANS[k] + 0.8 * torch.randn(count, 2, generator=generator)
    return z @ WEIGHT.T + torch.randn(count, 3, generator=generator)
