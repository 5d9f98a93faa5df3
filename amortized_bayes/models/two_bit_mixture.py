r"""A mixture of four Gaussians named by two bits, whose posterior a product of two Bernoullis need not match.

.. math::
    z_1, z_2 \sim \mathrm{Bernoulli}(1/2), \qquad x \mid z \sim N(\mu_{z_1 z_2}, s^2 I_P) .

The log odds ratio of the bits in the posterior is linear in x,

.. math::
    J(x) = \log \frac{p(11 \mid x)\, p(00 \mid x)}{p(10 \mid x)\, p(01 \mid x)}
         = \frac{(\mu_{00} - \mu_{01} - \mu_{10} + \mu_{11})^T x
           - \frac12 (|\mu_{00}|^2 - |\mu_{01}|^2 - |\mu_{10}|^2 + |\mu_{11}|^2)}{s^2},

and the posterior factorizes for all x exactly where it is 0: where the means are a parallelogram and the two sums of
squares agree, as in a centred square (Shekhovtsov, Schlesinger & Flach, *VAE Approximation Error: ELBO and Exponential
Families*, ICLR 2022). Four codes are summed, so evidence, posterior and ELBO are exact, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortized_bayes.limits import Count, Positive, Seed, limited
from amortized_bayes.registration import Registered
from amortized_bayes.seeding import torch_generator

__all__ = ["FactorizedAnswer", "TwoBitMixture"]

TOLERANCE = 1e-7
"""Log odds move by less, of their size, in the last step of a search; the ELBO then by about its square."""
MOST_SWEEPS = 10_000
"""Of a search for the best product: near a fold each one moves the odds by little."""
EM_TOLERANCE = 1e-9
"""Nats per point that the last steps of EM gain."""
STEPS_A_CLIMB = 25
"""Between two looks at what EM has gained."""
MOST_CLIMBS = 1_000
LEAST_HELD = 1e-6
"""Points that a code holds, at least."""


class FactorizedAnswer(NamedTuple):
    """A product of two Bernoullis for each point, and what it comes to.

    Args:
        logits: log odds of each bit, (B, 2).
        elbo: (B,), in nats.
    """

    logits: Tensor
    elbo: Tensor


class TwoBitMixture(Registered):
    """The mixture as a Pyro program over the plate ``data``, with enumerated sites ``first`` and ``second``, and ``x``.

    Args:
        means: (2, 2, P), of the bits (first, second); a parameter.
        scale: s, standard deviation of the observations.

    Raises:
        ValueError: means of another shape or not finite, or a scale of 0 or less.

    Example:
        >>> square = TwoBitMixture(torch.tensor([[[1.0, 1.0], [1.0, -1.0]], [[-1.0, 1.0], [-1.0, -1.0]]]), 1.0)
        >>> x, codes = square.simulate(100, seed=0)
        >>> bool((square.log_evidence(x) - square.best_factorized(x).elbo).abs().max() < 1e-9)
        True
    """

    @limited
    def __init__(self, means: Tensor, scale: Positive) -> None:
        super().__init__()
        if means.dim() != 3 or means.shape[:2] != (2, 2) or not means.shape[2]:
            raise ValueError(f"expected means of two bits, (2, 2, P), got {tuple(means.shape)}")
        if not means.isfinite().all():
            raise ValueError("expected finite means, got nan or inf in them")
        self.means = nn.Parameter(means.detach().clone())
        self.scale = scale

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Sample (or score) the model on data ``x`` of shape (B, P)."""
        del index
        half = x.new_full((), 0.5)
        with pyro.plate("data", len(x)):
            first = pyro.sample("first", dist.Bernoulli(half), infer={"enumerate": "parallel"})
            second = pyro.sample("second", dist.Bernoulli(half), infer={"enumerate": "parallel"})
            mean = self.means[first.long(), second.long()]
            return pyro.sample("x", dist.Normal(mean, x.new_full((), self.scale)).to_event(1), obs=x)

    @limited
    def simulate(self, per_code: Count, seed: Seed, split: str = "train") -> tuple[Tensor, Tensor]:
        """Draw as many points of each code: data (4 n, P) and codes 0 to 3 (4 n,), those of a code together.

        Noise is the same for all means and scales, and its own in each split.
        """
        generator = torch_generator(seed, "two-bit mixture", split)
        codes = torch.arange(4).repeat_interleave(per_code)
        means = self.means.detach().flatten(0, 1)
        noise = torch.randn(len(codes), means.shape[1], generator=generator, dtype=torch.float64)
        return (means.double()[codes] + self.scale * noise).to(means.dtype), codes

    def log_joint(self, x: Tensor) -> Tensor:
        """Log p(x, z) of each point and pair of bits, (B, 2, 2).

        Raises:
            ValueError: data that are not (B, P), or not finite.
        """
        size = self.means.shape[2]
        if x.dim() != 2 or x.shape[1] != size or not x.isfinite().all():
            raise ValueError(f"expected finite data of shape (B, {size}), got {tuple(x.shape)} with {_broken(x)}")
        away = x.double()[:, None, None] - self.means.detach().double()
        constant = math.log(4) + size * (math.log(self.scale) + 0.5 * math.log(2 * math.pi))
        return -0.5 * away.square().sum(-1) / self.scale**2 - constant

    def log_evidence(self, x: Tensor) -> Tensor:
        """Exact log p(x) of each point in nats, (B,)."""
        return self.log_joint(x).flatten(1).logsumexp(1)

    def posterior(self, x: Tensor) -> Tensor:
        """Exact p(z|x) of each point, (B, 2, 2)."""
        return self.log_joint(x).flatten(1).softmax(1).unflatten(1, (2, 2))

    def log_odds_ratio(self, x: Tensor) -> Tensor:
        """J(x) of each point, (B,): 0 where the two bits are independent in the posterior."""
        log_joint = self.log_joint(x)
        return log_joint[:, 0, 0] - log_joint[:, 0, 1] - log_joint[:, 1, 0] + log_joint[:, 1, 1]

    def factorized_elbo(self, x: Tensor, logits: Tensor) -> Tensor:
        """ELBO of products of two Bernoullis with log odds (B, 2), summed over the four codes: (B,), in nats."""
        return _elbo(self.log_joint(x), logits.double())

    def best_factorized(self, x: Tensor) -> FactorizedAnswer:
        r"""The best product of two Bernoullis of each point: the global optimum of mean field.

        The best log odds of each bit given the other's are

        .. math:: a = A + J \sigma(b), \qquad b = B + J \sigma(a) ,

        so that optima are fixed points of :math:`g(a) = A + J \sigma(B + J \sigma(a))`. It is increasing, and has three
        fixed points at most, since its Schwarzian derivative is negative as the logistic function's is; of three the
        middle one is no maximum. So steps from both ends rise and fall to the outer ones, and the better is the best.
        """
        log_joint = self.log_joint(x)
        found = [_settle(log_joint, end) for end in (-math.inf, math.inf)]
        elbos = [_elbo(log_joint, logits) for logits in found]
        better = elbos[1] > elbos[0]
        return FactorizedAnswer(torch.where(better[:, None], found[1], found[0]), torch.where(better, *elbos[::-1]))

    def maximum_likelihood(self, x: Tensor) -> TwoBitMixture:
        """Means that EM climbs to from these (Dempster, Laird & Rubin, 1977), with weights and scale as they are.

        Raises:
            ArithmeticError: a code is left without points, or EM does not come to its end.
        """
        return self._climb(x, TwoBitMixture._em_steps)

    def joint_optimum(self, x: Tensor) -> TwoBitMixture:
        """Means that maximize the mean ELBO of the best product of each point, climbed to from these.

        Variational EM (Neal & Hinton, 1998): what joint training of decoder and encoder would come to from here, if no
        encoder lost anything. Errors as in :meth:`maximum_likelihood`.
        """
        return self._climb(x, TwoBitMixture._variational_steps)

    def _climb(self, x: Tensor, steps: Callable[[TwoBitMixture, Tensor], float]) -> TwoBitMixture:
        """Take steps, which give the bound that they start from, until it rises no more."""
        model, before = TwoBitMixture(self.means.double(), self.scale), -math.inf
        for _ in range(MOST_CLIMBS):
            bound = steps(model, x.double())
            if bound - before < EM_TOLERANCE:
                return model.to(self.means.dtype)
            before = bound
        raise ArithmeticError(f"EM still gains more than {EM_TOLERANCE:g} nats per point after {MOST_CLIMBS:,} rounds")

    def _em_steps(self, x: Tensor) -> float:
        bound = float(self.log_evidence(x).mean())
        for _ in range(STEPS_A_CLIMB):
            self._set_means(x, self.posterior(x))
        return bound

    def _variational_steps(self, x: Tensor) -> float:
        """The best product of each point once, then sweeps from it, each of which raises the bound too."""
        best = self.best_factorized(x)
        a = best.logits[:, 0]
        for _ in range(STEPS_A_CLIMB):
            a, b = _sweep(*_odds(self.log_joint(x)), a)
            self._set_means(x, _product(torch.stack([a, b], 1)))
        return float(best.elbo.mean())

    def _set_means(self, x: Tensor, weights: Tensor) -> None:
        """The means that are best for probabilities of codes, (B, 2, 2)."""
        held = weights.sum(0)
        if not float(held.min()) > LEAST_HELD:
            raise ArithmeticError(f"EM left a code without points: they hold {held.flatten().tolist()}")
        with torch.no_grad():
            self.means.copy_(torch.einsum("bij,bp->ijp", weights, x) / held[..., None])


def _broken(x: Tensor) -> str:
    return f"{int((~x.isfinite()).sum())} values that are not"


def _product(logits: Tensor) -> Tensor:
    """Probabilities of the four codes, (B, 2, 2)."""
    one = torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], -1)  # (B, 2, 2): point, site, value
    return one[:, 0, :, None] * one[:, 1, None, :]


def _elbo(log_joint: Tensor, logits: Tensor) -> Tensor:
    entropy = (F.softplus(logits) - logits * torch.sigmoid(logits)).sum(1)
    return (_product(logits) * log_joint).flatten(1).sum(1) + entropy


def _odds(log_joint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and J, (B,) each: log odds of each bit where the other is 0, and their log odds ratio."""
    first = log_joint[:, 1, 0] - log_joint[:, 0, 0]
    second = log_joint[:, 0, 1] - log_joint[:, 0, 0]
    return first, second, log_joint[:, 1, 1] - log_joint[:, 0, 1] - first


def _sweep(first: Tensor, second: Tensor, ratio: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The best log odds of the second bit given those of the first, then the best of the first."""
    b = second + ratio * torch.sigmoid(a)
    return first + ratio * torch.sigmoid(b), b


def _settle(log_joint: Tensor, end: float) -> Tensor:
    """Log odds of both bits, (B, 2), at the fixed point that is next to an end; points that are there leave."""
    odds = _odds(log_joint)
    found = torch.full((len(log_joint), 2), end, dtype=log_joint.dtype)
    left, a = torch.arange(len(log_joint)), found[:, 0].clone()
    for _ in range(MOST_SWEEPS):
        moved, b = _sweep(*odds, a)
        found[left] = torch.stack([moved, b], 1)
        going = (moved - a).abs() > TOLERANCE * (1 + moved.abs())
        left, a = left[going], moved[going]
        odds = odds[0][going], odds[1][going], odds[2][going]
        if not len(left):
            break
    return found
