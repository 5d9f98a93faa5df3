r"""The guide's own family, where it is a product of kinds that have a name, of a site or of several together.

Steps are taken in coordinates in which the Fisher information of q is the identity, so that neither the units of the
latents nor their correlations matter: near the optimum the ELBO falls by half the squared length of what is missing
(Amari, *Natural gradient works efficiently in learning*, 1998). A Gaussian of location :math:`\mu` and Cholesky factor
:math:`L` moves as

.. math:: \mu \leftarrow \mu + L m, \qquad L \leftarrow L T,

with :math:`T` lower triangular, :math:`T_{ij} = t_{ij}` below its diagonal and :math:`\exp(t_{ii} / \sqrt 2)` on it.
Other kinds move in their parameters :math:`\lambda`, mapped to all reals, as :math:`\lambda \leftarrow \lambda +
C^{-\top} u` with :math:`C C^\top` their Fisher information, estimated by their scores; their draws follow torch's
reparametrizations, implicit ones among them (Figurnov, Mohamed & Mnih, *Implicit reparameterization gradients*, 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal, biject_to
from torch.distributions.constraints import real

from amortized_bayes.inference.families import Draw
from amortized_bayes.joint import Factor, Gaussian

__all__ = ["OwnFamily"]

RATE = 10.0
"""Largest step of a coordinate over the learning rate, whose unit is a latent's spread over all points."""
FISHER_DRAWS = 200
"""Draws behind a Fisher information."""
FLOOR = 1e-2
"""Least Fisher information of the logarithm of a positive parameter: a step multiplies it by no more than e or so."""


class GaussianPart:
    """E Gaussians of k latents with full covariance; rows hold locations and Cholesky factors."""

    def __init__(self, factor: Factor) -> None:
        self.place, loc = factor.places, factor.parameters["loc"]
        self.num, self.size = loc.shape[1:]
        self.name = "gaussian" if factor.kind is Normal else "full-covariance gaussian"
        self.start = torch.cat([loc.flatten(1), factor.parameters["scale_tril"].flatten(1)], -1)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Locations ``(r, E, k)`` and Cholesky factors ``(r, E, k, k)``, or what is alike."""
        loc, tril = rows.split([self.num * self.size, self.num * self.size**2], -1)
        return loc.unflatten(-1, (self.num, self.size)), tril.unflatten(-1, (self.num, self.size, self.size))

    def frame(self, rows: Tensor) -> None:
        """Nothing: coordinates are those of the member itself."""

    def draw(self, rows: Tensor, noise: Tensor, frame: None = None) -> Draw:
        """See :class:`~amortized_bayes.inference.families.Family`."""
        loc, tril = self.split(rows)
        eps = noise.unflatten(-1, (self.num, self.size)).permute(1, 2, 3, 0)  # (r, E, k, S)
        z = (loc[..., None] + tril @ eps).permute(3, 0, 1, 2).flatten(2)
        volume = tril.diagonal(dim1=-2, dim2=-1).log().sum((-1, -2))
        log_q = -(0.5 * noise.square() + 0.5 * math.log(2 * math.pi)).sum(-1) - volume

        def pull(grad: Tensor) -> Tensor:
            path = tril.mT @ grad.unflatten(-1, (self.num, self.size)).permute(1, 2, 3, 0) + eps
            bend = (path @ eps.mT / len(noise)).tril()
            bend.diagonal(dim1=-2, dim2=-1).div_(math.sqrt(2))
            return torch.cat([path.mean(-1).flatten(1), bend.flatten(1)], -1)

        return Draw(z, log_q, pull)

    def move(self, rows: Tensor, step: Tensor, frame: None) -> Tensor:
        """See :class:`~amortized_bayes.inference.families.Family`."""
        (loc, tril), (shift, bend) = self.split(rows), self.split(step)
        growth = (bend.diagonal(dim1=-2, dim2=-1) / math.sqrt(2)).exp()
        loc = loc + (tril @ shift[..., None])[..., 0]
        return torch.cat([loc.flatten(1), (tril @ (bend.tril(-1) + growth.diag_embed())).flatten(1)], -1)

    def jump(self, rows: Tensor, generator: Generator) -> Tensor:
        """A step at random that leaves covariances as they are, ``(r, W)``."""
        step = torch.zeros_like(rows)
        step[:, : self.num * self.size].normal_(generator=generator)
        return step

    def distribution(self, rows: Tensor) -> Distribution:
        """The members, on the unconstrained space: a batch ``(r, E)`` of events ``(k,)``."""
        loc, tril = self.split(rows)
        return MultivariateNormal(loc, scale_tril=tril, validate_args=False)

    def moments(self, rows: Tensor) -> Gaussian:
        """Mean and scale of each latent, ``(r, E * k)``."""
        loc, tril = self.split(rows)
        return Gaussian(loc.flatten(1), tril.square().sum(-1).sqrt().flatten(1))


class NaturalPart:
    """E distributions of one kind on the site's own support; rows hold their parameters, mapped to all reals."""

    def __init__(self, factor: Factor) -> None:
        (self.site,), self.kind, self.place = factor.sites, factor.kind, factor.places
        self.name = factor.kind.__name__.lower()
        self.num = next(iter(factor.parameters.values())).shape[1]
        constraints: Any = factor.kind.arg_constraints
        self.moves = {name: biject_to(constraints[name]) for name in factor.parameters}
        self.shapes: dict[str, Size] = {name: value.shape[2:] for name, value in factor.parameters.items()}
        columns, bounded = [], []
        for name, value in factor.parameters.items():
            columns.append(self.moves[name].inv(value).reshape(*value.shape[:2], -1))
            bounded += [float(constraints[name] is not real)] * self.shapes[name].numel()
        self.width = len(bounded)
        start = torch.cat(columns, -1)
        self.floor = FLOOR * start.new_tensor(bounded)
        self.start = start.flatten(1)

    def distribution(self, rows: Tensor) -> Any:
        """The members on the site's support, with batch ``(..., E)``."""
        parts = rows.unflatten(-1, (self.num, self.width)).split([s.numel() for s in self.shapes.values()], -1)
        parameters = {
            name: self.moves[name](part.unflatten(-1, shape) if shape else part[..., 0])
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
        return self.kind(**parameters, validate_args=False)

    @torch.no_grad()
    def frame(self, rows: Tensor) -> Tensor:
        """Cholesky factor C of the Fisher information, ``(r, E, w, w)``, by the scores of draws."""
        num = max(FISHER_DRAWS, 4 * self.width)
        value = self.distribution(rows).sample((num,))
        with torch.enable_grad():
            leaf = rows.expand(num, *rows.shape).clone().requires_grad_()
            (score,) = torch.autograd.grad(self.distribution(leaf).log_prob(value).sum(), leaf)
        score = score.double().nan_to_num().unflatten(-1, (self.num, self.width)).permute(1, 2, 3, 0)
        fisher = score @ score.mT / num
        least = self.floor.double() + 1e-6 * fisher.diagonal(dim1=-2, dim2=-1) + 1e-12
        return torch.linalg.cholesky(fisher + least.diag_embed()).to(rows)

    def draw(self, rows: Tensor, noise: Tensor, frame: Tensor | None = None) -> Draw:
        """By torch's global generator; ``noise`` says how many."""
        bijection = biject_to(self.site.support)
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_()
            own = self.distribution(leaf).rsample((len(noise),))  # (S, r, E, ...)
            value = own.reshape(*noise.shape[:2], *self.site.shape)
            free = bijection.inv(value)
            volume = bijection.log_abs_det_jacobian(free, value).reshape(*noise.shape[:2], -1).sum(-1)
            log_q = self.distribution(rows.detach()).log_prob(own).sum(-1) + volume
            z = free.reshape(*noise.shape[:2], -1)

        def pull(grad: Tensor) -> Tensor:
            assert frame is not None
            (gradient,) = torch.autograd.grad([z, log_q], leaf, [grad, -torch.ones_like(log_q)])
            gradient = gradient.unflatten(-1, (self.num, self.width))[..., None] / len(noise)
            return torch.linalg.solve_triangular(frame, gradient, upper=False).flatten(1)

        return Draw(z.detach(), log_q.detach(), pull)

    def move(self, rows: Tensor, step: Tensor, frame: Tensor) -> Tensor:
        """See :class:`~amortized_bayes.inference.families.Family`."""
        step = step.unflatten(-1, (self.num, self.width))[..., None]
        return rows + torch.linalg.solve_triangular(frame.mT, step, upper=True).flatten(1)

    def jump(self, rows: Tensor, generator: Generator) -> Tensor:
        """A step at random, ``(r, W)``."""
        return torch.empty_like(rows).normal_(generator=generator)

    @torch.no_grad()
    def moments(self, rows: Tensor) -> Gaussian:
        """Mean and scale of each latent on the unconstrained space, from draws."""
        z = self.draw(rows, rows.new_empty(FISHER_DRAWS, len(rows), 0)).z
        return Gaussian(z.mean(0), z.std(0))


class OwnFamily:
    """Products of named kinds, see :class:`~amortized_bayes.inference.families.Family`.

    Args:
        factors: factors of the guide.
    """

    def __init__(self, factors: Sequence[Factor]) -> None:
        self.factors = list(factors)
        kinds = {True: GaussianPart, False: NaturalPart}
        self.parts: list[GaussianPart | NaturalPart] = [kinds[factor.gaussian](factor) for factor in factors]
        self.widths = [part.start.shape[-1] for part in self.parts]
        self.name = " × ".join(dict.fromkeys(part.name for part in self.parts))
        self.common = all(factor.gaussian for factor in factors)
        self.contains = any(factor.contains for factor in factors)
        self.start = torch.cat([part.start for part in self.parts], -1)
        self.order = torch.cat([part.place for part in self.parts]).argsort()  # of z among what the parts draw
        self.rates = torch.full_like(self.start[:1], RATE)

    def frame(self, rows: Tensor) -> list[Any]:
        """Frames of the parts."""
        return [part.frame(own) for part, own in self._of(rows)]

    def draw(self, rows: Tensor, noise: Tensor, frame: list[Any] | None = None) -> Draw:
        """See :class:`~amortized_bayes.inference.families.Family`."""
        own = zip(self._of(rows), frame or [None] * len(self.parts), strict=True)
        drawn = [part.draw(row, noise[..., part.place], its) for (part, row), its in own]

        def pull(grad: Tensor) -> Tensor:
            return torch.cat([d.pull(grad[..., p.place]) for d, p in zip(drawn, self.parts, strict=True)], -1)

        return Draw(self._in_z([d.z for d in drawn]), torch.stack([d.log_q for d in drawn]).sum(0), pull)

    def move(self, rows: Tensor, step: Tensor, frame: list[Any]) -> Tensor:
        """See :class:`~amortized_bayes.inference.families.Family`."""
        steps = step.split(self.widths, -1)
        own = zip(self._of(rows), steps, frame, strict=True)
        return torch.cat([part.move(row, s, its) for (part, row), s, its in own], -1)

    def whiten(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Coordinates of a step are such already."""
        return gradient

    def pace(self, rows: Tensor, distance: Tensor) -> Tensor:
        """A round at the default settings moves locations by 15 of their scales."""
        paces = []
        for part, own in self._of(rows):
            pace = torch.ones_like(own)
            if isinstance(part, GaussianPart):
                pace[:, : part.num * part.size] = distance / RATE
            paces.append(pace)
        return torch.cat(paces, -1)

    def scatter(self, rows: Tensor, num: int, spread: float, generator: Generator) -> Tensor:
        """See :class:`~amortized_bayes.inference.families.Family`."""
        frame, moved = self.frame(rows), [rows]
        for _ in range(num - 1):
            jumps = [part.jump(own, generator) for part, own in self._of(rows)]
            moved.append(self.move(rows, spread * torch.cat(jumps, -1), frame))
        return torch.cat(moved)

    def moments(self, rows: Tensor) -> Gaussian:
        """Mean and scale of each latent."""
        found = [part.moments(own) for part, own in self._of(rows)]
        return Gaussian(*(self._in_z(part) for part in zip(*found, strict=True)))

    def distributions(self, rows: Tensor) -> dict[str, Distribution]:
        """Q by its sites: Gaussians on the unconstrained space, others on the site's support; a batch ``(r, E)``."""
        own = zip(self.factors, self._of(rows), strict=True)
        return {" & ".join(s.name for s in f.sites): part.distribution(row) for f, (part, row) in own}

    def _in_z(self, columns: Sequence[Tensor]) -> Tensor:
        """What the parts draw, ``(..., size)`` each, in the order of z."""
        return torch.cat(list(columns), -1)[..., self.order]

    def _of(self, rows: Tensor) -> list[tuple[Any, Tensor]]:
        return list(zip(self.parts, rows.split(self.widths, -1), strict=True))
