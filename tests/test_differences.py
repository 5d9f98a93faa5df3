"""The largest differences from published numbers: the page has those of the kept rows, and of gaps alone."""

import math
from pathlib import Path

import made_runs
import pytest

from amortized_bayes.presenting.differences import Pair, differences, largest_differences, with_differences
from amortized_bayes.presenting.published import Published
from amortized_bayes.selection import Found

ROOT = Path(__file__).parents[1]
REPORTED = ROOT / "results/reported"
PAGE = ROOT / "docs/inference_suboptimality.md"
BEGIN, END = "<!-- largest differences: begin -->", "<!-- largest differences: end -->"


def pair(metric, ours, published, **factors):
    factors = {"dataset": "mnist", **factors}
    return Pair("model-gaps", metric, Found(ours, 0.1, factors), Published(factors, metric, published, "a paper"))


def test_the_page_has_the_block_of_the_kept_rows():
    page = PAGE.read_text(encoding="utf-8")
    assert with_differences(page, REPORTED) == page


def test_gaps_and_what_flows_gain_are_compared_and_bounds_are_not():
    stars = [
        pair("elbo_star", -97.5, -113.5, family="auxiliary", searched="gaussian"),
        pair("elbo_star", -94.0, -90.5, family="auxiliary", searched="auxiliary"),
        pair("elbo_star", -95.0, -90.0, family="gaussian", searched="auxiliary"),  # no Gaussian of this model
    ]
    gaps = [pair("amortization_gap", 3.0, 1.0), pair("inference_gap", 4.0, 9.0), pair("elbo", -97.0, -57.0)]
    gain, whole, encoder = differences([*stars, *gaps, pair("log_p_lower", -93.0, -53.0)])
    assert (gain.ours.value, gain.published.value, gain.nats) == (3.5, 23.0, -19.5)
    assert math.isnan(gain.ours.error)
    assert gain.what == "L(q*), auxiliary, above L(q*), gaussian"
    assert (whole.nats, encoder.nats) == (-5.0, 2.0)


def test_the_command_prints_the_block_or_writes_it_between_its_marks(tmp_path, call, refused):
    command = ("claims", "--differences", "--out", REPORTED)
    said = call(*command).out
    page = tmp_path / "page.md"
    page.write_text(f"# Ours\n\n{BEGIN}\nof yesterday\n{END}\n\nEnd.\n", encoding="utf-8")
    call(*command, "--into", page)
    assert page.read_text(encoding="utf-8") == f"# Ours\n\n{BEGIN}\n\n{said}\n{END}\n\nEnd.\n"
    page.write_text(f"{END}{BEGIN}", encoding="utf-8")
    assert "expected a page with one" in refused(*command, "--into", page)
    with pytest.raises(ValueError, match="expected finished runs under"):
        with_differences(f"{BEGIN}{END}", tmp_path)


def test_runs_without_published_numbers_are_not_an_empty_table(tmp_path):
    made = made_runs.Made("model-gaps")
    made.job({"dataset": "digits", "family": "gaussian", "seed": 0}, made_runs.plain(amortization_gap=1.0))
    made.save(tmp_path, preset="quick")
    with pytest.raises(ValueError, match="expected runs of preset quick with published numbers"):
        largest_differences(tmp_path)
