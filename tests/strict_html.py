"""A strict reading of a page: well-formed, nothing from outside, nothing that runs, names that are there once."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta", "link", "br", "img", "hr", "input"}
NAMESPACES = ("http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")
OUTSIDE = re.compile(r"(?i)\b(?:https?|ftp|wss?|file|javascript|vbscript):|@import|(?<![\w:])//\w")
LOADS = {"src", "href", "action", "data", "poster", "srcset", "formaction"}


class Elements(HTMLParser):
    """The elements that a browser would see, as HTML reads them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read_strictly(text, whole=True):
    """Elements of a page, or of a part of one, after everything that must hold of it."""
    document = text if whole else f"<div xmlns='{NAMESPACES[0]}'>{text}</div>"
    root = ElementTree.fromstring(document.encode())  # well-formed: every text was escaped
    found = Elements(text)
    assert {"script", "iframe", "object", "embed", "form", "base", "foreignobject"}.isdisjoint(found.tags)
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in LOADS:
            assert value.startswith(("#", "data:image/png;base64,")) or value == "data:,", (tag, name, value[:60])
        if name == "style":
            assert not OUTSIDE.search(value)
            assert not re.search(r"url\((?!#)", value)
    styles = "".join(element.text or "" for element in root.iter() if element.tag.endswith("}style"))
    assert not OUTSIDE.search(styles)
    assert "url(" not in styles
    names = [value for _, name, value in found.attributes if name == "id"]
    assert len(names) == len(set(names))
    wanted = {name for _, _, value in found.attributes for name in re.findall(r"url\(#([\w.-]+)", value)}
    wanted |= {value[1:] for _, name, value in found.attributes if name == "href" and value.startswith("#")}
    assert wanted <= set(names)
    if whole:
        assert text.startswith("<!DOCTYPE html>\n<html lang=")
        assert found.tags.count("h1") == found.tags.count("title") == 1
    return found
