"""What ``compare`` and ``diagnose`` return has one face, and survives its file."""

import math
import sys

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from strict_html import read_strictly

import amortized_bayes as ab
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.reports import storage

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
FAST = {"capture": "off", "batch_size": 6}


def normal(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[:, None].expand(-1, 2), 0.5).to_event(1), obs=x)


def shared(x):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal((mean + z)[:, None], 0.5).to_event(1), obs=x)


def compared(model=normal, **options):
    settings = ab.ComparisonSettings(4, 2, num_draws=3, fit=FitOptions(**FAST, **options))
    return ab.compare(model, X, widths=(2,), settings=settings, progress=False)


@pytest.fixture(scope="module")
def comparison():
    return compared(shared)


@pytest.fixture(scope="module")
def diagnosis():
    guide = ab.Constant(ab.latent_sites(normal, X).local, len(X))
    settings = ab.DiagnosisSettings(num_particles=100, certificate=ab.CertificateSettings(4, 0.1, 64))
    return ab.diagnose(normal, guide, X, settings=settings)


@pytest.fixture(params=["comparison", "diagnosis"])
def report(request):
    return request.getfixturevalue(request.param)


@pytest.mark.slow_cases("diagnosis")
def test_both_reports_have_one_face(report, tmp_path):
    assert isinstance(report.to_frame(), pd.DataFrame)
    assert isinstance(report.summary(), pd.DataFrame)
    assert isinstance(report.plot(), Figure)
    assert str(report) == str(report.verdict) == report.verdict.words
    assert report.verdict.abstains in (True, False)
    assert isinstance(report.verdict.reasons, tuple)
    report.save(tmp_path / "report")
    again = type(report).load(tmp_path / "report")
    pd.testing.assert_frame_equal(again.to_frame(), report.to_frame())
    pd.testing.assert_frame_equal(again.summary(), report.summary())
    assert str(again) == str(report)
    assert repr(again) == repr(report)


@pytest.mark.slow_cases("comparison")
def test_both_reports_have_a_page(report, tmp_path):
    report.save(tmp_path / "report")
    assert type(report).load(tmp_path / "report").to_html("data") == report.to_html("data")
    found = read_strictly(report.to_html("<script>alert(1)</script>"))
    shown = "".join(found.texts)
    assert "<script>alert(1)</script>" in shown
    assert report.verdict.words.split("\n")[0] in shown
    assert all(words in shown for words in report.verdict.reasons)
    assert found.tags.count("svg") == 2
    assert "Not shown" not in shown
    part = read_strictly(report._repr_html_(), whole=False)
    assert part.tags.count("svg") == 2
    assert "html" not in part.tags


def test_what_cannot_be_drawn_is_named(comparison):
    failed = tuple(f._replace(elbo=None) for f in comparison.fits)
    page = ab.Comparison(failed, comparison.num_data, comparison.seed).to_html()
    shown = "".join(read_strictly(page).texts)
    assert "✗ failed" in shown
    assert "? no verdict" in shown
    assert "Not shown" in shown


def test_constant_vi_is_not_blamed_for_being_vacuous(comparison):
    """All points have its q: no unit of it can be active."""
    dead = ab.Comparison(
        tuple(f._replace(active_units=0) for f in comparison.fits), comparison.num_data, comparison.seed
    )
    (badge,) = (badge for badge in dead._badges() if badge.text == "vacuous")
    assert "A-VI, k = 2" in badge.more
    assert "constant" not in badge.more


def test_a_page_judges_as_the_report_does(diagnosis):
    shown = "".join(read_strictly(diagnosis.to_html()).texts)
    assert ("✓ certified" in shown) == diagnosis.certified
    assert ("✗ not converged" in shown) == (not diagnosis.converged)
    assert ("? no verdict" in shown) == diagnosis.verdict.abstains


def test_a_file_of_one_kind_is_refused_as_the_other(comparison, diagnosis, tmp_path):
    comparison.save(tmp_path / "comparison")
    diagnosis.save(tmp_path / "diagnosis")
    with pytest.raises(ValueError, match="to hold 'amortized_bayes diagnosis 2', got 'amortized_bayes comparison 2'"):
        ab.Diagnosis.load(tmp_path / "comparison")
    with pytest.raises(ValueError, match="to hold 'amortized_bayes comparison 2'"):
        ab.Comparison.load(tmp_path / "diagnosis")


def rename(groups, header):
    groups[next(iter(groups))] = {f"{name}x": value for name, value in groups[next(iter(groups))].items()}


def lose(groups, header):
    groups.clear()


def forget(groups, header):
    header.pop(next(iter(header)))


def mistake(groups, header):
    for name in header:
        header[name] = ["nonsense"]


def cut(groups, header):
    for found in groups.values():
        for name, value in list(found.items())[:1]:
            found[name] = value[..., :0]


@pytest.mark.parametrize("change", [rename, lose, forget, mistake, cut])
def test_a_file_of_another_program_is_one_line(report, change, tmp_path):
    """Its checksum holds."""
    groups, header = report._pack()
    groups, header = {name: dict(found) for name, found in groups.items()}, dict(header)
    change(groups, header)
    (tmp_path / "report").write_bytes(storage.dump(report.KIND, groups, header))
    with pytest.raises(ValueError, match=r"\A[^\n]*report holds no (comparison|diagnosis) that can be read: [^\n]+\Z"):
        type(report).load(tmp_path / "report")


def test_errors_of_shared_draws_and_rows_survive_the_file(comparison, tmp_path):
    comparison.save(tmp_path / "comparison")
    again = ab.Comparison.load(tmp_path / "comparison")
    assert comparison.fits[0].elbo.shared_error > 0
    pd.testing.assert_frame_equal(again.to_rows(), comparison.to_rows())


def test_failed_fits_survive_the_file(tmp_path):
    report = compared(row_learning_rate=1e30)
    assert "failed" in report.summary()["status"].tolist()
    report.save(tmp_path / "report")
    again = ab.Comparison.load(tmp_path / "report")
    pd.testing.assert_frame_equal(again.to_frame(), report.to_frame())
    assert again.verdict == report.verdict
    assert report.verdict.abstains == (report.reference is None)


def test_the_summary_of_a_comparison_names_guides_for_readers(comparison):
    summary = comparison.summary()
    assert summary.index.tolist() == ["constant VI", "A-VI, k = 2", "F-VI", "F-VI from A-VI"]
    assert comparison.best.label == comparison.verdict.best == summary["elbo"].astype(float).idxmax()


def test_arrays_of_a_comparison(comparison):
    groups = comparison._groups()
    (dims, elbo), (_, ladder) = groups["fits"].arrays["elbo"], groups["budgets"].arrays["elbo"]
    assert dims == ("fit", "point")
    assert elbo.shape == (4, 12)
    assert elbo[1].tolist() == ladder[1, -1].tolist() == comparison.fits[1].elbo.value.tolist()
    assert math.isnan(ladder[3, 0, 0])  # F-VI from A-VI has no fit with the smallest budget


def test_without_xarray_one_line_says_what_to_install(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match="pip install"):
        report.to_xarray()


def test_a_data_tree_holds_the_arrays(comparison, diagnosis):
    pytest.importorskip("xarray")
    tree = comparison.to_xarray()
    assert tree["fits"]["elbo"].sel(fit="F-VI").shape == (12,)
    assert tree.attrs["verdict"] == str(comparison)
    tree = diagnosis.to_xarray()
    assert tree["values"]["elbo"].dims == ("shared_draw", "point")
    assert set(tree.children) >= {"values", "errors"}
    for group, found in (("values", diagnosis.values), ("errors", diagnosis.errors)):
        for name, tensor in found.items():
            assert torch.equal(torch.as_tensor(tree[group][name].values).nan_to_num(), tensor.nan_to_num())


def test_compare_tells_rows_as_they_are_known():
    told, stages = [], []
    settings = ab.ComparisonSettings(4, 2, num_draws=3, fit=FitOptions(**FAST))
    report = ab.compare(
        normal, X, widths=(2,), settings=settings, on_row=told.append, progress=lambda *call: stages.append(call)
    )
    rows = report.to_rows()
    assert [row.metric for row in told] == rows["metric"].tolist()
    assert [row.value for row in told] == pytest.approx(rows["value"].tolist(), nan_ok=True)
    names = [f"{fit.label} ({number} of 4)" for number, fit in enumerate(report.fits, 1)]
    assert list(dict.fromkeys(stage for stage, _, _ in stages)) == names
    assert all(0 <= done <= total for _, done, total in stages)


@pytest.mark.slow
def test_diagnose_tells_rows_as_they_are_known():
    told = []
    guide = ab.Constant(
        ab.latent_sites(shared, X).local, len(X), shared=ab.MeanField(ab.latent_sites(shared, X).shared)
    )
    settings = ab.DiagnosisSettings(
        num_shared=2, num_particles=100, certificate=ab.CertificateSettings(4, 0.1, 64), ais=ab.AISSettings(4, 20)
    )
    report = ab.diagnose(shared, guide, X, settings=settings, on_row=told.append, progress=False)
    means = {(row.metric, row.factors.get("draw")): row.value for row in told}
    for name in ("elbo", "iwae", "elbo_star", "log_p_lower"):
        assert [means[name, draw] for draw in (0, 1)] == pytest.approx(report.values[name].mean(1).tolist())
    assert means["amortization_gap", None] == pytest.approx(report.gaps().amortization.mean)
    assert [row.metric for row in told].index("elbo") < [row.metric for row in told].index("elbo_star")
