"""A Pyro program's latents in one vector: shared ones, then a row for each point; and its log density there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from amortized_bayes.types import Model

__all__ = ["FlatProgram"]


class FlatProgram:
    """log p(u, x) of a program at its data, for u = (theta, z_11, ..., z_1D, z_21, ...), (G + N·D,).

    Latents are taken as they are: all must be real.

    Args:
        model: Pyro program.
        args: its arguments.
        local: sites of points, which lie along dimension 0 of their values; all others are shared.

    Raises:
        ValueError: a site that is missing.

    Example:
        >>> import torch
        >>> from amortized_bayes.models import Linear
        >>> from amortized_bayes.models.flat_program import FlatProgram
        >>> program = FlatProgram(Linear(), torch.zeros(3), local=["z"])
        >>> program.num_shared, program.num_data, program.size
        (1, 3, 4)
        >>> program.log_density(torch.zeros(4)).shape
        torch.Size([])
    """

    def __init__(self, model: Model, *args: Any, local: Sequence[str]) -> None:
        self.model, self.args, self.local = model, args, tuple(local)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            trace = poutine.trace(model).get_trace(*args)
            nodes: dict[str, Any] = {n: trace.nodes[n] for n in trace.stochastic_nodes}
            found = {n: node["value"].shape for n, node in nodes.items() if not isinstance(node["fn"], _Subsample)}
        if missing := [name for name in local if name not in found]:
            raise ValueError(f"expected latent sites {', '.join(map(repr, found))} in local, got {missing[0]!r}")
        self.shared = tuple(name for name in found if name not in local)
        self.shapes: dict[str, torch.Size] = found
        self.num_data = found[local[0]][0]
        self.sizes = [found[name].numel() // self.num_data for name in local]
        self.num_shared = sum(found[name].numel() for name in self.shared)

    @property
    def size(self) -> int:
        """G + N·D."""
        return self.num_shared + self.num_data * sum(self.sizes)

    def log_density(self, u: Tensor) -> Tensor:
        """Log p(u, x) in nats, ()."""
        parts = u[: self.num_shared].split([self.shapes[name].numel() for name in self.shared])
        columns = u[self.num_shared :].reshape(self.num_data, -1).split(self.sizes, 1)
        flat = {**dict(zip(self.shared, parts, strict=True)), **dict(zip(self.local, columns, strict=True))}
        values = {name: part.reshape(self.shapes[name]) for name, part in flat.items()}
        with pyro.validation_enabled(False):
            total = poutine.trace(poutine.condition(self.model, data=values)).get_trace(*self.args).log_prob_sum()
        assert isinstance(total, Tensor)
        return total

    def gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(u, x), (), and its gradient, (G + N·D,)."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            total = self.log_density(u)
            return total.detach(), torch.autograd.grad(total, u)[0]
