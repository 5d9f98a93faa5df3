"""Fits of the models whose answer is known: what theory says of them is met, and their gradient is the ELBO's."""

import math

import pytest
import torch

from amortized_bayes.divergence import Divergence
from amortized_bayes.experiments.series_fits import Answers, Case, Problem, case, fit_answers, slopes
from amortized_bayes.inference.interpolation import window_inputs
from amortized_bayes.labels import SEES, SERIES_LABELS
from amortized_bayes.models import SERIES, GaussianJoint, Linear, Nonlinear, RandomWalk
from amortized_bayes.models.independent_joint import STARTS, IndependentJoint

N = 30
FAST = ("linear", "random-walk")
ALL = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SERIES]
GAUSSIAN = [one for one in ALL if getattr(one, "values", ()) != ("nonlinear",)]


def fitted(problem, answers, steps=2000, rate=0.05):
    *_, last = fit_answers(problem, answers, steps, rate, (), 1)
    return last.behind


def test_every_model_has_its_inputs_and_a_name():
    assert SEES.keys() == SERIES_LABELS.keys() == SERIES.keys()
    for name in SERIES:
        made = case(name, N, 0)
        assert tuple(made.inputs) == SEES[name]
        assert all(len(inputs) == N for inputs in made.inputs.values())


def test_inputs_are_the_rows_about_a_point():
    x = case("saw", N, 3).x
    seen = case("saw", N, 3).inputs
    assert torch.equal(seen["own-and-next"], torch.stack([x[:-1], x[1:]], 1))
    assert torch.equal(seen["next"][:, 0], x[1:])
    walk = case("random-walk", N, 3)
    assert walk.inputs["window"].shape == (N, 9 + 8)  # rows and marks
    assert walk.inputs["whole"].shape == (N, 2 * N - 1 + 2 * N - 2)
    assert torch.equal(walk.inputs["window"][:, 4], walk.x)


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.slow_cases("nonlinear")
def test_all_guides_start_at_the_same_q(name):
    problem = Problem(case(name, N, 0))
    starts = []
    for guide, sees, k in (
        ("constant", None, None),
        ("factorized", None, None),
        *(("amortized", s, k) for s in SEES[name] for k in (0, 3)),
    ):
        answers = Answers(problem, guide, problem.case.inputs.get(sees), k, seed=5)
        mean, log_scale = answers()
        assert torch.equal(mean, torch.zeros_like(mean))
        assert torch.equal(log_scale, torch.full_like(log_scale, -1.0))
        starts.append(next(fit_answers(problem, answers, 10, 0.1, (), 0)).behind)
    assert starts == pytest.approx([starts[0]] * len(starts))


@pytest.mark.parametrize("name", ["two-levels", "random-walk", "nonlinear"])
@pytest.mark.slow
def test_the_gradient_is_that_of_the_exact_elbo(name):
    """The mean of many steps' gradients, seen as the first step of plain gradient descent, against autograd."""
    problem = Problem(case(name, 6, 0))
    answers = Answers(problem, "factorized")
    with torch.no_grad():
        for parameter in answers.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)).double()
    mean, log_scale = answers()
    expected = torch.autograd.grad(problem.truth.elbo(mean, log_scale) / 6, list(answers.parameters()))
    generator = torch.Generator().manual_seed(4)
    found = []
    for _ in range(3000):
        of_answers = slopes(problem, *answers(), generator)
        found.append(torch.autograd.grad(answers(), list(answers.parameters()), of_answers))
    for place, wanted in enumerate(expected):
        if not wanted.numel():
            continue  # a walk shares no latents
        draws = -torch.stack([g[place] for g in found])  # of the loss
        error = draws.std(0) / math.sqrt(len(draws))
        assert ((draws.mean(0) - wanted).abs() < 4.5 * error + 1e-9).all()
        assert error.max() < 0.2 * wanted.abs().max()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.slow_cases("random-walk")
def test_f_vi_comes_within_a_hundredth_of_a_nat(name):
    problem = Problem(case(name, N, 2))
    behind = fitted(problem, Answers(problem, "factorized"))
    assert -1e-9 < behind < 0.01


@pytest.mark.parametrize("name", GAUSSIAN)
@pytest.mark.slow_cases("random-walk")
def test_constant_vi_and_a_linear_f_come_to_the_best_of_their_kind(name):
    """And to no better: the exact optimum of the kind is a bound."""
    problem = Problem(case(name, N, 2))
    truth, ones = problem.truth, torch.ones(N, 1).double()
    assert isinstance(truth, GaussianJoint)
    size = problem.sizes[1]
    if size == 1:
        least = float(truth.best_of(ones).lost) / N
        assert -1e-9 < fitted(problem, Answers(problem, "constant")) - least < 0.01
    for sees in SEES[name][:-1]:
        inputs = problem.case.inputs[sees]
        least = float(truth.best_of(torch.cat([ones, inputs], 1)).lost) / N  # one scale for all points
        found = fitted(problem, Answers(problem, "amortized", inputs, 0))
        assert found < least + 0.01
        if sees in ("own", "next", "first-member"):
            assert found > 0.8 * least  # scales that are linear in the input win a little


@pytest.mark.parametrize("name", GAUSSIAN)
@pytest.mark.slow_cases("random-walk")
def test_a_linear_f_that_sees_enough_reaches_the_optimum(name):
    problem = Problem(case(name, N, 2))
    sees = "window" if "whole" in SEES[name] else SEES[name][-1]  # of few points a window is nearly all
    inputs = problem.case.inputs[sees]
    assert fitted(problem, Answers(problem, "amortized", inputs, 0)) < 0.02


@pytest.mark.slow
def test_no_f_of_the_own_point_helps_where_all_data_are_equal():
    """A walk that is always 1: any f(x_n) is a constant, and ends at the best constant, 0.28 nats behind in all."""
    walk, x = RandomWalk(), torch.ones(20).double()
    own = Case(walk, x, {"own": x[:, None], "window": window_inputs(x, range(-4, 5))})
    problem = Problem(own)
    predicted = float(problem.truth.best_of(torch.ones(20, 1)).lost) / 20
    assert predicted > 0.01
    for k in (0, 8):
        assert fitted(problem, Answers(problem, "amortized", own.inputs["own"], k)) == pytest.approx(
            predicted, abs=1e-3
        )
    assert fitted(problem, Answers(problem, "amortized", own.inputs["window"], 8)) < 0.2 * predicted


@pytest.mark.slow
def test_a_wide_f_closes_the_gap_of_the_nonlinear_model_and_a_linear_one_does_not():
    problem = Problem(case("nonlinear", 60, 0))
    gaps = [fitted(problem, Answers(problem, "amortized", problem.case.inputs["own"], k)) for k in (0, 16)]
    assert gaps[0] > 0.05
    assert gaps[1] < 0.02


def test_a_seed_gives_the_same_fit_and_another_one_another():
    problem = Problem(case("linear", N, 0))
    inputs = problem.case.inputs["own"]

    def course(seed):
        answers = Answers(problem, "amortized", inputs, 4, seed)
        return [found.behind for found in fit_answers(problem, answers, 40, 0.05, (5, 20), seed)]

    state = torch.get_rng_state()
    assert course(1) == course(1) != course(2)
    assert len(course(1)) == 4
    assert torch.equal(state, torch.get_rng_state())


def test_a_fit_that_diverges_says_so():
    problem = Problem(case("linear", N, 0))
    with pytest.raises(Divergence, match="not finite after step"):
        list(fit_answers(problem, Answers(problem, "factorized"), 400, 1e300, (), 0))


# ELBO by quadrature ---------------------------------------------------------------------------------------------------


def test_quadrature_agrees_with_the_exact_form():
    model = Linear()
    x = model.simulate(N, 1)
    exact, other = model.exact(x), IndependentJoint(model, x)
    assert float(other.best_elbo()) == pytest.approx(float(exact.best_elbo()), abs=1e-8)
    torch.testing.assert_close(other.local_best(), exact.local_best(), rtol=0, atol=1e-5)
    rows = exact.local_best() + 0.3
    mine, theirs = other.answer(rows), exact.answer(rows)
    assert float(mine.lost) == pytest.approx(float(theirs.lost), abs=1e-6)
    torch.testing.assert_close(mine.mean, theirs.mean, rtol=0, atol=1e-5)
    mean, log_scale = torch.randn(2, 1 + N).double()
    assert float(other.elbo(mean, log_scale)) == pytest.approx(float(exact.elbo(mean, log_scale)), rel=1e-9)


@pytest.mark.slow
def test_quadrature_of_the_nonlinear_model_is_the_mean_of_draws():
    model = Nonlinear()
    x = model.simulate(8, 1)
    truth = model.truth(x)
    mean, log_scale = (0.5 * torch.randn(9, generator=torch.Generator().manual_seed(k)).double() for k in (1, 2))
    problem = Problem(Case(model, x, {}))
    noise = torch.randn(4000, 9, generator=torch.Generator().manual_seed(3)).double()
    values = torch.stack([problem.program.log_density(mean + log_scale.exp() * e) for e in noise])
    entropy = (log_scale + 0.5 * math.log(2 * math.pi * math.e)).sum()
    assert abs(float(values.mean() + entropy - truth.elbo(mean, log_scale))) < 4 * float(values.std()) / 63


def test_searches_from_several_means_find_the_higher_of_two_maxima():
    """Of x = |z - 1/2| - 0.4 z + noise: a search from 0 ends in the lower one."""
    import pyro
    import pyro.distributions as dist

    def model(x):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(()).double(), 0.01))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 3.0))
            pyro.sample("x", dist.Normal(theta + (z - 0.5).abs() - 0.4 * z, 0.2), obs=x)

    truth = IndependentJoint(model, torch.full((3,), 1.5).double())
    first = truth.point_elbos(*truth._from(STARTS[2]))[1]
    best = truth.point_elbos(*truth.best()[:2])[1]
    assert (best > first + 0.1).all()
    assert float(truth.lost(*truth.best()[:2])) == pytest.approx(0, abs=1e-9)


def test_what_is_known_needs_finite_float64_data():
    with pytest.raises(ValueError, match=r"finite data in float64, got torch.float32"):
        Nonlinear().truth(torch.zeros(4))
    with pytest.raises(ValueError, match="1 not finite"):
        Nonlinear().truth(torch.tensor([math.nan, 1]).double())
    with pytest.raises(ValueError, match=r"rows \(4, 2\), got \(4, 3\)"):
        Nonlinear().truth(torch.zeros(4).double()).answer(torch.zeros(4, 3))
