"""What a published claim is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amortized_bayes.presenting.claim_tests import Test

__all__ = ["Claim"]


@dataclass(frozen=True)
class Claim:
    """Something that was claimed, and how it is tested.

    Args:
        text: the claim.
        source: who made it, and where it can be read.
        experiment: whose rows decide it.
        published: what was published, by data set.
        tests: its parts.
        preset: preset of the runs that it is about.
    """

    text: str
    source: str
    experiment: str
    published: Mapping[str, str]
    tests: tuple[Test, ...]
    preset: str = "quick"
