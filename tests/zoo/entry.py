"""A model of the zoo, as a record: what it is written after, how it is called, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

WORKS = "works"


class Exact(NamedTuple):
    """What is known in closed form or by enumeration, per data point in nats.

    Args:
        log_p: log p(x), (B,).
        gap: log p(x) minus the ELBO of the guide, KL(q || p(z|x)), (B,), where it has a closed form.
        own_family: whether the posterior lies in the guide's own family, so that all of the gap is amortization.
    """

    log_p: Tensor
    gap: Tensor | None = None
    own_family: bool = False


@dataclass(frozen=True)
class Case:
    """Programs and their arguments.

    Args:
        model, guide: as their author has them, untrained or trained.
        args, kwargs: of both.
        exact: what is known, evaluated after the guide has run once.
        compare, diagnose: options of either call, beside ``plate``.
    """

    model: Any
    guide: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    exact: Callable[[], Exact] | None = None
    compare: Mapping[str, Any] = field(default_factory=dict)
    diagnose: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A model, what it is written after, and what both calls must do with it.

    Args:
        name: of the model.
        after: what it is written after.
        make: gives programs and data.
        plate: over data points.
        compare, diagnose: ``"works"``, or words of the line that refuses it.
        know: what a reader should know.
        has_exact: whether its case says what is exact.
    """

    name: str
    after: str
    make: Callable[[], Case]
    plate: str
    compare: str = WORKS
    diagnose: str = WORKS
    know: str = ""
    has_exact: bool = False

    def build(self) -> Case:
        """Programs and data, always the same; parameters of Pyro's store are new."""
        pyro.clear_param_store()
        torch.manual_seed(7)
        return self.make()


ZOO: list[Entry] = []
"""Every model, in the order of the table."""


def entry(name: str, after: str, plate: str, **rest: Any) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Enter the case that a function makes into the zoo."""

    def enter(make: Callable[[], Case]) -> Callable[[], Case]:
        ZOO.append(Entry(name, after, make, plate, **rest))
        return make

    return enter
