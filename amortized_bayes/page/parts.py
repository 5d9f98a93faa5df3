"""The parts of a page: badges, sentences, facts, tables, figures, text to copy, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

__all__ = ["Badge", "Code", "Drawing", "Facts", "Missing", "Page", "Part", "Section", "Table", "Words"]


@dataclass(frozen=True)
class Badge:
    """A judgement in a word or two. Its mark and words distinguish it, not its colour alone.

    Args:
        kind: ``"good"``, ``"bad"``, or ``"open"``: neither, or not known.
        text: the words.
        more: what it is about, or why.
    """

    kind: Literal["good", "bad", "open"]
    text: str
    more: str = ""

    @property
    def mark(self) -> str:
        """A sign that is readable without colour."""
        return {"good": "✓", "bad": "✗", "open": "?"}[self.kind]


@dataclass(frozen=True)
class Words:
    """Sentences, with an optional ``title``; with ``leads``, the first is shown as the answer."""

    kind: ClassVar[str] = "words"
    lines: Sequence[str]
    title: str = ""
    leads: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and their values."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        title: above it.
        headings: headings of all columns.
        cells: lines of texts.
        caption: below it.
        names: how many columns at the left name their line.
        texts: headings of further columns that hold texts.
    """

    kind: ClassVar[str] = "table"
    title: str
    headings: Sequence[str]
    cells: Sequence[Sequence[str]]
    caption: str = ""
    names: int = 1
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Drawing:
    """A figure as markup that can be written without escaping; see :func:`amortized_bayes.page.svg.drawing`.

    Args:
        svg: an ``svg`` element.
        caption: what it shows, in words.
    """

    kind: ClassVar[str] = "drawing"
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """Text to copy; with a ``title`` it is folded."""

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""


@dataclass(frozen=True)
class Missing:
    """What a page does not show, and why."""

    kind: ClassVar[str] = "missing"
    lines: Sequence[str]


Part = Words | Facts | Table | Drawing | Code | Missing


@dataclass(frozen=True)
class Section:
    """The parts under one heading: side by side for each run or report of the page, or once for the ``whole`` page."""

    heading: str
    columns: Sequence[Sequence[Part]]
    whole: bool = False


@dataclass(frozen=True)
class Page:
    """A page.

    Args:
        title: its name.
        subtitle: below it.
        names: names of the runs or reports, one or several side by side.
        badges: badges of each.
        sections: in order; empty ones are left out.
    """

    title: str
    subtitle: str
    names: Sequence[str]
    badges: Sequence[Sequence[Badge]]
    sections: Sequence[Section]
