"""Settings of the documentation site, which ``python -m sphinx docs site`` builds."""

from __future__ import annotations

import sys
from pathlib import Path

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
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures show them
html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False
