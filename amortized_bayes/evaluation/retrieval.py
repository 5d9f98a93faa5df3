"""How well binary codes find points of the same class: precision among the nearest by Hamming distance."""

from __future__ import annotations

import torch
from torch import Tensor

from amortized_bayes.limits import Count, limited

__all__ = ["precision_at"]

QUERIES_AT_ONCE = 256


@limited
def precision_at(count: Count, queries: Tensor, classes: Tensor, database: Tensor, classes_there: Tensor) -> Tensor:
    """Share of a query's class among the nearest points of a database, expected over the order of ties: (Q,).

    Many points have one distance. All those nearer than the last one that counts are counted, and those as far as it
    share the places that are left: the mean over all orders of them.

    Args:
        count: how many points are retrieved.
        queries: bits (Q, b).
        classes: classes of the queries, (Q,).
        database: bits (N, b).
        classes_there: classes of the database, (N,).

    Raises:
        ValueError: fewer points than are retrieved, or shapes that do not fit.

    Example:
        >>> bits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
        >>> precision_at(1, bits[:1], torch.tensor([7]), bits, torch.tensor([7, 8, 7]))
        tensor([0.5000])
    """
    if count > len(database):
        raise ValueError(f"expected a database of {count} points or more, got {len(database)}")
    shapes = queries.shape, classes.shape, database.shape, classes_there.shape
    if len(shapes[0]) != 2 or shapes != ((len(classes), queries.shape[1]), (len(queries),), database.shape, shapes[3]):
        raise ValueError(f"expected bits (Q, b) and (N, b) with classes (Q,) and (N,), got {shapes}")
    if shapes[2] != (len(classes_there), queries.shape[1]):
        raise ValueError(f"expected bits (Q, b) and (N, b) with classes (Q,) and (N,), got {shapes}")
    num_bits, sides = queries.shape[1], 2 * database.float() - 1
    found = []
    for own, its_class in zip(queries.split(QUERIES_AT_ONCE), classes.split(QUERIES_AT_ONCE), strict=True):
        away = ((num_bits - (2 * own.float() - 1) @ sides.T) / 2).round().long()
        alike = (its_class[:, None] == classes_there).float()
        held, right = (
            alike.new_zeros(len(own), num_bits + 1).scatter_add_(1, away, part)
            for part in (torch.ones_like(alike), alike)
        )
        before = held.cumsum(1) - held
        taken = (count - before).clamp(min=0).minimum(held)  # of each distance
        found.append((taken * right / held.clamp(min=1)).sum(1) / count)
    return torch.cat(found)
