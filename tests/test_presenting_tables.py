"""Tables from declarations: what a cell rests on, what stands beside it, and that nothing is cut."""

import io
from types import SimpleNamespace

import made_runs
import pandas as pd
import pytest
from rich.console import Console

from amortized_bayes.experiments.spec import Column, Table
from amortized_bayes.presenting.markdown import print_markdown, with_block
from amortized_bayes.presenting.tables import print_tables

GAPS = made_runs.GAPS
HEADLINE = Table(("guide", "k"), ("final_elbo", "family_gap", "final_kl", "status"), "{dataset}, seed {seed}")
MORE = Table(
    ("guide", "k"),
    (
        "final_iwae_gain",
        "final_mse_train",
        "log_predictive",
        "seconds_per_step",
        Column("seconds_to_share", {"share": 0.9}, "s to 90%"),
        Column("seconds_to_share", {"share": 0.95}, "s to 95%"),
        "unconverged_by",
    ),
    "{dataset}: more",
    wide=True,
)
ENCODERS = Table(("encoder", "family"), ("elbo", *GAPS), "{dataset}: encoders", published="cremer2018_table4")
DECODER = Table(
    (),
    ("log_p_lower", *(Column("elbo_star", {"searched": q}) for q in made_runs.SEARCHED)),
    "{dataset}: the decoder",
    where={"encoder": None},
    published="cremer2018_table4",
)


def printed(tables, made, width=80, **more):
    out = io.StringIO()
    console = Console(file=out, width=width, markup=False, highlight=False)
    rows = made if isinstance(made, pd.DataFrame) else made.frame()
    print_tables(tables if isinstance(tables, tuple) else (tables,), rows, console=console, **more)
    return out.getvalue()


def line_of(text, start):
    return " ".join(next(line for line in text.splitlines() if line.strip().startswith(start)).split())


def test_the_headline_of_a_sweep_fits_80_columns():
    text = printed(HEADLINE, made_runs.sweep(("mnist", "fashion-mnist"), failing=("amortized", 16)))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    headings = [line for line in text.splitlines() if "family gap" in line]
    assert [heading.split() for heading in headings] == [["guide", "ELBO", "family", "gap", "KL", "status"]] * 2
    assert line_of(text, "A-VI, k = 256") == "A-VI, k = 256 -100.23±0.10 0.23±0.10 12.00±0.10"
    assert line_of(text, "constant VI").endswith("vacuous")
    assert line_of(text, "A-VI, k = 16") == "A-VI, k = 16 failed"
    guides = [line.split("  ")[0] for line in text.splitlines() if "±0.10" in line or "failed" in line]
    assert guides[:6] == ["constant VI", "A-VI, k = 1", "A-VI, k = 16", "A-VI, k = 256", "F-VI", "F-VI from A-VI"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_table_is_cut_at_any_width(width):
    text = printed((HEADLINE, MORE), made_runs.sweep(guides=("better",)), width, wide=True)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for cell in ("-101.00±0.10", "0.0200±0.1000", "not reached", "-0.25±0.10 (z = -2.5)"):
        assert cell in text
    guides = [line for line in text.splitlines() if line.startswith("F-VI from A-VI")]
    assert len(guides) == (2 if width >= 120 else len(guides))  # repeated where a table is split
    assert all(len(line.split()) > 3 for line in guides) or width < 120


def test_wide_tables_are_printed_where_they_are_asked_for():
    assert "more" not in printed(MORE, made_runs.sweep())
    assert "more" in printed(MORE, made_runs.sweep(), wide=True)


def test_several_seeds_are_averaged_and_the_error_is_over_seeds():
    text = printed((HEADLINE, MORE), made_runs.sweep(seeds=(0, 50)), 200, wide=True)
    assert "A-VI, k = 256   -100.73±0.50" in text
    assert "over 2 seeds" in text
    assert "nan" not in text
    assert line_of(text[text.index("more") :], "F-VI ").split()[-1] == "8.00±0.00"


def test_a_share_that_one_seed_missed_has_no_mean():
    made = made_runs.sweep(seeds=(0, 1), widths=(12,))  # its gaps are 5.00 and 5.02, where 5.25 are left at 95%
    assert "not reached" not in line_of(printed(MORE, made, 200, wide=True), "A-VI, k = 12")
    made = made_runs.sweep(seeds=(0, 20), widths=(12,))  # 5.00 and 5.40
    assert line_of(printed(MORE, made, 200, wide=True), "A-VI, k = 12").count("not reached") == 1


def test_what_was_vacuous_with_a_small_budget_is_not_so_in_the_table():
    frame = made_runs.sweep(widths=(16,)).frame()
    frame.loc[(frame["k"] == 16).fillna(False) & (frame["epochs"] == 5).fillna(False), "status"] = "vacuous"
    made = SimpleNamespace(frame=lambda: frame)
    table = Table(("guide", "k"), ("final_elbo", "active_units"))
    assert line_of(printed(table, made), "A-VI, k = 16") == "A-VI, k = 16 -103.75±0.10 12±0"


def test_a_fit_that_failed_with_one_seed_says_so():
    text = printed(HEADLINE, made_runs.sweep(seeds=(0, 1), failing=("amortized", 16)))
    assert line_of(text, "A-VI, k = 16") == "A-VI, k = 16 -103.75 3.75 12.00 1 of 2 failed"


def test_a_mean_over_fewer_seeds_than_others_says_so():
    frame = made_runs.sweep(seeds=(0, 1, 2)).frame()
    gone = (frame["metric"] == "family_gap") & (frame["seed"] == 1) & (frame["guide"] == "factorized")
    assert "3.02±0.02 (2 of 3 seeds)" in printed(HEADLINE, frame[~gone])
    assert "seeds)" not in printed(HEADLINE, frame)


def test_a_guide_that_nobody_named_is_a_line_like_others():
    text = printed(HEADLINE, made_runs.sweep(guides=("mixture",)))
    assert line_of(text, "mixture") == "mixture -100.40±0.10 0.40±0.10 12.00±0.10"


def test_an_unknown_metric_is_shown_under_its_own_name():
    made = made_runs.Made("mine")
    made.job({"dataset": "digits", "sauce": "hot"}, made_runs.plain(bite_depth=1.5))
    assert line_of(printed(Table(("sauce",), ("bite_depth",)), made), "sauce") == "sauce bite depth"


def test_published_numbers_stand_below_ours_with_their_distance():
    text = printed((ENCODERS, DECODER), made_runs.frozen_decoder(), 200)
    published = [" ".join(line.split()) for line in text.splitlines() if line.strip().startswith("published")]
    assert len(published) == 4  # linear encoders of three families, and the decoder
    assert published[0].startswith("published -129.83 [+298] 1.91 [")  # the approximation gap too
    assert line_of(text, "this run").startswith("this run -85.00±0.10")
    assert "Table 4" in text
    assert "gaps are computed from the printed bounds" in text
    assert "-84.70 [-3]" in text
    assert "L(q*), planar" in text


@pytest.mark.parametrize("dataset", ["digits", "fashion-mnist", "mnist"])
def test_on_other_data_no_published_row_appears(dataset):
    assert "published" not in printed((ENCODERS, DECODER), made_runs.frozen_decoder(dataset), 200)


def test_a_model_that_differs_in_one_factor_has_no_published_row():
    table = Table(("family", "encoder"), GAPS, published="cremer2018_models")
    made = made_runs.Made("model-gaps")
    made.job({**made_runs.MODEL, "network": "convolutional"}, made_runs.plain(approximation_gap=1.0))
    assert "published" not in printed(table, made)
    made = made_runs.Made("model-gaps")
    made.job(made_runs.MODEL, made_runs.plain(approximation_gap=1.0))
    assert "1.02 [-0]" in printed(table, made)


def test_negative_gaps_carry_their_z_score():
    table = Table((), ("optimization_gap",), across="split")
    assert "-0.30±0.10 (z = -3.0)" in printed(table, made_runs.gaps(negative=True))


def test_a_factor_becomes_columns():
    text = printed(Table((), ("elbo", *GAPS), across="split"), made_runs.gaps())
    assert text.split()[:2] == ["train", "test"]
    assert line_of(text, "ELBO") == "ELBO -92.00±0.10 -92.00±0.10"
    assert "inference gap, both" in text


def test_classes_are_lines_and_have_no_part_in_the_mean():
    text = printed(Table(("label",), GAPS, "{split}", apart=("dataset", "split")), made_runs.gaps())
    assert text.count("class ") == 2
    assert [line.split()[0] for line in text.splitlines() if "±" in line and line[0].isdecimal()] == [*"0123456789"] * 2


def test_numbers_that_differ_in_an_unnamed_factor_are_refused():
    with pytest.raises(ValueError, match="expected elbo of one split, got train, test: name it in rows"):
        printed(Table(("family",), ("elbo",)), made_runs.gaps())


def test_every_budget_of_a_search_has_a_line():
    text = printed(Table(("start", "spread", "budget"), ("behind_reference",)), made_runs.qstar())
    assert len([line for line in text.splitlines() if line.startswith(("encoder", "prior"))]) == 12


def test_markdown_has_every_cell_of_the_printed_table(capsys):
    made = made_runs.frozen_decoder()
    print_markdown((ENCODERS, MORE), made.frame())
    title, table, caption, *rest = capsys.readouterr().out.rstrip().split("\n\n")
    assert not rest  # the wide table was not asked for
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert {len(line) for number, line in enumerate(lines) if number != 1} == {len(lines[0])}
    plain = printed(ENCODERS, made, width=300)
    assert all(cell.strip() in plain for number, line in enumerate(lines) if number != 1 for cell in line)
    assert title in plain
    assert caption.split("; ")[0] in plain


def test_a_block_of_a_page_is_replaced_where_it_has_its_place():
    begin, end = "<!-- t: begin -->", "<!-- t: end -->"
    page = with_block(f"a {begin}old{end} b", "t", "new")
    assert page == f"a {begin}\n\nnew\n\n{end} b" == with_block(page, "t", "new")
    for other in ("", begin, f"{end}{begin}", f"{begin}{end}" * 2):
        with pytest.raises(ValueError, match="expected a page with one"):
            with_block(other, "t", "new")
