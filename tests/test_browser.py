"""Pages as a browser shows them: wide and narrow, light and dark, of hostile runs too."""

import math

import made_runs
import pytest
import torch
from browser import HINT, Browser, chromium

from amortized_bayes.diagnosis.report import COLUMNS, Diagnosis
from amortized_bayes.experiments import gaps
from amortized_bayes.page.rendering import render
from amortized_bayes.presenting.run_page import run_page
from amortized_bayes.results import RunFolder

pytestmark = pytest.mark.skipif(chromium() is None, reason=HINT)
ATTACK = "<script>alert(1)</script>"
WIDTHS = (375, 1400)
SCHEMES = ("light", "dark")
MISTAKEN = f"""<!DOCTYPE html><html><head><title>mistaken</title></head><body>{ATTACK}
<script>console.error("wrong")</script><img src="http://127.0.0.1:9/x.png"><div style="width:2000px">wide</div>
<p style="color:#ddd;background:#fff">pale</p></body></html>"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page of a diagnosis whose folder has a hostile name, as have its data."""
    out = tmp_path_factory.mktemp("results")
    run = made_runs.diagnosis(ATTACK).save(out, command=f"gaps --out '{ATTACK}'", git={"commit": ATTACK[:10]})
    run = RunFolder.open(run.path.rename(run.path.with_name("<script>alert(1)<script>")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaps, "FIGURES", {name: gaps.FIGURES[name] for name in ("bounds", "extremes")})
        (out / "one.html").write_text(render(run_page([run])), "utf-8")
        patch.setattr(gaps, "FIGURES", {})
        (out / "two.html").write_text(render(run_page([run, run])), "utf-8")
    (out / "mistaken.html").write_text(MISTAKEN)
    return out


def check(found):
    """What must hold of every page."""
    assert found["said"] == []
    assert found["outside"] == []
    assert found["dialogs"] == []
    assert found["scripts"] == 0
    assert not found["scrolls"]
    assert not found["clipped"]
    assert found["contrast"] >= 4.5  # WCAG 2.2, 1.4.3, level AA
    assert found["letters"] >= 12


@pytest.mark.parametrize("page", ["one", "two"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.slow_cases("light-375-one")
def test_a_page_is_shown_whole_and_runs_nothing(browser, folder, page, width, scheme):
    found = browser.open(folder / f"{page}.html", width, scheme)
    check(found)
    assert ATTACK in found["text"]
    assert "<script>alert(1)<script>" in found["text"]


def test_a_dark_page_is_dark(browser, folder):
    grounds = [browser.open(folder / "one.html", 1400, scheme)["ground"] for scheme in SCHEMES]
    light, dark = (sum(map(int, ground.removeprefix("rgb(").rstrip(")").split(","))) / 3 for ground in grounds)
    assert light > 200
    assert dark < 50


def test_a_report_of_the_library_named_by_an_attacker(browser, tmp_path):
    values = {name: torch.rand(1, 20) for name in COLUMNS}
    report = Diagnosis(values, dict.fromkeys(COLUMNS, torch.full((1, 20), math.nan)), None, ATTACK, 100, 0.1, {})
    (tmp_path / "page.html").write_text(report.to_html(ATTACK), "utf-8")
    (tmp_path / "cell.html").write_text(f"<!DOCTYPE html><meta charset='utf-8'>{report._repr_html_()}", "utf-8")
    for scheme in SCHEMES:
        found = browser.open(tmp_path / "page.html", 375, scheme)
        check(found)
        assert found["title"] == ATTACK
        assert ATTACK in found["text"]
        check(browser.open(tmp_path / "cell.html", 375, scheme))


def test_the_checks_above_see_what_is_wrong(browser, folder):
    found = browser.open(folder / "mistaken.html", 1400)
    assert found["dialogs"] == ["1"]
    assert found["outside"] == ["http://127.0.0.1:9/x.png"]
    assert any("wrong" in str(said) for said in found["said"])
    assert found["scrolls"]
    assert found["clipped"]
    assert found["contrast"] < 2
    assert found["scripts"] == 2
