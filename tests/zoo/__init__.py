"""Models as others write them, and what both calls must do with each: works, or one line that says what to change."""

from zoo import vaes, labels, topics, groups, conjugate, mixtures, effects, deep  # noqa: F401, I001  the order of the table
from zoo.entry import WORKS, ZOO, Case, Entry, Exact

__all__ = ["WORKS", "ZOO", "Case", "Entry", "Exact"]
