"""Rows of which most entries are 0, such as counts of words: only the others are kept, and no product fills them in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

__all__ = ["SparseLinear", "SparseRows", "product"]


@dataclass(frozen=True, eq=False)
class SparseRows:
    """B rows of which the entries other than 0 are kept, row after row (compressed sparse rows).

    Args:
        starts: (B + 1,), where the entries of each row begin, and where the last ones end.
        columns: (E,), of each entry.
        values: (E,), of each entry.
        width: number of columns.

    Example:
        >>> rows = SparseRows(torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1]), torch.tensor([5.0, 1.0, 2.0]), 3)
        >>> rows.dense()
        tensor([[0., 0., 5.],
                [1., 2., 0.]])
        >>> rows.index_select(0, torch.tensor([1])).sums()
        tensor([3.])
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    width: int

    @classmethod
    def of(cls, starts: np.ndarray, columns: np.ndarray, values: np.ndarray, width: int) -> SparseRows:
        """Rows of numpy arrays, as floats of torch's default type."""
        first, second = (torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)) for array in (starts, columns))
        return cls(first, second, torch.from_numpy(values.astype(np.float64)).to(torch.get_default_dtype()), width)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """(B, width)."""
        return len(self), self.width

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.values.device

    @property
    def is_cuda(self) -> bool:
        """Whether that is a GPU."""
        return self.values.is_cuda

    def dim(self) -> int:
        """Two, as of any matrix."""
        return 2

    def is_floating_point(self) -> bool:
        """Whether the values are floats."""
        return self.values.is_floating_point()

    def to(self, to: Any) -> SparseRows:
        """The rows with values of another type, or on another device."""
        on = [part.to(to) if isinstance(to, (str, torch.device)) else part for part in (self.starts, self.columns)]
        return SparseRows(on[0], on[1], self.values.to(to), self.width)

    def with_values(self, values: Tensor) -> SparseRows:
        """Other values (E,) at the same places."""
        return SparseRows(self.starts, self.columns, values, self.width)

    def index_select(self, dim: int, index: Tensor) -> SparseRows:
        """The rows with indices ``index``, (B,), as torch's."""
        if dim != 0:
            raise ValueError(f"expected rows to be selected, dim 0, got dim {dim}")
        first = self.starts.index_select(0, index)
        counts = self.starts.index_select(0, index + 1) - first
        starts = F.pad(counts.cumsum(0), (1, 0))
        shift = (first - starts[:-1]).repeat_interleave(counts)
        at = torch.arange(len(shift), device=shift.device) + shift
        return SparseRows(starts, self.columns.index_select(0, at), self.values.index_select(0, at), self.width)

    def __getitem__(self, index: Any) -> SparseRows:
        """The rows of a slice, or of places (n,)."""
        places = torch.arange(len(self), device=self.device)[index]
        return self.index_select(0, places)

    def rows(self) -> Tensor:
        """Of each entry, the row that it is in, (E,)."""
        places = torch.arange(len(self), device=self.device)
        return places.repeat_interleave(self.starts.diff())

    def sums(self) -> Tensor:
        """Sum of each row, (B,)."""
        return self.values.new_zeros(len(self)).index_add_(0, self.rows(), self.values)

    def transposed(self) -> SparseRows:
        """The columns as rows."""
        order = self.columns.argsort(stable=True)
        starts = F.pad(self.columns.bincount(minlength=self.width).cumsum(0), (1, 0))
        return SparseRows(starts, self.rows()[order], self.values[order], len(self))

    def dense(self) -> Tensor:
        """All entries, (B, width)."""
        return self.values.new_zeros(self.shape).index_put_((self.rows(), self.columns), self.values, accumulate=True)


def _of_parts(parts: Any, width: Any) -> SparseRows:
    return SparseRows(parts[0], parts[1], parts[2], width)


pytree.register_pytree_node(
    SparseRows,
    lambda rows: ([rows.starts, rows.columns, rows.values], rows.width),
    _of_parts,
)


def product(x: Tensor | SparseRows, weight: Tensor) -> Tensor:
    """``x @ weight`` of rows (B, P) and a dense matrix (P, K): (B, K), with gradients with respect to the matrix."""
    if isinstance(x, Tensor):
        return x @ weight
    found: Any = _Product.apply(weight, x)
    return found


class _Product(torch.autograd.Function):
    """Of sparse rows and a matrix; that of the gradient is one of sparse rows too, those of the transposed matrix."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: SparseRows) -> Tensor:
        ctx.x = x
        return _weighted_sums(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:  # type: ignore[override] -- the decorator hides the name of ctx
        return _weighted_sums(ctx.x.transposed(), gradients[0]), None


def _weighted_sums(x: SparseRows, weight: Tensor) -> Tensor:
    return F.embedding_bag(
        x.columns, weight, x.starts, mode="sum", per_sample_weights=x.values, include_last_offset=True
    )


class SparseLinear(nn.Module):
    """An affine map of rows, dense or sparse, that starts as ``nn.Linear`` does.

    Its weight is (in, out), so that the few rows of it that a sparse row needs lie together.
    """

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        plain = nn.Linear(size_in, size_out)
        self.weight, self.bias = nn.Parameter(plain.weight.detach().t().contiguous()), plain.bias

    def forward(self, x: Tensor | SparseRows) -> Tensor:
        """Of rows (B, in): (B, out)."""
        return product(x, self.weight) + self.bias
