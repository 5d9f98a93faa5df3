r"""What a search for q* needs of a family: members of many points, the path gradient, and steps in the family.

A member is a row of numbers. Its draws come with their log density and with :attr:`Draw.pull`, which turns the gradient
of log p(x, z) in z into that of the ELBO in the coordinates of a step. It follows the path of z alone (Roeder, Wu &
Duvenaud, *Sticking the landing*, NeurIPS 2017): at the exact posterior it is 0 for every draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from amortized_bayes.joint import Gaussian, draw

__all__ = ["Diagonal", "Draw", "Family"]

SCALE_RATE = 3.0
"""Step of log scales over that of means: their gradients are noisier, and Adam divides by the noise."""


class Draw(NamedTuple):
    """Draws of r members.

    Args:
        z: on the unconstrained space, ``(S, r, D)``.
        log_q: their log densities there, ``(S, r)``.
        pull: from the gradient of log p(x, z) in z, ``(S, r, D)``, to the mean over draws of the ELBO's gradient in the
            coordinates of a step, ``(r, W)``.
    """

    z: Tensor
    log_q: Tensor
    pull: Callable[[Tensor], Tensor]


class Family(Protocol):
    """A family of q's, a member of which is a row of W numbers."""

    name: str
    common: bool
    """Whether all draws are made of the noise that is given, so that members can be compared on common draws."""
    rates: Tensor
    """Size of a step in each coordinate over the learning rate, ``(1, W)``."""

    def frame(self, rows: Tensor) -> Any:
        """What fixes the coordinates of the next steps at members ``(r, W)``; made anew now and then."""
        ...

    def draw(self, rows: Tensor, noise: Tensor, frame: Any = None) -> Draw:
        """Draws of members ``(r, W)``, made of standard normals ``(S, r, D)`` where they can be.

        Those of other distributions are torch's, by its global generator. Only :attr:`Draw.pull` needs the frame.
        """
        ...

    def move(self, rows: Tensor, step: Tensor, frame: Any) -> Tensor:
        """Members a step ``(r, W)`` further."""
        ...

    def whiten(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """A gradient in coordinates in which the Fisher information at ``rows`` is the identity, ``(r, W)``."""
        ...

    def pace(self, rows: Tensor, distance: Tensor) -> Tensor:
        """Times the usual rate that moves each coordinate by ``distance`` ``(r, 1)`` of its scales or so, ``(r, W)``.

        Only locations have to go far: rates of other coordinates stay as they are.
        """
        ...

    def scatter(self, rows: Tensor, num: int, spread: float, generator: Generator) -> Tensor:
        """The members, and ``num`` - 1 copies moved at random by so many of their scales, ``(num * r, W)``."""
        ...

    def moments(self, rows: Tensor) -> Gaussian:
        """Mean and scale of each member on the unconstrained space, ``(r, D)`` each."""
        ...


class Diagonal:
    """Factorized Gaussians: rows of means, in units of their own, and of log scales.

    Args:
        unit: scale of a step in each latent, ``(D,)``.
    """

    name = "gaussian"
    common = True

    def __init__(self, unit: Tensor) -> None:
        self.unit, self.dim = unit, len(unit)
        self.rates = torch.cat([torch.ones_like(unit), torch.full_like(unit, SCALE_RATE)])[None]

    def rows(self, q: Gaussian) -> Tensor:
        """Rows of Gaussians, ``(r, 2D)``."""
        return torch.cat([q.loc / self.unit, q.scale.log()], -1)

    def moments(self, rows: Tensor) -> Gaussian:
        """Mean and scale."""
        return Gaussian(rows[:, : self.dim] * self.unit, rows[:, self.dim :].exp())

    def frame(self, rows: Tensor) -> None:
        """Nothing: the coordinates are those of the rows."""

    def draw(self, rows: Tensor, noise: Tensor, frame: None = None) -> Draw:
        """See :class:`Family`."""
        loc, scale = self.moments(rows)
        log_q = -(0.5 * noise.square() + scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

        def pull(grad: Tensor) -> Tensor:
            path = grad + noise / scale
            return torch.cat([path.mean(0) * self.unit, (path * scale * noise).mean(0)], -1)

        return Draw(loc + scale * noise, log_q, pull)

    def move(self, rows: Tensor, step: Tensor, frame: None) -> Tensor:
        """See :class:`Family`."""
        return rows + step

    def whiten(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Curvatures of L are 1/scale² and 2 where q has the right scale."""
        scale = rows[:, self.dim :].exp()
        return torch.cat([gradient[:, : self.dim] / self.unit * scale, gradient[:, self.dim :] / math.sqrt(2)], -1)

    def unwhiten(self, rows: Tensor, step: Tensor) -> Tensor:
        """A step in those coordinates, in the coordinates of the rows, ``(r, 2D)``."""
        scale = rows[:, self.dim :].exp()
        return torch.cat([step[:, : self.dim] * scale / self.unit, step[:, self.dim :] / math.sqrt(2)], -1)

    def pace(self, rows: Tensor, distance: Tensor) -> Tensor:
        """A round at the default settings moves means by 1.5 of their units."""
        scale = rows[:, self.dim :].exp()
        return torch.cat([distance * scale / self.unit, torch.ones_like(scale)], -1)

    def scatter(self, rows: Tensor, num: int, spread: float, generator: Generator) -> Tensor:
        """See :class:`Family`."""
        q = self.moments(rows)
        loc = draw(Gaussian(q.loc, spread * q.scale), num, generator)
        loc[0] = q.loc
        return self.rows(Gaussian(loc.flatten(0, 1), q.scale.repeat(num, 1)))
