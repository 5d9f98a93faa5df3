"""Settings of the documentation site, which ``python -m sphinx docs site`` builds."""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1]))

import amortized_bayes

project = "amortized_bayes"
author = "the amortized_bayes developers"
release = version = amortized_bayes.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures show them
html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]


LONG = 40
"""Characters of a word of code above which a table may break it."""
MANY = 5
"""Columns above which a table may break a number before its error."""


def trim(app: Sphinx, page: nodes.document) -> None:
    """Take away the empty line with which a doctest ends before the fence of its block."""
    for block in page.findall(nodes.literal_block):
        block.rawsource = block.astext().rstrip()
        block.children = [nodes.Text(block.rawsource)]


def narrow(app: Sphinx, page: nodes.document) -> None:
    """Say where tables may break lines, so that they fit the page: in long code, and before ± in many columns."""
    for code in page.findall(nodes.literal):
        if max(map(len, code.astext().split()), default=0) > LONG:
            code["classes"].append("long")
    for table in page.findall(nodes.tgroup):
        for text in list(table.findall(nodes.Text)) if table["cols"] > MANY else ():
            first, *errors = text.astext().split("±")
            broken = [n for e in errors for n in (nodes.raw("", "<wbr>", format="html"), nodes.Text(f"±{e}"))]
            text.parent.replace(text, [nodes.Text(first), *broken])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("doctree-read", trim)
    app.connect("doctree-read", narrow)
