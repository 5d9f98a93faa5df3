r"""Models that are jointly Gaussian: exact posterior, evidence and mean-field optimum, read off the Pyro program.

With all latents u = (theta, z_1, ..., z_N) in one vector, the program's log density is

.. math:: \log p(u, x) = c + h^T u - \tfrac12 u^T \Lambda u,
   \qquad u \mid x \sim N(\Lambda^{-1} h, \Lambda^{-1}),
   \qquad \log p(x) = c + \tfrac12 h^T \Lambda^{-1} h + \tfrac d2 \log 2\pi - \tfrac12 \log |\Lambda| .

For a factorized Gaussian q of means m and variances v, with :math:`m^* = \Lambda^{-1} h` and
:math:`v^*_i = 1 / \Lambda_{ii}`,

.. math:: \mathrm{ELBO}(m, v) = \log p(x) - \tfrac12 \Big(\sum_i \log \Lambda_{ii} - \log|\Lambda|\Big)
   - \tfrac12 (m - m^*)^T \Lambda (m - m^*) - \tfrac12 \sum_i \big(v_i / v^*_i - 1 - \log (v_i / v^*_i)\big).

The first two terms are the optimum of F-VI (Bishop, *Pattern Recognition and Machine Learning*, 2006, section 10.1.2),
the last two what any other answer loses. So the best f that is linear in features of its input solves a weighted least
squares problem.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amortized_bayes.memory import check_memory
from amortized_bayes.models.flat_program import FlatProgram
from amortized_bayes.types import Model

__all__ = ["Answer", "GaussianJoint", "gaussian_joint"]

MANY = 30
"""Diagonals of a band from which on one product with a matrix is quicker than one for each of them."""
MOST_FULL = 3_000
"""Local latents up to which that matrix is made: 72 MB."""
TOLERANCE = 1e-7
"""Relative, of the density against its quadratic form, at a random place."""


class Answer(NamedTuple):
    """A factorized Gaussian of all latents, shared ones first.

    Args:
        mean: (G + N·D,).
        log_scale: (G + N·D,).
        lost: nats that its ELBO lies below the optimum of F-VI, in all.
    """

    mean: Tensor
    log_scale: Tensor
    lost: Tensor


@dataclass(frozen=True, eq=False)
class GaussianJoint:
    """log p(u, x) of G shared latents and N·D local ones, u = (theta, z_11, ..., z_1D, z_21, ...), in float64.

    Args:
        border: precision of the shared latents, (G, G).
        cross: their rows of the precision beside it, (G, N·D).
        band: precision of the local latents by diagonals, (b + 1, N·D): ``band[k, i]`` is that of i and i + k.
        linear: h, (G + N·D,).
        constant: c.
        num_data: N.
    """

    border: Tensor
    cross: Tensor
    band: Tensor
    linear: Tensor
    constant: Tensor
    num_data: int

    @property
    def num_shared(self) -> int:
        """G."""
        return len(self.border)

    @property
    def diagonal(self) -> Tensor:
        """Diagonal of the precision matrix, (G + N·D,): one over the variances of the optimum of F-VI."""
        return torch.cat([self.border.diagonal(), self.band[0]])

    @cached_property
    def _full(self) -> Tensor | None:
        """The band as a matrix, where it has so many diagonals that one product is quicker than one for each."""
        if len(self.band) < MANY or self.band.shape[1] > MOST_FULL:
            return None
        full = torch.diag(self.band[0])
        for k, row in enumerate(self.band[1:], 1):
            full.diagonal(k).copy_(row[:-k])
            full.diagonal(-k).copy_(row[:-k])
        return full

    def times(self, u: Tensor) -> Tensor:
        r"""Product of the precision matrix with u, (G + N·D,)."""
        theta, z = u[: self.num_shared], u[self.num_shared :]
        if self._full is not None:
            return torch.cat([self.border @ theta + self.cross @ z, self._full @ z + self.cross.T @ theta])
        local = self.band[0] * z + self.cross.T @ theta
        for k, row in enumerate(self.band[1:], 1):
            local = local + torch.nn.functional.pad(row[:-k] * z[:-k], (k, 0))
            local = local + torch.nn.functional.pad(row[:-k] * z[k:], (0, k))
        return torch.cat([self.border @ theta + self.cross @ z, local])

    def solve(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """Precision matrix divided into a vector (G + N·D,), and its log determinant.

        Raises:
            ValueError: it is not positive definite.
        """
        from scipy.linalg import LinAlgError, cho_solve_banded, cholesky_banded  # slow to load

        count = self.num_shared
        try:
            factor = cholesky_banded(self.band.numpy(), lower=True)
            both = torch.cat([self.cross, right[count:][None]]).T.numpy()
            solved = torch.from_numpy(cho_solve_banded((factor, True), both))
            schur, beside = torch.linalg.cholesky(self.border - self.cross @ solved[:, :count]), solved[:, count]
        except (LinAlgError, RuntimeError):  # torch's is one
            raise ValueError(
                "expected a proper posterior, got a precision matrix that is not positive definite"
            ) from None
        theta = torch.cholesky_solve((right[:count] - self.cross @ beside)[:, None], schur)[:, 0]
        log_det = 2 * (torch.from_numpy(factor[0]).log().sum() + schur.diagonal().log().sum())
        return torch.cat([theta, beside - solved[:, :count] @ theta]), log_det

    def best(self) -> Answer:
        """The optimum of F-VI: exact posterior means, and one over the diagonal of the precision as variances."""
        mean, _ = self.solve(self.linear)
        return Answer(mean, -0.5 * self.diagonal.log(), torch.zeros_like(self.constant))

    def log_evidence(self) -> Tensor:
        """Exact log p(x) of all data in nats, ()."""
        return self._evidence()[0]

    def _evidence(self) -> tuple[Tensor, Tensor]:
        """Log p(x), and the log determinant of the precision."""
        mean, log_det = self.solve(self.linear)
        return self.constant + 0.5 * (self.linear @ mean + len(mean) * math.log(2 * math.pi) - log_det), log_det

    def best_elbo(self) -> Tensor:
        """ELBO of the optimum of F-VI in nats, of all data, ()."""
        evidence, log_det = self._evidence()
        return evidence - 0.5 * (self.diagonal.log().sum() - log_det)

    def elbo(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """Exact ELBO of a factorized Gaussian in nats, of all data, (); with gradients."""
        energy = self.constant + self.linear @ mean - 0.5 * mean @ self.times(mean)
        spread = -0.5 * self.diagonal @ (2 * log_scale).exp()
        return energy + spread + (log_scale + 0.5 * math.log(2 * math.pi * math.e)).sum()

    def lost(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """Nats that a factorized Gaussian loses beside the optimum of F-VI, ()."""
        away = mean - self.best().mean
        ratio = (2 * log_scale).exp() * self.diagonal
        return 0.5 * (away @ self.times(away) + (ratio - 1 - ratio.log()).sum())

    def local_best(self) -> Tensor:
        """Means and log scales of the local latents at the optimum of F-VI, (N, 2 D): a row per point."""
        rows = (part[self.num_shared :].reshape(self.num_data, -1) for part in self.best()[:2])
        return torch.cat([*rows], 1)

    def answer(self, rows: Tensor) -> Answer:
        """Local means and log scales (N, 2 D), beside the shared latents' own best answer to them.

        Raises:
            ValueError: rows of another shape.
        """
        count, size = self.num_shared, len(self.band[0]) // self.num_data
        if rows.shape != (self.num_data, 2 * size):
            raise ValueError(f"expected rows ({self.num_data}, {2 * size}), got {tuple(rows.shape)}")
        local, log_scale = (part.double().flatten() for part in rows.chunk(2, 1))
        theta = torch.linalg.solve(self.border, self.linear[:count] - self.cross @ local)
        mean = torch.cat([theta, local])
        scales = torch.cat([-0.5 * self.border.diagonal().log(), log_scale])
        return Answer(mean, scales, self.lost(mean, scales))

    def best_of(self, features: Tensor, groups: Tensor | None = None) -> Answer:
        """The best f whose means are linear in features of its input, with one scale for each group of points.

        Shared latents have their own best means and scales. With a feature for each group, 1 inside it, the best table:
        an f whose input takes as many values as there are groups.

        Args:
            features: (N, K), a column of ones among them where f has an intercept.
            groups: whole numbers from 0, (N,); by default all points have one scale.

        Raises:
            ValueError: features or groups of other shapes, or not finite.
        """
        count, size = self.num_shared, len(self.band[0]) // self.num_data
        groups = torch.zeros(self.num_data, dtype=torch.long) if groups is None else groups
        if features.dim() != 2 or len(features) != self.num_data or groups.shape != (self.num_data,):
            raise ValueError(
                f"expected features ({self.num_data}, K) and groups ({self.num_data},), got {tuple(features.shape)} "
                f"and {tuple(groups.shape)}"
            )
        if not features.isfinite().all():
            raise ValueError("expected finite features, got nan or inf in them")
        design = torch.block_diag(torch.eye(count).double(), torch.kron(features.double(), torch.eye(size).double()))
        weighted = torch.stack([self.times(column) for column in design.T], 1)
        best = self.best().mean
        weights = torch.linalg.pinv(design.T @ weighted, hermitian=True) @ (weighted.T @ best)
        labels = (groups[:, None] * size + torch.arange(size)).flatten()
        totals = torch.zeros(int(labels.max()) + 1).double().index_add(0, labels, self.band[0])
        counts = torch.zeros_like(totals).index_add(0, labels, torch.ones_like(self.band[0]))
        local = 0.5 * (counts / totals)[labels].log()
        log_scale = torch.cat([-0.5 * self.border.diagonal().log(), local])
        mean = design @ weights
        return Answer(mean, log_scale, self.lost(mean, log_scale))


def gaussian_joint(
    model: Model, *args: Any, local: Sequence[str] = ("z",), bandwidth: int | None = None
) -> GaussianJoint:
    r"""Read the quadratic form of log p(u, x) off a Pyro program, at float64 data.

    Since the gradient is linear, :math:`\Lambda v = \nabla(0) - \nabla(v)`: one gradient for each shared latent, and
    2 b + 1 for the local ones, whatever N is.

    Args:
        model: Pyro program, Gaussian in all of its latents together.
        args: its arguments.
        local: sites of points, which lie along dimension 0 of their values; all others are shared.
        bandwidth: b, how far apart local latents may be that are tied to each other, counted along z_11, ..., z_1D,
            z_21, ...; by default there is no limit.

    Raises:
        ValueError: a density that is no such form, a site that is missing, or a precision that no memory holds.
    """
    program = FlatProgram(model, *args, local=local)
    num_shared, gradient, total = program.num_shared, program.gradient, program.size
    constant, linear = gradient(torch.zeros(total).double())
    columns = [linear - gradient(row)[1] for row in torch.eye(total)[:num_shared].double()]
    rows = torch.stack(columns) if columns else torch.zeros(0, total).double()
    num_local = total - num_shared
    reach = num_local - 1 if bandwidth is None else min(bandwidth, num_local - 1)
    check_memory(8 * (reach + 1) * num_local, f"the precision of {num_local:,} latents by {reach + 1:,} diagonals")
    band, places = torch.zeros(reach + 1, num_local).double(), torch.arange(num_local)
    for colour in range(min(2 * reach + 1, num_local)):
        chosen = places % (2 * reach + 1) == colour
        product = linear - gradient(torch.cat([torch.zeros(num_shared).double(), chosen.double()]))[1]
        other = places[chosen] + torch.arange(reach + 1)[:, None]
        inside = other < num_local
        band[:, chosen] = torch.where(inside, product[num_shared:][other.clamp(max=num_local - 1)], 0.0)
    joint = GaussianJoint(rows[:, :num_shared], rows[:, num_shared:], band, linear, constant, program.num_data)
    _check(joint, *gradient(probe := torch.randn(total, generator=torch.Generator().manual_seed(1)).double()), probe)
    return joint


def _check(joint: GaussianJoint, value: Tensor, slope: Tensor, place: Tensor) -> None:
    """Hold the form against the density at a random place."""
    product = joint.times(place)
    expected = joint.constant + joint.linear @ place - 0.5 * place @ product
    size = joint.linear.abs().max() + product.abs().max()
    if not torch.allclose(slope, joint.linear - product, rtol=0, atol=float(TOLERANCE * size)) or not torch.isclose(
        value, expected, rtol=TOLERANCE, atol=TOLERANCE
    ):
        raise ValueError(
            "expected log p quadratic in all latents, with ties no further apart than the bandwidth, and data and "
            "parameters in float64; it is another function at a random place"
        )
