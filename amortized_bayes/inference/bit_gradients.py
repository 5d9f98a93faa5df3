r"""Draws of bits, and the gradients of an expectation over them with respect to their log odds.

Of one point, :math:`f(b) = \log p(x, b) - \log q(b)`, and the bits are independent,
:math:`b_d \sim \mathrm{Bernoulli}(\sigma(\alpha_d))`. Every estimator looks at f at a few codes b, whatever the number
of bits, and gives all coordinates at once:

- ``disarm`` (Dong, Mnih & Tucker, *DisARM: An Antithetic Gradient Estimator for Binary Latent Variables*, 2020; U2G of
  Yin, Ho, Yan, Qian & Zhou, 2020). One uniform u gives two codes, :math:`b = 1[1 - u < \sigma(\alpha)]` and
  :math:`\tilde b = 1[u < \sigma(\alpha)]`, and

  .. math:: \tfrac12 (f(b) - f(\tilde b)) (b - \tilde b)\, \sigma(|\alpha|) ,

  since :math:`(-1)^{\tilde b} 1[b \ne \tilde b] = b - \tilde b`.
- ``arm`` (Yin & Zhou, *ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks*, ICLR 2019), of the same
  codes :math:`(f(b) - f(\tilde b)) (u - \tfrac12)`: DisARM is its expectation given the codes, and so varies less.
- ``reinforce``: :math:`\frac1K \sum_k (f(b_k) - \bar f_{-k}) (b_k - \sigma(\alpha))`, whose baseline is the mean of the
  other draws (Kool, van Hoof & Welling, *Buy 4 REINFORCE Samples, Get a Baseline for Free!*, 2019).
- ``straight-through``: Pyro's ``RelaxedBernoulliStraightThrough``; f is taken at bits, and differentiated through a
  relaxed draw (Bengio, Léonard & Courville, 2013). It is biased.
- ``enumerated``: the sum over all codes, which has no noise.

log q is held fixed as a function of :math:`\alpha` in f: its own gradient is 0 on average.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MOST_ENUMERATED", "Bits", "Codes", "Estimator", "draw_codes"]

Estimator = Literal["disarm", "arm", "reinforce", "straight-through", "enumerated"]

MOST_ENUMERATED = 8
"""Bits of a point whose codes are run one after the other."""


class Bits(NamedTuple):
    """The bits that a guide has at a site.

    Args:
        logits: log odds, of the shape of the site's values.
        dim: dimension of the plate over data points, counted from the right.
    """

    logits: Tensor
    dim: int

    @property
    def num_bits(self) -> int:
        """Bits of each point."""
        return self.logits.numel() // self.logits.shape[self.dim]


class Codes(NamedTuple):
    """Values of all bits at which f is looked at, R of them.

    Args:
        bits: by site.
        values: by site, R first.
        noise: by site, uniform numbers (K, ...) that the codes are made of; empty where there are none.
        estimator: what they are drawn for.
    """

    bits: Mapping[str, Bits]
    values: Mapping[str, Tensor]
    noise: Mapping[str, Tensor]
    estimator: Estimator

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def at(self, run: int) -> dict[str, Tensor]:
        """Values of one code, by site."""
        return {name: value[run] for name, value in self.values.items()}

    def mean(self, f: Tensor) -> Tensor:
        """The ELBO of each point, (B,), of f at the codes, (R, B)."""
        return (self._weights() * f).sum(0) if self.estimator == "enumerated" else f.mean(0)

    def surrogate(self, f: Tensor) -> Tensor:
        """Whose gradient is the estimator's, (B,), of f at the codes, (R, B): of what moves f, and of the log odds."""
        own = self.mean(f)
        if self.estimator in ("straight-through", "enumerated"):
            return own
        for name, bits in self.bits.items():
            own = own + _per_point(self._gradient(name, f.detach()) * bits.logits, bits.dim)
        return own

    def _gradient(self, name: str, f: Tensor) -> Tensor:
        """The estimate of the gradient with respect to the log odds of a site, of their shape."""
        bits, values, noise = self.bits[name], self.values[name], self.noise[name]
        alpha = bits.logits.detach()
        f = f.reshape(*f.shape, *[1] * (-bits.dim - 1))
        if self.estimator == "reinforce":
            return ((f - f.mean(0)) * (values - alpha.sigmoid())).sum(0) / (len(f) - 1)
        half = len(f) // 2
        difference = f[:half] - f[half:]
        if self.estimator == "arm":
            return (difference * (noise - 0.5)).mean(0)
        return 0.5 * (difference * (values[:half] - values[half:])).mean(0) * alpha.abs().sigmoid()

    def _weights(self) -> Tensor:
        """Probability of each code under q and point, (R, B)."""
        found = [
            torch.stack(
                [
                    _per_point(-F.binary_cross_entropy_with_logits(bits.logits, v, reduction="none"), bits.dim)
                    for v in self.values[name]
                ]
            )
            for name, bits in self.bits.items()
        ]
        return sum(found[1:], start=found[0]).exp()


def draw_codes(bits: Mapping[str, Bits], estimator: Estimator, num_particles: int, temperature: float) -> Codes:
    """Draw the codes that an estimator looks at: K of them, K pairs, or all.

    Args:
        bits: that a guide has, by site.
        estimator: which one.
        num_particles: K.
        temperature: temperature of the relaxed draws of ``straight-through``.

    Raises:
        ValueError: more bits than are enumerated.
    """
    if estimator == "enumerated":
        return Codes(bits, _all_codes(bits), {}, estimator)
    values, noise = {}, {}
    for name, (logits, _) in bits.items():
        if estimator == "straight-through":
            relaxed = dist.RelaxedBernoulliStraightThrough(logits.new_tensor(temperature), logits=logits)
            values[name] = relaxed.rsample(torch.Size([num_particles]))
            continue
        u = torch.rand(num_particles, *logits.shape, dtype=logits.dtype, device=logits.device)
        p = logits.detach().sigmoid()
        drawn = [u < p] if estimator == "reinforce" else [1 - u < p, u < p]
        noise[name], values[name] = u, torch.cat(drawn).to(logits.dtype)
    return Codes(bits, values, noise, estimator)


def _all_codes(bits: Mapping[str, Bits]) -> dict[str, Tensor]:
    count = sum(one.num_bits for one in bits.values())
    if count > MOST_ENUMERATED:
        raise ValueError(
            f"objective 'enumerated' expected {MOST_ENUMERATED} bits per point or fewer, got {count}: use 'disarm'"
        )
    values, first = {}, 0
    for name, (logits, dim) in bits.items():
        of_point = logits.movedim(dim, 0)
        places = torch.arange(first, first + bits[name].num_bits, device=logits.device)
        codes = torch.arange(2**count, device=logits.device)[:, None] >> places & 1  # (R, bits of the site)
        shaped = codes.to(logits.dtype).reshape(-1, 1, *of_point.shape[1:]).expand(-1, *of_point.shape)
        values[name] = shaped.movedim(1, dim)
        first += bits[name].num_bits
    return values


def _per_point(values: Tensor, dim: int) -> Tensor:
    """Sums over all dimensions but that of the plate, (B,)."""
    return values.movedim(dim, 0).reshape(values.shape[dim], -1).sum(1)
