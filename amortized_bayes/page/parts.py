"""What a page is made of: badges, words, facts, tables, drawings, texts to copy, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

__all__ = ["Badge", "Code", "Drawing", "Facts", "Missing", "Page", "Part", "Section", "Table", "Words"]


@dataclass(frozen=True)
class Badge:
    """A judgement in a word or two, told from others by its mark and its words, and by colour besides.

    Args:
        kind: ``"good"``, ``"bad"``, or ``"open"``: neither, or not known.
        text: the words.
        more: whom it is about, or why.
    """

    kind: Literal["good", "bad", "open"]
    text: str
    more: str = ""

    @property
    def mark(self) -> str:
        """A sign that needs no colour."""
        return {"good": "✓", "bad": "✗", "open": "?"}[self.kind]


@dataclass(frozen=True)
class Words:
    """Sentences, under a ``title`` where they have one, the first of them the answer where ``leads``."""

    kind: ClassVar[str] = "words"
    lines: Sequence[str]
    title: str = ""
    leads: bool = False


@dataclass(frozen=True)
class Facts:
    """Names with what they stand for."""

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
    """A figure as markup that is safe to write as it is; see :func:`amortized_bayes.page.svg.drawing`.

    Args:
        svg: an ``svg`` element.
        caption: what it shows, in words.
    """

    kind: ClassVar[str] = "drawing"
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """A text to copy; folded where it has a ``title`` and is long."""

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""


@dataclass(frozen=True)
class Missing:
    """What a page could have shown, and why it does not."""

    kind: ClassVar[str] = "missing"
    lines: Sequence[str]


Part = Words | Facts | Table | Drawing | Code | Missing


@dataclass(frozen=True)
class Section:
    """What is said under one heading, side by side for all that the page is about, or once for the ``whole`` of it."""

    heading: str
    columns: Sequence[Sequence[Part]]
    whole: bool = False


@dataclass(frozen=True)
class Page:
    """A page.

    Args:
        title: its name.
        subtitle: below it.
        names: names of what stands side by side, one of them or several.
        badges: badges of each of those.
        sections: in order; those that are empty everywhere are left out.
    """

    title: str
    subtitle: str
    names: Sequence[str]
    badges: Sequence[Sequence[Badge]]
    sections: Sequence[Section]
