"""What encoders see of the arguments of anybody's model, and whether they can learn from it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from amortized_bayes.guides.seen import Seen
from amortized_bayes.points import PointData, PointRows

__all__ = ["encoder_view"]

logger = logging.getLogger(__name__)

PROBED = 64
"""Points on which it is tried."""
LARGE = 100.0
"""Distance from its mean at which an input makes the first steps of an encoder too large."""


def encoder_view(data: PointData, encoder_input: Callable[..., Tensor] | None, dtype: torch.dtype) -> Seen:
    """What guides see of the data, tried on the first points.

    Args:
        data: arguments of the model.
        encoder_input: called with them; by default all tensors with rows are seen, but for the indices of the points.
        dtype: type of what is seen.

    Raises:
        ValueError: a function that fails, gives no finite row per point, or another one when neighbours change.
    """
    seen = Seen(data, encoder_input, left_out=_places_among(data.rows), dtype=dtype)
    some = data.rows[:PROBED]
    with torch.no_grad():
        whole, alone = (seen.see(rows) if encoder_input is None else _tried(seen, rows) for rows in (some, some[:2]))
    if encoder_input is not None and not torch.allclose(whole[:2], alone, rtol=1e-3, atol=1e-3):
        raise ValueError(
            "expected an encoder_input that treats each point on its own, got another answer for the first two points "
            "when they come with others"
        )
    size = (whole - whole.mean(0)).abs().max().item()
    if encoder_input is None and size > LARGE:
        logger.warning(
            "encoders see values up to %.0f from their mean, at which they fit badly: scale them by encoder_input=, as "
            "in encoder_input=lambda counts: torch.log1p(counts)",
            size,
        )
    return seen


def _tried(seen: Seen, rows: PointRows) -> Tensor:
    """What a user's function gives, one finite row per point."""
    try:
        found = seen.see(rows)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"encoder_input fails when it is called as the model is: {first}") from error
    if found.dim() < 1 or len(found) != len(rows) or not found.isfinite().all():
        raise ValueError(
            f"expected encoder_input to give a finite row for each of {len(rows)} points, got shape "
            f"{tuple(found.shape)}{'' if found.isfinite().all() else ' with values that are not finite'}"
        )
    return found


def _places_among(rows: PointRows) -> list[int]:
    """Tensors that say nothing but where the points are among all: whole numbers, each of 0 to N - 1 once."""
    found = []
    for place, tensor in enumerate(rows.tensors):
        whole = tensor.dim() == 1 and not (tensor.is_floating_point() or tensor.dtype == torch.bool)
        if whole and torch.equal(tensor.sort().values, torch.arange(len(tensor)).to(tensor)):
            found.append(place)
    return found
