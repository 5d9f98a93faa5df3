"""Gaps are paired, signed and never clipped."""

import math

import pytest
import torch

from amortized_bayes.evaluation.gaps import Estimate, gaps, log_evidence, paired_gap


@pytest.fixture
def estimates() -> dict[str, Estimate]:
    generator = torch.Generator().manual_seed(0)

    def normal(scale: float) -> torch.Tensor:
        return scale * torch.randn(200, generator=generator, dtype=torch.float64)

    log_p = -90 + normal(20.0)
    error = torch.full((200,), 0.1, dtype=torch.float64)
    return {
        "ais": Estimate(log_p + normal(0.1), error),
        "iwae": Estimate(log_p - 0.3 + normal(0.1), error),
        "elbo_star": Estimate(log_p - 1.4 + normal(0.1), error),
        "elbo": Estimate(log_p - 2.8 + normal(0.1), error),
    }


def test_pairing_removes_the_spread_over_points(estimates: dict[str, Estimate]) -> None:
    report = gaps(**estimates)
    assert abs(report.approximation.mean - 1.4) < 0.05
    assert abs(report.amortization.mean - 1.4) < 0.05
    assert report.approximation.mean_error < 0.02  # unpaired it would be 2 nats
    assert report.approximation.interval[0] < 1.4 < report.approximation.interval[1]
    total = report.approximation.value + report.amortization.value
    torch.testing.assert_close(report.inference.value, total)
    assert report.inference.mean == pytest.approx(report.approximation.mean + report.amortization.mean)


def test_the_maximum_is_taken_of_the_means(estimates: dict[str, Estimate]) -> None:
    evidence = gaps(**estimates).log_evidence
    assert evidence.source == "ais"
    assert evidence.chosen is estimates["ais"]
    assert evidence.ais_mean - evidence.iwae_mean == pytest.approx(0.3, abs=0.05)
    swapped = log_evidence(estimates["iwae"], estimates["ais"])
    assert swapped.source == "iwae"
    assert swapped.chosen is estimates["ais"]
    alone = log_evidence(None, estimates["iwae"])
    assert alone.source == "iwae"
    assert math.isnan(alone.ais_mean)


def test_negative_gaps_are_flagged_and_never_clipped() -> None:
    upper = Estimate(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.3, 0.3, 0.3]))
    lower = Estimate(torch.tensor([1.1, 4.0, 4.0]), torch.tensor([0.4, 0.4, 0.4]))
    gap = paired_gap(upper, lower)
    torch.testing.assert_close(gap.value, torch.tensor([-0.1, -2.0, -1.0], dtype=torch.float64), rtol=0, atol=1e-6)
    assert gap.z_score is not None
    torch.testing.assert_close(gap.z_score, torch.tensor([-0.2, -4.0, -2.0]).double(), rtol=0, atol=1e-5)
    assert (gap.num_negative, gap.num_flagged) == (3, 1)
    assert "negative, z = -1.9" in str(gap)
    assert not gap.suspicious
    assert paired_gap(Estimate(upper.value), Estimate(lower.value)).z_score is None


def test_a_mean_below_zero_by_many_errors_is_suspicious() -> None:
    value = torch.linspace(-1.1, -0.9, 50)
    assert paired_gap(Estimate(value), Estimate(torch.zeros(50))).suspicious


def test_restarts_give_the_gap_of_optimization(estimates: dict[str, Estimate]) -> None:
    best = Estimate(estimates["elbo_star"].value + 0.25)
    report = gaps(**estimates, elbo_best=best)
    assert report.optimization is not None
    assert report.optimization.mean == pytest.approx(0.25)
    assert str(report.optimization).startswith("0.250±0.000")


def test_bad_input() -> None:
    three, four = Estimate(torch.zeros(3)), Estimate(torch.zeros(4))
    with pytest.raises(ValueError, match="got neither"):
        log_evidence(None, None)
    with pytest.raises(ValueError, match=r"same points.*\(3,\) and \(4,\)"):
        paired_gap(three, four)
    with pytest.raises(ValueError, match="AIS and IWAE of the same points"):
        log_evidence(three, four)
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        paired_gap(three, three, 95)


def test_unknown_numbers_stay_unknown() -> None:
    nothing = Estimate(torch.full((5,), torch.nan))
    known = Estimate(torch.arange(5.0))
    assert math.isnan(paired_gap(nothing, known).mean_z)
    assert math.isnan(paired_gap(Estimate(torch.ones(1)), Estimate(torch.zeros(1))).mean_z)
    assert log_evidence(nothing, known).source == "iwae"
    assert log_evidence(known, nothing).source == "ais"
    with pytest.raises(ValueError, match="standard error of each of 5 points"):
        paired_gap(known, Estimate(torch.zeros(5), torch.ones(3)))
