r"""Models of one real latent per point, independent given theta: ELBO and the optimum of F-VI by quadrature.

For a factorized Gaussian q, with nodes t_i and s_j of Gauss-Hermite quadrature and their weights,

.. math:: \mathrm{ELBO}(m, v) = \mathrm{E}[\log p(\theta)] + \sum_n \sum_{ij} w_i w_j\,
   \log p(x_n, z_n = m_n + \sqrt{v_n} s_j \mid \theta = m_0 + \sqrt{v_0} t_i) + \mathrm{H}(q) .

The nodes of z_n are enough for scales up to about 1: on the nonlinear model the ELBO is off by 0.002 nats per point at
1.65. A point's ELBO may have several maxima in (m_n, v_n), so searches begin at several means and each point keeps its
best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from amortized_bayes.models.gaussian_joint import Answer
from amortized_bayes.types import Model

__all__ = ["IndependentJoint"]

SHARED_NODES, LOCAL_NODES = 5, 40
"""Nodes over theta, and over the latent of a point."""
STARTS = (-3.0, -1.5, 0.0, 1.5, 3.0)
"""Means at which searches for the optimum begin."""
START_LOG_SCALE = -1.0
ROUNDS = 4
"""How often points may take a better maximum, given what theta is then."""


class IndependentJoint:
    """log p(theta, z, x) of a program with scalars theta and z_n, and data x (N,), in float64.

    It has the methods of :class:`GaussianJoint <amortized_bayes.models.GaussianJoint>` that a density of any form can
    have; vectors are (theta, z_1, ..., z_N).

    Args:
        model: Pyro program over a plate of N points.
        x: its data.
        shared: site of theta.
        local: site of z.
    """

    num_shared = 1

    def __init__(self, model: Model, x: Tensor, *, shared: str = "theta", local: str = "z") -> None:
        self.model, self.x, self.shared, self.local, self.num_data = model, x, shared, local, len(x)
        (t, v), (s, w) = (np.polynomial.hermite_e.hermegauss(count) for count in (SHARED_NODES, LOCAL_NODES))
        self._t, self._v, self._s, self._w = (torch.from_numpy(a) for a in (t, v / v.sum(), s, w / w.sum()))

    def point_elbos(self, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        """ELBO of theta, (), and of each point given theta, (N,), in nats; with gradients. Their sum is the ELBO."""
        scale = log_scale.exp()
        theta = mean[0] + scale[0] * self._t
        z = mean[1:] + scale[1:] * self._s[:, None]
        values = {self.shared: theta[:, None, None], self.local: z}
        with pyro.validation_enabled(False):
            trace = poutine.trace(poutine.condition(self.model, data=values)).get_trace(self.x)
            trace.compute_log_prob()
        nodes: Mapping[str, Any] = trace.nodes
        prior = nodes[self.shared]["log_prob"].flatten() @ self._v
        inside = sum(nodes[n]["log_prob"] for n in trace.observation_nodes if n != self.shared)
        assert isinstance(inside, Tensor)
        weights = self._v[:, None, None] * self._w[:, None]
        local = (inside.expand(SHARED_NODES, LOCAL_NODES, self.num_data) * weights).sum((0, 1))
        entropy = log_scale + 0.5 * math.log(2 * math.pi * math.e)
        return prior + entropy[0], local + entropy[1:]

    def elbo(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """ELBO of a factorized Gaussian in nats, of all data, (); with gradients."""
        shared, local = self.point_elbos(mean, log_scale)
        return shared + local.sum()

    def best(self) -> Answer:
        """The best factorized Gaussian that was found: the optimum of F-VI."""
        rows = self._best
        return Answer(rows[0], rows[1], torch.zeros_like(rows[0, 0]))

    def best_elbo(self) -> Tensor:
        """ELBO of the optimum of F-VI in nats, of all data, ()."""
        mean, log_scale = self._best
        return self.elbo(mean, log_scale)

    def lost(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """Nats that a factorized Gaussian loses beside the optimum of F-VI, ()."""
        return self.best_elbo() - self.elbo(mean, log_scale)

    def local_best(self) -> Tensor:
        """Means and log scales of the local latents at the optimum of F-VI, (N, 2): a row per point."""
        return self._best[:, 1:].T

    def answer(self, rows: Tensor) -> Answer:
        """Local means and log scales (N, 2), beside theta's own best answer to them.

        Raises:
            ValueError: rows of another shape.
        """
        if rows.shape != (self.num_data, 2):
            raise ValueError(f"expected rows ({self.num_data}, 2), got {tuple(rows.shape)}")
        own = self._best[:, :1].clone()
        found = torch.cat([_climb(own, lambda pair: self.elbo(*torch.cat([pair, rows.T], 1))), rows.T], 1)
        return Answer(found[0], found[1], self.lost(found[0], found[1]))

    @cached_property
    def _best(self) -> Tensor:
        """Means and log scales, (2, 1 + N)."""
        best = self._from(STARTS[len(STARTS) // 2])
        for _ in range(ROUNDS):
            values, changed = self.point_elbos(*best)[1], False
            for mean in STARTS:
                other = torch.cat([best[:, :1], _row(mean, self.num_data)], 1)
                other = _climb(other, lambda rows: self.point_elbos(*rows)[1].sum(), held=best[:, :1])
                found = self.point_elbos(*other)[1]
                better = found > values + 1e-6
                if better.any():
                    changed = True
                    best = torch.cat([best[:, :1], torch.where(better, other[:, 1:], best[:, 1:])], 1)
                    values = torch.where(better, found, values)
            if not changed:
                break
            best = _climb(best, lambda rows: self.elbo(*rows))
        return best

    def _from(self, mean: float) -> Tensor:
        start = torch.cat([torch.tensor([[0.0], [START_LOG_SCALE]]).double(), _row(mean, self.num_data)], 1)
        return _climb(start, lambda rows: self.elbo(*rows))


def _row(mean: float, count: int) -> Tensor:
    return torch.tensor([[mean], [START_LOG_SCALE]]).double().expand(2, count)


def _climb(start: Tensor, value: Callable[[Tensor], Tensor], held: Tensor | None = None) -> Tensor:
    """A maximum of ``value`` by L-BFGS; first columns that are ``held`` stay as they are."""
    kept = 0 if held is None else held.shape[1]
    free = start[:, kept:].detach().clone().requires_grad_()
    search = torch.optim.LBFGS(
        [free],
        max_iter=500,
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=1e-13,
        line_search_fn="strong_wolfe",
    )

    def rows() -> Tensor:
        return free if held is None else torch.cat([held, free], 1)

    def loss() -> Tensor:
        search.zero_grad()
        (found := -value(rows())).backward()
        return found

    with torch.enable_grad():
        search.step(loss)  # pyright: ignore[reportArgumentType]  it takes a tensor
    return rows().detach()
