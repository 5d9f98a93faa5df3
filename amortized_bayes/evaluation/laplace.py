r"""Posteriors of a Gaussian likelihood around a mode: :math:`z \sim N(0, I)`, :math:`x \sim N(f(z), \sigma^2 I)`.

The mode is found by Levenberg and Marquardt's method, and the Gaussian there has the precision
:math:`I + J^\top J / \sigma^2`, exact where f is linear. Importance sampling from it bounds log p(x) from below; with a
draw of the true posterior among the draws, which simulated data bring along, from above (Grosse, Ghahramani & Adams,
*Sandwiching the marginal likelihood using bidirectional Monte Carlo*, 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

__all__ = ["Laplace", "laplace", "log_joint_of", "sandwich"]

DAMPING = (1e-2, 0.2, 5.0)
"""At the start, and what a step that climbs, or does not, multiplies it by."""
LARGEST_BLOCK = 25
"""Latents whose derivatives are taken at once."""


class Laplace(NamedTuple):
    """A Gaussian for each point, in float64.

    Args:
        mean: ``(B, D)``, a mode of the posterior.
        factor: ``(B, D, D)``, lower Cholesky factor of the precision.
        log_joint: log p(x, z) at the mode, ``(B,)``.
    """

    mean: Tensor
    factor: Tensor
    log_joint: Tensor

    @property
    def factorized_scale(self) -> Tensor:
        """Scales of the factorized Gaussian that is nearest to it, by KL(q || .), ``(B, D)``."""
        return self.factor.square().sum(-1).rsqrt()

    def sample(self, num_draws: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws ``(S, B, D)``, and the log density of each, ``(S, B)``."""
        noise = torch.randn(
            num_draws, *self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device
        )
        z = self.mean + torch.linalg.solve_triangular(self.factor.mT, noise[..., None], upper=True)[..., 0]
        return z, self.log_prob(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of latents ``(..., B, D)``."""
        residual = ((z - self.mean)[..., None, :] @ self.factor)[..., 0, :]
        log_determinant = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * residual.square().sum(-1) + log_determinant - 0.5 * z.shape[-1] * math.log(2 * math.pi)


def log_joint_of(decode: Callable[[Tensor], Tensor], x: Tensor, z: Tensor, scale: float) -> Tensor:
    """Log p(x, z) of points ``(B, P)`` and latents ``(..., B, D)``, in float64."""
    residual = (x.double() - decode(z.to(x)).double()) / scale
    log_likelihood = -0.5 * residual.square().sum(-1) - x.shape[-1] * (math.log(scale) + 0.5 * math.log(2 * math.pi))
    return log_likelihood - 0.5 * z.double().square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


@torch.no_grad()
def laplace(decode: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, scale: float, num_steps: int = 30) -> Laplace:
    """Climb log p(x, z) from a start, each point alone, and take the Gaussian there.

    Args:
        decode: means of the pixels, ``(..., D) -> (..., P)``, differentiable in forward mode, each row alone.
        x: points, ``(B, P)``.
        start: latents, ``(B, D)``.
        scale: sigma of the pixels.
        num_steps: steps of Levenberg and Marquardt.

    Raises:
        ValueError: a start for another number of points, or a scale that is not above 0.
    """
    if len(start) != len(x) or not scale > 0:
        raise ValueError(f"expected a start for {len(x)} points and a scale above 0, got {len(start)} and {scale}")
    z = start.double()
    damping = z.new_full((len(z),), DAMPING[0])
    value = log_joint_of(decode, x, z, scale)
    gradient, precision = _expand(decode, x, z, scale)
    for _ in range(num_steps):
        damped = precision + damping[:, None, None] * torch.diag_embed(precision.diagonal(dim1=-2, dim2=-1))
        there = z + torch.linalg.solve(damped, gradient)
        found = log_joint_of(decode, x, there, scale)
        climbs = found > value
        if climbs.any():
            z, value = torch.where(climbs[:, None], there, z), torch.where(climbs, found, value)
            new_gradient, new_precision = _expand(decode, x[climbs], z[climbs], scale)
            gradient[climbs], precision[climbs] = new_gradient, new_precision
        damping = damping * torch.where(climbs, DAMPING[1], DAMPING[2])
    return Laplace(z, torch.linalg.cholesky(precision), value)


def _expand(decode: Callable[[Tensor], Tensor], x: Tensor, z: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradient of log p(x, z), ``(B, D)``, and I + J'J / scale², ``(B, D, D)``."""
    own = z.to(x)
    directions = torch.eye(z.shape[1], dtype=x.dtype, device=x.device)

    def along(direction: Tensor) -> Tensor:
        return torch.func.jvp(decode, (own,), (direction.expand_as(own),))[1]

    jacobian = torch.func.vmap(along, chunk_size=LARGEST_BLOCK)(directions).permute(1, 2, 0).double()  # (B, P, D)
    residual = x.double() - decode(own).double()
    gradient = (jacobian.mT @ residual[..., None])[..., 0] / scale**2 - z
    return gradient, jacobian.mT @ jacobian / scale**2 + directions.double()


@torch.no_grad()
def sandwich(
    decode: Callable[[Tensor], Tensor],
    x: Tensor,
    near: Laplace,
    scale: float,
    num_draws: int,
    generator: Generator,
    truth: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Bounds on log p(x) of each point, ``(B,)``: below it in expectation, and above it given a draw of the posterior.

    Args:
        decode: as of :func:`laplace`.
        x: points, ``(B, P)``.
        near: what is drawn from.
        scale: sigma of the pixels.
        num_draws: number of draws of each point.
        generator: random generator for the draws.
        truth: a draw from the posterior of each point, ``(B, D)``: the latents that it was simulated from. ``near``
            must not have been found with its help: a mode next to it makes it likely, and the bound none.
    """
    parts = []
    for count in [min(LARGEST_BLOCK, num_draws - done) for done in range(0, num_draws, LARGEST_BLOCK)]:
        z, log_q = near.sample(count, generator)
        parts.append(log_joint_of(decode, x, z, scale) - log_q)
    weights = torch.cat(parts)
    lower = weights.logsumexp(0) - math.log(num_draws)
    if truth is None:
        return lower, None
    true_weight = log_joint_of(decode, x, truth.double(), scale) - near.log_prob(truth.double())
    upper = torch.cat([weights[1:], true_weight[None]]).logsumexp(0) - math.log(num_draws)
    return lower, upper
