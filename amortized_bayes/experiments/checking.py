"""What configurations refuse, said in the words of the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["SettingError", "at_least", "different", "flag", "rate_above_zero"]


class SettingError(ValueError):
    """A configuration that cannot be run."""


def flag(name: str) -> str:
    """Flag of a field."""
    return "--" + name.replace("_", "-")


def at_least(config: Any, bounds: Mapping[str, int]) -> None:
    """Refuse fields below their bounds."""
    for name, bound in bounds.items():
        if getattr(config, name) < bound:
            raise SettingError(f"expected {flag(name)} of {bound} or more, got {getattr(config, name)}")


def different(config: Any, names: Iterable[str]) -> None:
    """Refuse fields that are empty or hold a value twice."""
    for name in names:
        values = getattr(config, name)
        if not values or len(set(values)) != len(values):
            raise SettingError(f"expected {flag(name)} with one or more different values, got {list(values)}")


def rate_above_zero(rate: float) -> None:
    """Refuse a learning rate that is not finite and above 0."""
    if not 0 < rate < math.inf:
        raise SettingError(f"expected --learning-rate above 0, got {rate}")
