"""The error that a verdict prints is the one in the summary, and neither gives one that does not hold."""

import re

import pytest
import torch

import amortized_bayes as ab
from amortized_bayes.diagnosis import Certificate

NUM = 40


def report(khat=0.3, doubtful=0.0, iwae=0.0, amortization=0.5, certified=True):
    """A diagnosis of points whose gaps differ by tenths of nats; ``iwae`` above the bound by AIS."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.2 * torch.randn(4, 1, NUM, generator=generator, dtype=torch.float64)
    top = 3 * torch.randn(1, NUM, generator=generator, dtype=torch.float64)
    values = {
        "log_p_lower": top,
        "iwae": top + iwae + 0.01 * noise[0],
        "elbo_star": top - 1 + noise[1],
        "elbo": top - 1 - amortization + noise[1] + noise[2],
        "k_hat": torch.full((1, NUM), khat).index_fill(1, torch.arange(round(doubtful * NUM)), 0.9),
        "residual": torch.zeros(1, NUM),
    }
    errors = {name: torch.full((1, NUM), 0.01, dtype=torch.float64) for name in values}
    values |= {name: torch.ones(1, NUM) for name in ("ess", "acceptance")}
    errors |= {name: torch.full((1, NUM), torch.nan) for name in ("ess", "acceptance")}
    bounds = torch.zeros(1, 8)
    certificate = Certificate(bounds, bounds, bounds, bounds, 0.01, 0.005, False, "the bounds agree")
    why = "" if certified else "no data can be drawn"
    return ab.Diagnosis(values, errors, certificate if certified else None, why, 1000, 0.1, {})


HOLD = {
    "by AIS": report(iwae=-0.1),
    "by AIS, k-hat high at some points": report(iwae=-0.1, doubtful=0.3),
    "by IWAE": report(iwae=0.05),
    "by IWAE, vouched for by AIS": report(iwae=0.05, doubtful=0.3),
    "by IWAE, vouched for, amortization alone": report(iwae=0.05, doubtful=0.3, amortization=8.0),
}
FAIL = {
    "too high to be vouched for": report(iwae=0.5, doubtful=0.3),
    "not certified": report(iwae=0.05, doubtful=0.3, certified=False),
    "k-hat high at most points": report(iwae=0.05, doubtful=0.7),
    "below q*": report(iwae=0.05, doubtful=0.7, amortization=-3.0),
}


def printed(found):
    """Each gap in the words of a verdict, by name: mean and error as they are written."""
    said = re.findall(r"(approximation|amortization|inference gap) (-?[\d.]+)±([\d.]+|nan) nats", str(found.verdict))
    return {name.removesuffix(" gap") + "_gap": (mean, error) for name, mean, error in said}


@pytest.mark.parametrize("found", HOLD.values(), ids=HOLD)
def test_the_summary_has_the_error_that_the_verdict_prints(found):
    assert not found.verdict.abstains
    said, summary = printed(found), found.summary()
    assert said
    for name, (mean, error) in said.items():
        digits = len(error.partition(".")[2])
        row = summary.loc[name]
        assert (f"{row['mean']:.{digits}f}", f"{row['standard_error']:.{digits}f}") == (mean, error)
        assert row["low"] < row["mean"] < row["high"]


@pytest.mark.parametrize("found", FAIL.values(), ids=FAIL)
def test_what_rests_on_bad_weights_has_no_error_anywhere(found):
    assert found.verdict.abstains
    summary = found.summary()
    for name in ("approximation_gap", "inference_gap", "iwae"):
        assert summary.loc[name, ["standard_error", "low", "high"]].isna().all()
    for name in ("approximation", "inference"):
        assert getattr(found.gaps(), name).mean_error != getattr(found.gaps(), name).mean_error
    assert set(printed(found)) <= {"amortization_gap"}
    assert summary.loc["amortization_gap", "standard_error"] > 0
    assert "nan" not in str(found.verdict)


def test_a_bound_below_q_star_is_told_without_an_error():
    """IWAE by bad weights lies below L[q*], which is a bound on log p(x) too."""
    found = report(iwae=0.05, doubtful=0.7)
    found.values["elbo_star"] += 2
    assert "L[q*] lies above the estimate of log p(x): approximation -0.9" in str(found.verdict)
    assert "of unknown error" in str(found.verdict)
    assert "this holds" not in str(found.verdict)
