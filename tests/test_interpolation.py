"""The interpolation problem: residuals of an f that is fitted to the optimum of F-VI, against closed forms."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from amortized_bayes.divergence import Divergence
from amortized_bayes.experiments.series_fits import Problem, case
from amortized_bayes.inference.interpolation import interpolate, window_inputs
from amortized_bayes.models import SERIES, Linear, RandomWalk, Saw, TwoLevels

pytestmark = pytest.mark.usefixtures("float64")

N = 40


def problem(model, count=N):
    x = model.simulate(count, 3)
    exact = model.exact(x)
    return x, exact, exact.local_best()


def test_the_residual_is_a_divergence():
    best = torch.randn(6, 4)
    found = interpolate(torch.randn(6, 2), best, width=0)
    (mean, log_scale), (target, target_scale) = found.answers.chunk(2, 1), best.chunk(2, 1)
    expected = kl_divergence(Normal(mean, log_scale.exp()), Normal(target, target_scale.exp())).sum(1)
    torch.testing.assert_close(found.residual, expected)


@pytest.mark.parametrize("name", [name for name in SERIES if name != "nonlinear"])
def test_rows_of_the_optimum_lose_nothing(name):
    _, exact, best = problem(SERIES[name]())
    answer = exact.answer(best)
    assert abs(float(answer.lost)) < 1e-8
    torch.testing.assert_close(answer.mean, exact.best().mean)
    assert float(exact.elbo(answer.mean, answer.log_scale)) == pytest.approx(float(exact.best_elbo()))


@pytest.mark.parametrize(
    ("model", "see", "none_left"),
    [
        (Linear(), lambda x: x[:, None], True),
        (Linear(), lambda x: x[:, None].sign(), False),
        (TwoLevels(members=3), lambda x: x, True),
        (TwoLevels(members=3), lambda x: x[:, :2], False),
        (Saw(), lambda x: window_inputs(x, [0, 1], num_data=N), True),
        (Saw(), lambda x: window_inputs(x, [1], num_data=N), False),
    ],
)
def test_a_linear_f_leaves_nothing_where_it_sees_enough(model, see, none_left):
    """The exact loss by the quadratic form, by the ELBO, and, where f sees too little, no less than the best f's."""
    x, exact, best = problem(model)
    inputs = see(x)
    found = interpolate(inputs, best, width=0)
    answer = exact.answer(found.answers)
    lost = float(exact.best_elbo() - exact.elbo(answer.mean, answer.log_scale))
    assert float(answer.lost) == pytest.approx(lost, abs=1e-7)
    if none_left:
        assert float(found.residual.sum()) < 1e-6
        assert lost < 1e-6
    else:
        assert float(found.residual.sum()) > 0.5
        assert lost >= float(exact.best_of(torch.cat([torch.ones(N, 1), inputs], 1)).lost) - 1e-6 > 0.1


def test_residuals_add_up_to_the_loss_where_no_latents_are_tied():
    """Shared latents stay where they are for a fit by weighted least squares, and answer to rows that are shifted."""
    x, exact, best = problem(Linear())
    found = interpolate(x[:, None].sign(), best, width=0)
    assert loss_of_rows(exact, found.answers) == pytest.approx(float(found.residual.sum()))
    assert float(exact.answer(found.answers).lost) == pytest.approx(float(found.residual.sum()))
    shifted = found.answers + torch.tensor([0.5, 0.0])
    assert float(exact.answer(shifted).lost) < loss_of_rows(exact, shifted) - 0.1


def loss_of_rows(exact, answers):
    """Nats that rows lose with the shared latents of the optimum."""
    shared = exact.best()
    mean = torch.cat([shared.mean[:1], answers[:, 0]])
    log_scale = torch.cat([shared.log_scale[:1], answers[:, 1]])
    return float(exact.lost(mean, log_scale))


def test_shared_latents_answer_to_the_rows():
    """At any rows, the ELBO has no slope in the shared latents."""
    _, exact, best = problem(TwoLevels(members=2))
    answer = exact.answer(best + torch.randn(best.shape) + 1)
    mean, log_scale = (part.clone().requires_grad_() for part in answer[:2])
    slopes = torch.autograd.grad(exact.elbo(mean, log_scale), (mean, log_scale))
    for slope in slopes:
        assert abs(float(slope[0])) < 1e-9
        assert slope[1:].abs().max() > 1e-2


def test_equal_inputs_get_the_common_answer_of_least_residual():
    """A walk that is always 1: means weighted by the precisions 3, ..., 3, 2, and their mean precision."""
    exact = RandomWalk().exact(torch.ones(N))
    best = exact.local_best()
    found = interpolate(torch.ones(N, 1), best, width=4, num_steps=50)
    precision = torch.tensor([3.0] * (N - 1) + [2.0])
    common = float((precision * best[:, 0]).sum() / precision.sum())
    expected = torch.tensor([common, -0.5 * math.log((3 * N - 1) / N)])
    torch.testing.assert_close(found.answers, expected.expand(N, 2), rtol=1e-6, atol=1e-6)
    forecast, least = float(exact.answer(found.answers).lost), float(exact.best_of(torch.ones(N, 1)).lost)
    assert least < forecast < 1.5 * least  # regression does not know how the latents are tied


@pytest.mark.slow
def test_more_width_leaves_less():
    x = torch.linspace(-3, 3, 60)
    best = torch.stack([(2 * x).sin(), -1 + 0.3 * x.cos()], 1)
    left = [float(interpolate(x[:, None], best, width=k, num_steps=500, seed=1).residual.sum()) for k in (1, 4, 16)]
    assert left == sorted(left, reverse=True)
    assert left[0] > 50
    assert left[-1] < 0.05


def test_a_wider_window_with_marks_leaves_less_of_a_walk():
    exact = RandomWalk().exact(torch.ones(N))
    best = exact.local_best()
    left = []
    for reach in (0, 1, 3):
        inputs = window_inputs(torch.ones(N), range(-reach, reach + 1))
        found = interpolate(inputs, best, width=0)
        left.append(float(exact.answer(found.answers).lost))
    assert left == sorted(left, reverse=True)
    assert left[0] > 50 * left[-1]
    unmarked = window_inputs(torch.ones(N), range(-3, 4), marks=False)
    assert unmarked.shape == (N, 7)


def test_windows_by_hand():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert window_inputs(x, [-1, 0]).tolist() == [[0, 0, 1, 2, 1], [1, 2, 3, 4, 0], [3, 4, 5, 6, 0]]
    assert window_inputs(x[:, 0], [0, 1], num_data=2).tolist() == [[1, 3], [3, 5]]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_and_the_generator_stays():
    x, _, best = problem(Linear())
    state = torch.get_rng_state()
    first, again, other = (interpolate(x[:, None], best, width=3, num_steps=20, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.answers, again.answers)
    assert not torch.equal(first.answers, other.answers)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: interpolate(torch.ones(3, 1), torch.ones(4, 2), width=1), r"got \(3, 1\) and \(4, 2\)"),
        (lambda: interpolate(torch.ones(3, 1), torch.ones(3, 3), width=1), r"best \(N, 2 D\)"),
        (lambda: interpolate(torch.full((3, 1), math.nan), torch.ones(3, 2), width=1), "finite"),
        (lambda: interpolate(torch.ones(3, 1), torch.ones(3, 2), width=-1), "width of 0 or more"),
        (lambda: window_inputs(torch.ones(3), []), "offsets"),
        (lambda: window_inputs(torch.ones(3, 2, 2), [0]), r"got \(3, 2, 2\)"),
        (lambda: Linear().exact(torch.ones(4)).answer(torch.ones(4, 3)), r"expected rows \(4, 2\)"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(ValueError, match=words) as refused:
        call()
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_line_search_that_leaves_the_numbers_is_begun_again():
    """Searches of this problem evaluate an f whose scales overflow; the f's of before are a start as good as any."""
    torch.set_default_dtype(torch.float32)  # of the data; until the fixture ends
    problem = Problem(case("gaussian-process", 200, 1))
    inputs, best = problem.case.inputs["window"], problem.truth.local_best()
    found = interpolate(inputs, best, width=1, num_steps=1000, seed=1)
    assert float(found.residual.mean()) < 0.1  # nan without; 0.01 or 0.06, as processors round


@pytest.mark.parametrize("rate", [3.0, 100.0])
@pytest.mark.slow
def test_steps_that_lead_away_are_refused(rate):
    """L-BFGS ended 1.7 nats above the optimum after the first rate, and at nan after the second."""
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    best = torch.cat([(2 * x[:, :1]).sin() + x[:, 1:], 0.3 * x[:, 1:] - 1], 1)
    found = interpolate(x, best, width=8, num_steps=300)
    assert found.residual.mean() < 0.01
    with pytest.raises(Divergence, match=rf"come nearer .* nats per point after .* than {rate:g}$") as refused:
        interpolate(x, best, width=8, num_steps=300, learning_rate=rate)
    assert "\n" not in str(refused.value)


def test_steps_that_begin_at_the_best_are_none_too_far():
    """All points have the same optimum, or what f sees says nothing of it."""
    best = torch.cat([torch.ones(9, 1), -torch.ones(9, 1)], 1)
    assert interpolate(torch.randn(9, 2), best, width=4, num_steps=50).residual.max() < 1e-6
    best[::2, 0] = 2.0
    assert interpolate(torch.ones(9, 1), best, width=4, num_steps=50).residual.isfinite().all()
