"""Models and guides as functions of rows, whatever arguments their authors gave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import pyro.poutine as poutine
from torch import Tensor, nn

from amortized_bayes.guides.autoguides import PerPointGuide
from amortized_bayes.points import PointData, PointRows
from amortized_bayes.signatures import takes

__all__ = ["PointProgram", "told_rows"]

_TOLD: ContextVar[Mapping[str, bool] | None] = ContextVar("told", default=None)


def told_rows() -> Mapping[str, bool] | None:
    """By name, whether each argument of the program that runs holds a row per point; ``None`` outside our calls."""
    return _TOLD.get()


class PointProgram(nn.Module):
    """A model or guide as a function of rows, and of the places of these points among all.

    Args:
        program: called with its own arguments.
        data: what these are.
        hide: names of sites that what runs the program must not see, such as a plate that counts the batch.
        drop: keyword arguments that this program does not take.
    """

    def __init__(self, program: Any, data: PointData, *, hide: Sequence[str] = (), drop: Sequence[str] = ()) -> None:
        super().__init__()
        self.program = program
        self.data = data
        self.hide, self.drop = list(hide), tuple(drop)
        passed = "index" in data.names  # as an argument like others
        self.takes_index = not passed and (takes(program, "index") or isinstance(program, PerPointGuide))

    @property
    def shared(self) -> Any:
        """The part of a guide that is fitted at the rate of shared latents, where it says so."""
        return getattr(self.program, "shared", None)

    def forward(self, rows: PointRows, index: Tensor | None = None) -> Any:
        """Run the program on these points."""
        if index is not None and self.takes_index and isinstance(self.program, PerPointGuide):
            return self.program.at(index)
        args, kwargs = self.data.arguments(rows)
        kwargs = {name: value for name, value in kwargs.items() if name not in self.drop}
        if index is not None and self.takes_index:
            kwargs["index"] = index
        hide = [*self.hide, *self.data.missing]
        program = poutine.block(self.program, hide=hide) if hide else self.program
        before = _TOLD.set(dict(zip(self.data.names, self.data.is_data, strict=True)))
        try:
            return program(*args, **kwargs)
        finally:
            _TOLD.reset(before)
