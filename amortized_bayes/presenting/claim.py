"""A published claim, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amortized_bayes.presenting.claim_tests import Test

__all__ = ["Claim"]


@dataclass(frozen=True)
class Claim:
    """A published claim, and how it is tested.

    Args:
        text: the claim.
        source: where it was published.
        experiment: the experiment whose rows decide it.
        published: what was published, by data set.
        tests: tests of its parts.
        preset: the preset of the runs that decide it.
    """

    text: str
    source: str
    experiment: str
    published: Mapping[str, str]
    tests: tuple[Test, ...]
    preset: str = "quick"
