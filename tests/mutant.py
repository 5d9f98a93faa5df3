"""What a planted bug is."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Mutant"]


class Mutant(NamedTuple):
    """A bug to plant: ``old`` becomes ``new`` in a file of the package.

    Args:
        name: what is wrong, in words.
        file: in the package.
        old: text that occurs in it exactly once.
        new: what replaces it.
        tests: those that must notice, ``file::test`` in the folder of tests; spaces between several.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str

    @property
    def node_ids(self) -> list[str]:
        return [f"tests/{test}" for test in self.tests.split()]
