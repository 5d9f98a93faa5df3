"""Networks and tables: maps from tensors to tensors, with no probability in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["MLP", "RowTable", "row_tables"]


class MLP(nn.Sequential):
    """Fully connected network ``(..., sizes[0]) -> (..., sizes[-1])`` with LeakyReLU(0.2) between its layers.

    Args:
        sizes: input size, widths of the hidden layers, output size.
        output_bias: where given, the last layer starts at zero weights and this bias, so that the network starts as
            a constant function.

    Raises:
        ValueError: fewer than two sizes, or one below 1.
    """

    def __init__(self, sizes: Sequence[int], output_bias: Tensor | None = None) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"expected at least two sizes of 1 or more, got {list(sizes)}")
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.LeakyReLU(0.2)]
        super().__init__(*layers[:-1])
        if output_bias is not None:
            with torch.no_grad():
                last = layers[-2]
                assert isinstance(last, nn.Linear)
                last.weight.zero_()
                last.bias.copy_(output_bias)


class RowTable(nn.Module):
    """A table with a row for each of N data points, of which a batch touches only its own rows.

    Autograd through ``weight[index]`` makes a gradient as large as the table. So an optimiser step binds the gathered
    rows instead: inside :meth:`bind` a lookup returns those rows, in the order they were bound, and gradients stay
    ``(B, W)``.

    Args:
        weight: the table at the start, ``(N, W)``.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self._rows: Tensor | None = None

    @contextmanager
    def bind(self, rows: Tensor) -> Iterator[None]:
        """Let ``rows``, ``(B, W)``, stand for the rows of the current batch."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    def forward(self, index: Tensor) -> Tensor:
        """Rows of the points in ``index``, ``(B,)``, or of a batch tiled S times, ``(S·B,)``."""
        if self._rows is None:
            return self.weight[index]
        return self._rows.repeat(len(index) // len(self._rows), 1)


def row_tables(module: nn.Module) -> list[RowTable]:
    """All tables inside ``module``."""
    return [m for m in module.modules() if isinstance(m, RowTable)]
