"""What README shows is what a reader gets."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_block_on_a_model_of_ones_own_prints_what_is_shown():
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    printed = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    number = re.compile(r"-?\d+(?:\.\d+)?")
    assert number.sub("#", printed) == number.sub("#", shown)
    for found, expected in zip(number.findall(printed), number.findall(shown), strict=True):
        assert float(found) == pytest.approx(float(expected), rel=0.2, abs=0.03)  # other processors, other last bits


def test_links_and_figures_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
