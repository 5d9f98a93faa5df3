"""Models as others write them: every one works in both calls, or is refused by one line that says what to change."""

import numpy as np
import pyro
import pytest
from zoo import WORKS, ZOO, calls, table

import amortized_bayes as ab
from amortized_bayes.inference.options import FitOptions

ACCURATE = ab.DiagnosisSettings(
    num_particles=2000,
    ais=ab.AISSettings(num_temperatures=150),
    certificate=ab.CertificateSettings(10, 0.1, 300),
    local=ab.LocalSettings(max_steps=1000),
)
"""For numbers that are compared with exact ones."""


def names(entries):
    return [pytest.param(entry, id=entry.name) for entry in entries]


@pytest.fixture(autouse=True)
def _uncaptured(request):
    if "slow" in request.keywords:
        yield
        return
    with calls.uncaptured():
        yield


@pytest.mark.parametrize(("entry", "call"), [pytest.param(*p, id=f"{p[0].name}-{p[1]}") for p in table.pairs()])
@pytest.mark.slow_cases(
    "Gamma-Poisson-diagnose",
    "LDA, documents first-diagnose",
    "ProdLDA-diagnose",
    "VAE-diagnose",
    "baseball, not pooled-diagnose",
    "baseball, partially pooled-diagnose",
    "causal-effect VAE-diagnose",
    "conditional VAE-diagnose",
    "flow prior-diagnose",
    "mixed hidden Markov model-diagnose",
    "scANVI, loss hidden-compare",
    "scANVI, loss hidden-diagnose",
    "semi-supervised VAE, labelled-diagnose",
    "sparse gamma DEF-diagnose",
)
def test_a_model_works_or_is_refused_by_one_line(entry, call):
    found = getattr(calls, call)(entry)
    expected = getattr(entry, call)
    if expected == WORKS:
        assert found.works, found.trace
        assert np.isfinite(found.report.summary().iloc[:, 0].to_numpy(float)).all()
        return
    assert found.line.startswith(("ValueError: ", "TypeError: ")), found.trace or found.line
    assert "\n" not in found.line
    assert expected in found.line


def test_the_page_holds_the_table():
    assert table.page() == table.PAGE.read_text(), "run `python tests/zoo`"


def test_names_are_distinct():
    assert len({entry.name for entry in ZOO}) == len(ZOO) >= 20


def trained(case, steps):
    """Fit guide and model by Pyro's own SVI."""
    svi = pyro.infer.SVI(case.model, case.guide, pyro.optim.Adam({"lr": 0.02}), pyro.infer.TraceEnum_ELBO())
    for _ in range(steps):
        svi.step(*case.args, **case.kwargs)


def z_scores(frame, column, exact):
    return (frame[column].to_numpy() - exact.numpy()) / frame[f"{column}_error"].to_numpy()


@pytest.mark.slow
@pytest.mark.parametrize("entry", names(entry for entry in ZOO if entry.has_exact and entry.diagnose == WORKS))
def test_evidence_and_gaps_are_met(entry):
    """Within 3 s.e. of the mean; AIS is a lower bound, which may lie below by what its certificate allows."""
    case = entry.build()
    assert case.exact is not None
    case.guide(*case.args, **case.kwargs)
    if case.exact().gap is None:
        trained(case, 600)
    exact = case.exact()
    found = calls.diagnose(entry, case, ACCURATE)
    assert found.works, found.trace
    frame = found.report.to_frame().query("kind == 'real'")
    count, allowed = len(frame), 0.02

    def away(column, truth):
        """Mean difference and its Monte Carlo error."""
        error = frame[f"{column}_error"].pow(2).sum() ** 0.5 / count
        return (frame[column].to_numpy() - truth.double().numpy()).mean(), error

    for column in ("iwae", "log_p_lower"):
        if column == "iwae" and found.report.doubtful > 0:
            continue  # its error is not known
        mean, error = away(column, exact.log_p)
        assert -3 * error - allowed < mean < 3 * error, (column, mean, error)
    mean, error = away("elbo", exact.log_p - (0 if exact.gap is None else exact.gap))
    assert mean < 3 * error
    if exact.gap is None:
        return
    assert mean > -3 * error
    for column, truth in (
        ("inference_gap", exact.gap),
        ("amortization_gap", exact.gap),
        ("approximation_gap", 0 * exact.gap),
    ):
        if column != "inference_gap" and not exact.own_family:
            continue
        mean, error = away(column, truth)
        assert abs(mean) < 3 * error + allowed, (column, mean, error)


FIXED = (
    "baseball, not pooled",
    "exposures passed",
    "Gamma-Poisson",
    "Dirichlet-multinomial",
    "mixture of factor analyzers",
)
"""Of exact evidence, and without parameters that `compare` would fit."""


@pytest.mark.slow
@pytest.mark.parametrize("entry", names(entry for entry in ZOO if entry.name in FIXED))
def test_compare_meets_the_evidence_from_below(entry):
    case = entry.build()
    assert case.exact is not None
    case.guide(*case.args, **case.kwargs)
    exact = case.exact().log_p.double()
    options = FitOptions(capture="off", batch_size=8)
    settings = ab.ComparisonSettings(epochs=300, rungs=1, num_draws=200, fit=options)
    found = calls.compare(entry, case, settings)
    assert found.works, found.trace
    behind = {fit.name: exact - fit.elbo.value.double() for fit in found.report.fits}
    for gap in behind.values():
        assert gap.mean() > -3 * 0.5 / len(gap) ** 0.5 / 200**0.5  # a draw of a good fit is within half a nat or so
    assert min(gap.mean() for gap in behind.values()) < 0.3
