"""Figures as inline SVG: the same figure gives the same text, with ids unique on a page and no background.

Text stays text, in the reader's own fonts. On a dark page the style sheet inverts lightness and keeps hues; photographs
are inverted back.
"""

from __future__ import annotations

import io
import re
import warnings
from hashlib import sha256
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from amortized_bayes.page.parts import Drawing
from amortized_bayes.page.text import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["drawing"]

SVG, LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ALLOWED = {"svg", "title", "defs", "g", "path", "text", "tspan", "use", "image", "clipPath", "rect", "linearGradient"}
ALLOWED |= {"stop", "pattern", "filter", "feColorMatrix"}
"""Elements that stay: what matplotlib draws with, but for its style sheet and its own metadata."""
SHRUNK = 0.62
"""How far a figure shrinks on a narrow page before it scrolls: its text is then still legible."""
DPI = 160
"""Of marks that are drawn as pixels, since there are many of them."""


def drawing(figure: Figure, label: str, caption: str = "") -> Drawing:
    """A figure for a page.

    Args:
        figure: the figure, which stays as it is.
        label: what it shows, as alternative text.
        caption: words below it.
    """
    import matplotlib as mpl

    written = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "amortized_bayes"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the reader's fonts are others
        figure.savefig(written, format="svg", transparent=True, dpi=DPI, metadata={"Date": None, "Creator": None})
    text = clean(written.getvalue())
    root = ElementTree.fromstring(text.encode())
    _keep_allowed(root)
    _rename(root, f"f{sha256(text.encode()).hexdigest()[:10]}-")
    inches = float(figure.get_figwidth())
    shown = any(axes.images for axes in figure.axes)
    root.attrib = {
        "xmlns": SVG,
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": clean(label),
        "class": "pictures" if shown else "marks",
        "style": f"width:{96 * inches:.0f}px;min-width:{SHRUNK * 96 * inches:.0f}px",
    }
    return Drawing(ElementTree.tostring(root, encoding="unicode"), caption)


def _keep_allowed(root: ElementTree.Element) -> None:
    """Drop elements of other kinds, and the name space in front of names."""
    root.tag = _plain(root.tag)
    for parent in list(root.iter()):
        for child in list(parent):
            child.tag = _plain(child.tag)
            if child.tag not in ALLOWED:
                parent.remove(child)


def _plain(tag: str) -> str:
    return tag.removeprefix(f"{{{SVG}}}")


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Put a prefix before every name and every reference to one; names that nothing refers to are dropped."""
    link = f"{{{LINK}}}href"
    for element in root.iter():
        if link in element.attrib:
            element.set("href", element.attrib.pop(link))
    values = [value for element in root.iter() for value in element.attrib.values()]
    wanted = {name for value in values for name in re.findall(r"#([\w.-]+)", value)}
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id" and value not in wanted:
                del element.attrib[key]
            elif key == "id":
                element.set(key, prefix + value)
            elif key == "href" and value.startswith("#"):
                element.set(key, f"#{prefix}{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{prefix}"))
