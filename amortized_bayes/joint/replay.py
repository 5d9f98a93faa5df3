"""How log p(x, z) is evaluated fast: captured once, for chunks of one size."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from torch import Tensor

from amortized_bayes.capture import CaptureError, capture
from amortized_bayes.joint.density import LogJoint

__all__ = ["captured_or_plain", "points_per_chunk"]

logger = logging.getLogger(__name__)


def captured_or_plain(
    program: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], check_inputs: Sequence[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    """A replayed graph of ``program``, or ``program`` itself where it cannot be captured (said once, by logging)."""
    try:
        captured = capture(program, inputs, check_inputs)
    except CaptureError as error:
        logger.warning("the model is run uncaptured, more slowly: %s", error)
        return program
    if captured.backend != "cuda graph":
        return captured
    # The next replay overwrites a CUDA graph's outputs, and a chain that stays keeps its old ones.
    return lambda *tensors: [t.clone() for t in captured(*tensors)]


def points_per_chunk(joint: LogJoint, num_chains: int, memory_budget: float | None) -> int:
    """Points a chunk, such that all chunks have about the same size."""
    budget = memory_budget if memory_budget is not None else (8e9 if joint.device.type == "cuda" else 64e6)
    data = sum(t[0].numel() * t.element_size() for t in joint.inputs(1))
    # A row holds its data, four or so arrays of their size (means, log densities, gradients), and z some ten times.
    row = 6 * data + 10 * joint.dim * 8
    largest = max(1, int(budget / (num_chains * row)))
    return math.ceil(joint.num_points / math.ceil(joint.num_points / largest))
