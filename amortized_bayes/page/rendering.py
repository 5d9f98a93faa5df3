"""A page as HTML that is well-formed XML too, so that a strict parser can check it. Every text is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from amortized_bayes.page.parts import Page
from amortized_bayes.page.text import clean

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["render", "render_fragment"]


def render(page: Page) -> str:
    """The whole document."""
    return _environment().get_template("document.html.jinja").render(page=page)


def render_fragment(page: Page) -> str:
    """What a notebook shows: the page's contents with their style, without a document around them."""
    return _environment().get_template("fragment.html.jinja").render(page=page)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=clean,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
