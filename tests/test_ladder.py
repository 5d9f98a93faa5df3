"""The ladder of budgets: each rung afresh, the top from the half, F-VI from A-VI from there, and what is timed."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import parts_of, same_bits

from amortized_bayes.comparing import fitting
from amortized_bayes.comparing.fitting import climb, finish_fit
from amortized_bayes.comparing.problem import FitProblem, Held
from amortized_bayes.comparing.starting import restore_fit, start_at, start_fit
from amortized_bayes.guides import Factorized, MeanField
from amortized_bayes.guides.registry import Fit
from amortized_bayes.inference import svi
from amortized_bayes.inference.options import FitOptions, settling
from amortized_bayes.inference.svi import Training
from amortized_bayes.models import DeepGenerative, LinearGaussian
from amortized_bayes.sites import latent_sites

N = 20
PER_EPOCH = 2
BUDGETS, EPOCHS = (1, 3), 7
AMORTIZED, OWN, FROM = Fit("amortized", 3), Fit("factorized"), Fit("factorized-from-amortized")
OPTIONS = {
    "recipe": FitOptions.recipe(batch_size=10, capture="off"),
    "averages": FitOptions(batch_size=10, capture="off"),
}


def problem_of(options, *, bayesian=True):
    """A decoder with weights, or with parameters of its own, among which is the scale of the likelihood."""
    data = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))

    def new_model():
        torch.manual_seed(1)
        model = DeepGenerative(4, 2, [5], N, bayesian=bayesian, likelihood="gaussian-learned")
        return model, latent_sites(model, data[:2])

    return FitProblem(data, new_model, lambda _: options, 0, EPOCHS, BUDGETS, num_draws=2)


def state_of(training):
    """All of a training but its clock; the first loss is not known before the first step."""
    return {name: tensor.nan_to_num(0.0) for name, tensor in parts_of(training).items()}


@pytest.fixture(name="rungs")
def watched_rungs(monkeypatch):
    """State before and after each rung, its steps and its options."""
    found = []

    def watched(training, num_steps, watch):
        before = state_of(training)
        train(training, num_steps, watch)
        found.append((before, state_of(training), num_steps, training.options))

    train = fitting.train
    monkeypatch.setattr(fitting, "train", watched)
    return found


every_fit = pytest.mark.parametrize("fit", [Fit("constant"), AMORTIZED, OWN])
all_options = pytest.mark.parametrize("options", OPTIONS)


@all_options
@every_fit
def test_every_budget_below_the_top_starts_afresh(rungs, fit, options):
    problem = problem_of(OPTIONS[options])
    fitted = start_fit(problem, fit)
    start = state_of(fitted.training)
    list(climb(problem, fitted))
    assert len(rungs) == len(BUDGETS) + 1
    for before, *_ in rungs[:-1]:
        assert same_bits(before, start)


@all_options
@every_fit
def test_the_top_goes_on_from_the_half(rungs, fit, options):
    problem = problem_of(OPTIONS[options])
    fitted = start_fit(problem, fit)
    found = [evaluation for evaluation, _ in climb(problem, fitted)]
    found.append(finish_fit(problem, fitted).evaluation)
    befores, afters, steps, used = zip(*rungs, strict=True)
    assert steps == (2, 6, 8)  # half of seven epochs, rounded down, and the rest
    assert same_bits(befores[-1], afters[-2])
    assert befores[-1]["steps"] == 6
    assert [(e.epochs, e.step) for e in found] == [(n, PER_EPOCH * n) for n in (*BUDGETS, EPOCHS)]
    plain = OPTIONS[options].schedule
    assert [o.schedule for o in used] == [plain, plain, settling if plain else None]
    assert used[-1].weights_at(0.0) == (1.0, 1.0, 1.0)  # warmed up already


@pytest.mark.parametrize("bayesian", [True, False])
@all_options
def test_fvi_from_avi_has_all_that_avi_had_at_the_half(rungs, options, bayesian):
    problem = problem_of(OPTIONS[options], bayesian=bayesian)
    amortized = start_fit(problem, AMORTIZED)
    ladder = climb(problem, amortized)
    half = [next(ladder)[0] for _ in BUDGETS][-1]
    start = start_at(problem, amortized)
    with amortized.training.averaged():
        rows = amortized.guide.locate(problem.x, problem.index).detach().clone()
        others = [{k: v.clone() for k, v in m.state_dict().items()} for m in of_all_points(amortized)]
    restored = restore_fit(problem, AMORTIZED, {k: v.clone() for k, v in amortized.training.state().items()})
    assert not list(ladder)  # on to the top, which changes nothing of the start
    for given in (start, start_at(problem, restored)):
        fitted = start_fit(problem, FROM, given)
        assert torch.equal(fitted.guide.locate(problem.x, problem.index), rows)
        for module, other in zip(of_all_points(fitted), others, strict=True):
            assert same_bits(module.state_dict(), other)
        rungs.clear()
        ((begin, _),) = climb(problem, fitted)
        assert begin[:3] == half[:3]  # epochs, steps and seconds
        assert [steps for *_, steps, _ in rungs] == [PER_EPOCH * (EPOCHS - BUDGETS[-1])]
        assert finish_fit(problem, fitted).evaluation.step == PER_EPOCH * EPOCHS
        assert rungs[0][-1].schedule == (settling if OPTIONS[options].schedule else None)


def of_all_points(fitted):
    """q(theta), where there is one, and the model, the scale of whose likelihood is learned."""
    return [module for module in (fitted.guide.shared, fitted.model) if module is not None]


def test_the_clock_counts_steps_and_nothing_else(monkeypatch):
    """Each step takes a second; whoever watches, evaluates or captures takes a thousand."""
    now = [0.0]

    def takes(seconds, call):
        def timed(*given, **more):
            now[0] += seconds
            return call(*given, **more)

        return timed

    monkeypatch.setattr(svi.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Training, "_step", takes(1.0, Training._step))
    monkeypatch.setattr(Training, "prepare", takes(1e3, Training.prepare))
    for name in ("rung_measures", "final_measures"):
        monkeypatch.setattr(fitting, name, takes(1e3, getattr(fitting, name)))
    problem = problem_of(OPTIONS["recipe"])
    fitted = start_fit(problem, AMORTIZED)
    watch = takes(1e3, lambda *_: None)
    found = [evaluation for evaluation, _ in climb(problem, fitted, watch)]
    top = finish_fit(problem, fitted).evaluation
    assert [e.seconds for e in (*found, top)] == [e.step for e in (*found, top)] == [2, 6, 14]
    assert top.measures["seconds_per_step"].value == 1.0


def test_a_batch_has_its_share_of_the_kl_of_shared_latents_by_all_points(float64):
    """The loss is per data point, so that KL[q(theta) | p(theta)] counts as 1/N of itself, however large the batch."""
    s = 0.5
    x = torch.randn(N, 1)

    def model(x, index):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("data", N, subsample=index):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(theta + z, s).to_event(1), obs=x)

    sites = latent_sites(model, x[:2], torch.arange(2))
    guide = Factorized(
        sites.local, N, shared=MeanField(sites.shared, locs={"theta": torch.tensor([0.7])}, log_scale=-1.0)
    )
    kl = 0.5 * (0.7**2 + math.exp(-2) - 1 + 2)
    for size in (2, 5, N):
        plain = FitOptions(batch_size=size, capture="off")
        losses = []
        for options, weights in ((OPTIONS["recipe"], [1, 1, 1]), (OPTIONS["recipe"], [1, 1, 0]), (plain, [])):
            training = Training(model, guide, x, replace(options, batch_size=size))
            torch.manual_seed(0)
            inputs = training._inputs(torch.arange(size))
            given = [torch.tensor(weights, dtype=x.dtype)] if weights else []
            rows = training.variables.rows(torch.arange(size))
            losses.append(training.loss_and_gradients(*inputs[:2], *given, *rows)[0].item())
        assert losses[0] - losses[1] == pytest.approx(kl / N, rel=1e-10)
        assert losses[2] == pytest.approx(losses[0], rel=1e-12)


@pytest.mark.slow
def test_what_is_measured_of_new_points_is_theirs(float64, monkeypatch):
    """Test points lie far from those of training: their evidence, and the error of their predictions, are known."""
    monkeypatch.setattr(fitting, "FRESH_VISITS", (50, 100))
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    model = LinearGaussian(weight, torch.zeros(3), 0.5, num_data=N)
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(N, 3, generator=generator), 3 + torch.randn(N, 3, generator=generator)
    targets = [torch.randn(len(x), 3, generator=generator) for x in (train, test)]
    held = Held(targets[0], test, targets[1], particles=5, points=N, predictive_points=N, shown=range(3, 13))
    new_model = lambda: (model, latent_sites(model, train))  # noqa: E731
    options = FitOptions.recipe(batch_size=10, capture="off")
    problem = FitProblem(train, new_model, lambda _: options, 0, 60, (30,), depth=0, num_draws=20, held=held)

    def errors(guide):
        """Of a guide's means for training points, and for test points of its own or, where it has none, the best."""
        with torch.no_grad():
            means = [guide.locate(x, torch.arange(len(x)))[:, :2] for x in (train, test)]
        own = (not isinstance(guide, Factorized), model.posterior(test).mean)
        found = (means[0], means[1] if own[0] else own[1])
        return tuple(
            pytest.approx((mean @ weight.T - target).square().mean().item(), rel=rel)
            for mean, target, rel in zip(found, targets, (1e-9, 1e-9 if own[0] else 0.05), strict=True)
        )

    evidence = model.log_evidence(test).mean().item()
    assert evidence < model.log_evidence(train).mean().item() - 5
    for fit in (AMORTIZED, OWN):
        fitted = start_fit(problem, fit)
        ladder = climb(problem, fitted)
        rung = next(ladder)[0].measures
        expected = errors(fitted.guide)
        assert rung["mse_train"].value == expected[0]
        if fit == OWN:
            assert "mse_test" not in rung  # fresh factors are fitted at the top alone
        else:
            assert rung["mse_test"].value == expected[1]
        assert not list(ladder)
        done = finish_fit(problem, fitted)
        found, expected = done.evaluation.measures, errors(fitted.guide)
        assert (found["final_mse_train"].value, found["final_mse_test"].value) == expected
        assert found["log_predictive"].value == pytest.approx(evidence, abs=0.1)
        assert found["test_log_likelihood"].value - found["test_kl"].value < evidence + 0.1
        assert torch.equal(done.examples["original"], targets[1][3:13])
        assert done.examples["reconstruction"].shape == (10, 3)
