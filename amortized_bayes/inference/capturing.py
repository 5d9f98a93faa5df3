"""The step of a fit, captured: replayed, and compiled where that pays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from torch import Tensor

from amortized_bayes.capture import Captured, CaptureError, capture, is_worth

__all__ = ["COMPILED_FROM", "Whole", "captured_step", "pays"]

logger = logging.getLogger("amortized_bayes.inference.svi")

COMPILED_FROM = 2_000
"""Steps from which compiling pays on a CPU: it takes about as long as 1,000 of a small VAE's, and saves a quarter to a
half of each. A count and no timing: compiled and replayed steps round differently, and a run is the same every time."""


class Whole(NamedTuple):
    """A step that also moves what it fits, which is what is compiled: the compiler fuses the move with the gradients.

    Args:
        step: as for :func:`~amortized_bayes.capture.capture`, with ``into`` and ``compared``.
        first: inputs of one batch.
        second: inputs of another.
        into: see there.
        compared: see there.
    """

    step: Callable[..., list[Tensor]]
    first: Sequence[Tensor]
    second: Sequence[Tensor]
    into: Sequence[Tensor]
    compared: int


def pays(how: str, evaluations: int) -> bool:
    """Whether to capture a step that is used so often; always where a way is asked for."""
    return how != "auto" or is_worth(evaluations)


def captured_step(
    step: Callable[..., list[Tensor]],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    how: str,
    evaluations: int,
    restore: Sequence[Tensor],
    whole: Whole | None = None,
) -> Captured | None:
    """Capture a step on one batch and check it on another; ``None``, and one line said, where that cannot be done.

    Args:
        step: loss and gradients of a batch.
        first: inputs of one batch.
        second: inputs of another.
        how: ``auto``, ``replay`` or ``inductor``.
        evaluations: steps that it will be used for, each step of rows counted.
        restore: tensors that tracing may change, to be put back.
        whole: what is compiled, where it is not ``step``; its ``into`` is then that of the captured step.
    """
    compiled = partial(capture, step, first, second, backend="inductor", restore=restore)
    if whole is not None:
        inputs, into = (whole.first, whole.second), {"into": whole.into, "compared": whole.compared}
        compiled = partial(capture, whole.step, *inputs, backend="inductor", restore=restore, **into)
    wanted = how == "inductor" or (how == "auto" and evaluations >= COMPILED_FROM and not first[0].is_cuda)
    try:
        return compiled() if wanted else capture(step, first, second, restore=restore)
    except CaptureError as error:
        reason, captured = error, None
    if wanted:
        with suppress(CaptureError):
            captured = capture(step, first, second, restore=restore)
    way = "uncaptured" if captured is None else "replayed, not compiled"
    logger.warning("the step runs %s, which is slower and gives the same numbers: %s", way, reason)
    return captured
