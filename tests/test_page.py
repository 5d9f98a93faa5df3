"""Pages: every text is escaped, figures are inline and the same each time, and nothing comes from outside."""

import re

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from strict_html import read_strictly

from amortized_bayes.page import rendering
from amortized_bayes.page.parts import Badge, Code, Facts, Missing, Page, Section, Table, Words
from amortized_bayes.page.rendering import render, render_fragment
from amortized_bayes.page.svg import drawing
from amortized_bayes.page.text import clean

ATTACKS = (
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "]]><!-- &lt; &#60;",
    "a\x00b\x1b[31m\x85\ud800\uffff",
    "javascript:alert(1)",
)


def figure(text="loss"):
    made = Figure(figsize=(4, 3))
    left, right = made.subplots(1, 2)
    left.plot([0, 1], [0, 1], marker="o", label=text)
    left.bar(0, 1, hatch="//")
    left.set_title(text)
    left.legend()
    right.imshow(np.eye(4), cmap="gray")
    return made


def page_of(text):
    parts = [
        Words([text, text], text, leads=True),
        Facts([(text, text)]),
        Table(text, [text, "x"], [(text, text)], text, texts=(text,)),
        drawing(figure(text.replace("\ud800", "")), text, text),  # which matplotlib refuses
        Code(text),
        Code(text, text),
        Missing([text]),
    ]
    badges = [Badge("good", text, text), Badge("bad", text), Badge("open", text)]
    return Page(text, text, [text, text], [badges, []], [Section(text, [parts, []])])


@pytest.mark.parametrize("text", ATTACKS)
def test_every_text_is_shown_and_none_is_obeyed(text):
    page = page_of(text)
    found = read_strictly(render(page))
    read_strictly(render_fragment(page), whole=False)
    shown = "".join(found.texts)
    assert shown.count(clean(text)) >= 15
    assert "49" not in shown


def test_without_escaping_the_check_above_would_fail(monkeypatch):
    environment = rendering._environment()
    plain = environment.overlay(autoescape=False)
    monkeypatch.setattr(rendering, "_environment", lambda: plain)
    with pytest.raises((AssertionError, SyntaxError)):
        read_strictly(render(page_of(ATTACKS[0])))


def test_a_figure_is_the_same_text_each_time_and_its_names_are_its_own():
    one, same, other = (drawing(figure(name), name).svg for name in ("a", "a", "b"))
    assert one == same
    names = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (one, other)]
    assert names[0]
    assert not names[0] & names[1]
    assert "<metadata" not in one
    assert "http" not in one.replace("http://www.w3.org/2000/svg", "")


def test_hatches_and_words_of_a_figure_stay():
    svg = drawing(figure("hello"), "label").svg
    assert "<pattern" in svg
    assert ">hello</text>" in svg
    assert 'class="pictures"' in svg
    assert mpl.rcParams["svg.fonttype"] == "path"


def test_judgements_are_told_apart_without_colour():
    kinds = ("good", "bad", "open")
    page = Page("t", "s", ["n"], [[Badge(kind, "word") for kind in kinds]], [])
    shown = "".join(read_strictly(render(page)).texts)
    assert len({Badge(kind, "word").mark for kind in kinds}) == 3
    assert all(f"{Badge(kind, 'word').mark} word" in shown for kind in kinds)


def test_empty_sections_are_left_out():
    page = Page("t", "s", ["n"], [[]], [Section("here", [[Words(["a"])]]), Section("not here", [[]])])
    shown = "".join(read_strictly(render(page)).texts)
    assert "here" in shown
    assert "not here" not in shown
