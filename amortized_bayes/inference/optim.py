"""Adam for single rows of a table, and averages of iterates.

A minibatch of factorized VI touches its own rows of the table, of Adam's moments and of its step counts. A count
shared by all rows would make first visits three times too long; dense Adam costs more than the model and moves
points outside the batch, whose moments are not zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amortized_bayes.networks import RowTable

__all__ = ["IterateAverage", "RowAdam"]


class RowAdam:
    """Adam (Kingma & Ba, 2015) on the rows of a table that a batch visits, each with its own step count.

    Memory beside the table: two moments a parameter, one count a row. On a full batch it equals dense Adam.

    Args:
        table: table of shape (N, W).
        learning_rate: step size.
        betas: decay of the two moments.
        eps: added to the denominator.
        average: keep an average of each row's iterates as well (memory of another table), see :class:`IterateAverage`.
    """

    def __init__(
        self,
        table: RowTable,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        average: float | None = None,
    ) -> None:
        self.table = table
        self.learning_rate = learning_rate
        self.betas = betas
        self.eps = eps
        self.first_moment = torch.zeros_like(table.weight.data)
        self.second_moment = torch.zeros_like(table.weight.data)
        self.count = torch.zeros(len(table.weight), 1, dtype=torch.int32, device=table.weight.device)
        self.average = average
        self.averaged = table.weight.detach().clone() if average is not None else None

    @torch.no_grad()
    def step(self, index: Tensor, rows: Tensor, gradient: Tensor, multiplier: float = 1.0) -> None:
        """Move ``rows`` (B, W), those of the distinct points ``index`` (B,), against their ``gradient`` (B, W)."""
        beta1, beta2 = self.betas
        count = self.count[index] + 1
        first = self.first_moment[index].lerp_(gradient, 1 - beta1)
        second = self.second_moment[index].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        steps = count.to(rows.dtype)
        denominator = (second / (1 - beta2**steps)).sqrt_().add_(self.eps)
        new = rows - self.learning_rate * multiplier * (first / (1 - beta1**steps)) / denominator
        self.count[index] = count
        self.first_moment[index] = first
        self.second_moment[index] = second
        self.table.weight[index] = new
        if self.averaged is not None and self.average is not None:
            self.averaged[index] = self.averaged[index].lerp_(new, (self.average + 1) / (steps + self.average))

    def state(self) -> dict[str, Tensor]:
        """Table, moments, counts and averages."""
        state = {
            "weight": self.table.weight.detach(),
            "first_moment": self.first_moment,
            "second_moment": self.second_moment,
            "count": self.count,
        }
        return state if self.averaged is None else {**state, "averaged": self.averaged}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a state from :meth:`state`, of the same shapes."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


class IterateAverage:
    r"""Polynomial-decay average of iterates (Shamir & Zhang, 2013), good at any time without knowing the end.

    .. math::
        \bar w_t = \Big(1 - \frac{\eta + 1}{t + \eta}\Big) \bar w_{t-1} + \frac{\eta + 1}{t + \eta} w_t

    It weighs about the last 1 / (eta + 1) of all iterates.

    Args:
        parameters: tensors to average, changed in place by an optimiser.
        eta: the larger, the shorter the memory; ``None`` to keep no average.
    """

    def __init__(self, parameters: list[Tensor], eta: float | None = 8.0) -> None:
        self.parameters = parameters
        self.eta = eta
        self.averaged = None if eta is None else [p.detach().clone() for p in parameters]
        self.count = 0

    def weight(self, count: int) -> float:
        """Weight of the iterate number ``count``; 0 where no average is kept."""
        return 0.0 if self.eta is None else (self.eta + 1) / (count + self.eta)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current iterate."""
        self.count += 1
        if self.parameters and self.averaged is not None:
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                self.averaged, [p.detach() for p in self.parameters], self.weight(self.count)
            )
