"""k̂ and the effective sample size."""

import math

import pytest
import torch
from arviz_stats.base.array import array_stats

from amortized_bayes.evaluation.psis import ess, khat_threshold, psis_khat


def gaussian_weights(scale: float, num_draws: int, dim: int = 1) -> torch.Tensor:
    """Log weights of a standard normal under a proposal of another scale, ``(2, S)``."""
    z = scale * torch.randn(2, num_draws, dim, dtype=torch.float64)
    return (-0.5 * z.square() + 0.5 * (z / scale).square() + math.log(scale)).sum(-1)


def test_a_proposal_too_narrow_is_seen_and_one_too_wide_is_fine() -> None:
    # For a scale s < 1 the weights have moments below 1 / (1 - s²): k = 1 - s².
    assert (psis_khat(gaussian_weights(0.3, 4000, dim=5)) > 0.7).all()
    assert (psis_khat(gaussian_weights(1.3, 4000)) < 0.3).all()


def test_the_sign_is_right() -> None:
    """Exact Pareto tails: w = u^(-k) has shape k. With the sign wrong k̂ would be far below."""
    u = torch.rand(20, 5000, dtype=torch.float64)
    for k in (0.3, 0.9):
        khat = psis_khat(-k * u.log())
        assert abs(khat.mean() - k) < 4 * khat.std() / 20**0.5 + 0.02


def test_equal_weights_are_exact_and_do_not_spoil_the_batch() -> None:
    weights = gaussian_weights(0.3, 500)
    batch = torch.stack([weights[0], torch.full((500,), -90.0), weights[1]])
    batch[1] += 1e-9 * torch.randn(500)
    khat = psis_khat(batch.float())
    assert khat[1] == -math.inf
    assert (khat[[0, 2]] > 0.5).all()


@pytest.mark.parametrize("num_draws", [25, 100, 1000])
def test_the_fit_is_that_of_arviz(num_draws: int) -> None:
    for scale in (0.1, 1.0, 5.0):
        weights = scale * torch.randn(20, num_draws, dtype=torch.float64)
        _, known = array_stats.psislw(-weights.numpy(), axis=-1)  # which takes minus the log weights
        torch.testing.assert_close(psis_khat(weights), torch.as_tensor(known))


def test_ties_at_the_edge_of_the_tail_are_no_tail() -> None:
    """Weights level at all but half of the tail, which arviz's fit divides by zero at."""
    weights = gaussian_weights(0.4, 10_000, dim=4)
    level = weights.maximum(weights.quantile(0.985, dim=-1, keepdim=True))  # the tail is the heaviest 3%
    assert (psis_khat(level) - psis_khat(weights)).abs().max() < 0.15


def test_few_draws_above_a_level_rest_have_no_fit() -> None:
    weights = torch.zeros(3, 1000)
    weights[0, :3] = 5.0  # three draws with all of the weight
    weights[1, :300] = 5.0  # a tail that is level
    weights[2] += 1e-5 * torch.randn(1000)  # rounding
    assert psis_khat(weights).tolist() == [math.inf, -math.inf, -math.inf]


def test_zero_weights_within_the_heaviest_fifth() -> None:
    weights = torch.full((200,), -math.inf)
    weights[:30] = -0.9 * torch.rand(30).log()
    assert 0 < psis_khat(weights) < 2


def test_broken_weights_are_flagged_and_zero_weights_are_weights() -> None:
    good = gaussian_weights(0.8, 500)[0]
    nan, inf, zero, few = good.clone(), good.clone(), good.clone(), torch.full((500,), -math.inf)
    nan[3], inf[4], zero[:50], few[:10] = math.nan, math.inf, -math.inf, good[:10]
    khat = psis_khat(torch.stack([good, nan, inf, zero, few.double()]))
    assert khat[[1, 2]].isnan().all()
    assert khat[0].isfinite()
    assert khat[3].isfinite()
    assert khat[4] == math.inf


def test_shapes_and_too_few_draws() -> None:
    assert psis_khat(gaussian_weights(0.7, 100).reshape(2, 1, 100)).shape == (2, 1)
    with pytest.raises(ValueError, match="at least 25 draws along the last dimension, got 24"):
        psis_khat(torch.randn(3, 24))
    with pytest.raises(ValueError, match="at least 25"):
        khat_threshold(3)


def test_threshold() -> None:
    assert khat_threshold(100) == pytest.approx(0.5)
    assert khat_threshold(10_000) == 0.7


def test_ess() -> None:
    weights = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -math.inf, -math.inf, 0.0], [5.0, 5.0, -800.0, -900.0]])
    torch.testing.assert_close(ess(weights), torch.tensor([4.0, 2.0, 2.0], dtype=torch.float64))
    assert ess(torch.tensor([math.nan, 0.0])).isnan()
    assert ess(torch.full((5,), -math.inf)) == 0


def test_ties_above_the_rest_are_a_largest_weight() -> None:
    """As of discrete latents: a fit to exceedances that are all alike has no answer, and none is needed."""
    rest = torch.zeros(92, dtype=torch.float64)
    met = torch.cat([rest, torch.full((8,), 2.0, dtype=torch.float64)])
    heavy = torch.cat([rest, torch.linspace(1, 12, 8, dtype=torch.float64)])
    assert psis_khat(met) == -math.inf
    assert psis_khat(torch.stack([met, heavy])).tolist() == [-math.inf, psis_khat(heavy).item()]
    assert psis_khat(heavy) > 0.7
    assert psis_khat(met.index_fill(0, torch.arange(92, 96), 0.0)) == math.inf  # four are no sign of a largest weight
    assert psis_khat(met.index_fill(0, torch.tensor([92]), 5.0)) > -math.inf  # nor are eight below another
