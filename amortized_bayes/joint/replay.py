"""How log p(x, z) is evaluated fast: captured once, for chunks of one size."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from amortized_bayes.capture import Captured, CaptureError, capture, is_worth
from amortized_bayes.joint.density import LogJoint
from amortized_bayes.memory import check_memory

__all__ = ["captured_or_plain", "only", "points_per_chunk", "rows_at_once"]

logger = logging.getLogger(__name__)

Program = Callable[..., Sequence[Tensor]]


class _Cloned(NamedTuple):
    """A CUDA graph whose outputs stay: the next replay overwrites them, and a chain that stays keeps its old ones."""

    captured: Captured

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        return [t.clone() for t in self.captured(*inputs)]


def captured_or_plain(
    program: Program, inputs: Sequence[Tensor], check_inputs: Sequence[Tensor], calls: int
) -> Program:
    """A replayed graph of ``program``, or ``program`` itself where it cannot be captured (said once, by logging).

    Args:
        program: function of tensors.
        inputs: to capture it on.
        check_inputs: others, on which the graph must give the same.
        calls: about how many there will be; for few the program is not captured.
    """
    if not is_worth(calls):
        return program
    try:
        captured = capture(program, inputs, check_inputs)
    except CaptureError as error:
        logger.warning("the model is run uncaptured, more slowly: %s", error)
        return program
    return _Cloned(captured) if captured.backend == "cuda graph" else captured


def only(program: Program, places: Sequence[int]) -> Program:
    """Some outputs of a program that :func:`captured_or_plain` gave; where it is captured the rest is not computed."""
    if isinstance(program, _Cloned):
        return _Cloned(program.captured.only(places))
    if isinstance(program, Captured):
        return program.only(places)
    return lambda *inputs: [outputs[place] for outputs in [program(*inputs)] for place in places]


def points_per_chunk(joint: LogJoint, num_chains: int, memory_budget: float | None) -> int:
    """Points a chunk, such that all chunks have about the same size.

    Raises:
        ValueError: one point alone needs more memory than there is.
    """
    row = _row_bytes(joint)
    check_memory(num_chains * row, f"{num_chains:,} chains or draws of a point", joint.device)
    largest = max(1, int(_budget(joint, memory_budget) / (num_chains * row)))
    return math.ceil(joint.num_points / math.ceil(joint.num_points / largest))


def rows_at_once(joint: LogJoint, memory_budget: float | None = None) -> int:
    """Chains or draws of points whose density may be evaluated together."""
    return max(1, int(_budget(joint, memory_budget) / _row_bytes(joint)))


def _budget(joint: LogJoint, memory_budget: float | None) -> float:
    return memory_budget if memory_budget is not None else (8e9 if joint.device.type == "cuda" else 64e6)


def _row_bytes(joint: LogJoint) -> int:
    """What a row takes, by a rough count."""
    data = sum(t[0].numel() * t.element_size() for t in joint.inputs(1))
    # A row holds its data, four or so arrays of their size (means, log densities, gradients), and z some ten times;
    # all but the data and z once for each value of the sites that are summed out.
    return data + joint.num_values * 5 * data + 10 * joint.dim * 8
