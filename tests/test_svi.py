"""Training: reproducible, captured or not, taken up again, and right at its optimum."""

import copy
import dataclasses
import logging
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from amortized_bayes.evaluation.bounds import elbo
from amortized_bayes.guides import Amortized, Constant, Factorized, MeanField
from amortized_bayes.inference.options import Divergence, FitOptions
from amortized_bayes.inference.streams import Batches, Stream
from amortized_bayes.inference.svi import Training, fit
from amortized_bayes.models import DeepGenerative, LinearGaussian
from amortized_bayes.sites import latent_sites
from amortized_bayes.weights import log_weights

N, P = 20, 4
OPTIONS = FitOptions(batch_size=6, capture="off")

FAMILIES = {
    "constant": lambda sites, shared: Constant(sites, N, shared=shared),
    "factorized": lambda sites, shared: Factorized(sites, N, shared=shared),
    "amortized": lambda sites, shared: Amortized(sites, N, P, width=3, shared=shared),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def training(family="amortized", seed=0, *, bayesian=True, data=None, **options):
    """A new training of a small deep generative model; every call starts from the same parameters."""
    torch.manual_seed(1)
    data = torch.bernoulli(torch.full((N, P), 0.5)) if data is None else data
    model = DeepGenerative(P, 2, [5], N, bayesian=bayesian, likelihood="gaussian-learned")
    sites = latent_sites(model, data[:2].to(torch.get_default_dtype()))
    shared = MeanField(sites.shared, locs=sites.shared_draw) if bayesian else None
    guide = FAMILIES[family](sites.local, shared)
    return Training(model, guide, data, dataclasses.replace(OPTIONS, **options) if options else OPTIONS, seed)


def parts_of(run):
    """All that a run leaves behind, but for its clock."""
    return {name: tensor.clone() for name, tensor in run.state().items() if name != "seconds"}


def same_bits(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def steps(run, count, **options):
    return list(run.run(count, **options))


# Reproducible ---------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("capture", ["off", "replay"])
def test_two_runs_of_one_seed_are_equal_bit_for_bit(family, capture):
    runs = [training(family, seed, capture=capture) for seed in (3, 3, 4)]
    elbos = []
    for number, run in enumerate(runs):
        torch.manual_seed(number)  # what the outside draws does not matter
        elbos.append([record.elbo for record in steps(run, 9, report_at=range(10))])
    assert elbos[0] == elbos[1]
    assert elbos[0] != elbos[2]
    assert same_bits(parts_of(runs[0]), parts_of(runs[1]))
    assert not same_bits(parts_of(runs[0]), parts_of(runs[2]))


@every_family
@pytest.mark.parametrize("local_reparametrization", [False, True])
def test_captured_and_uncaptured_runs_agree(float64, family, local_reparametrization):
    found = []
    for capture in ("off", "replay"):
        run = training(family, capture=capture, local_reparametrization=local_reparametrization)
        records = steps(run, 15, report_at=range(16))
        assert (run.captured is not None) == (capture == "replay")
        found.append((torch.tensor([r.elbo for r in records]), parts_of(run)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-10)
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(tensor, found[1][1][name], rtol=1e-10, atol=1e-10, msg=name)


@every_family
def test_reports_do_not_change_the_run(family):
    quiet, loud = training(family), training(family)
    steps(quiet, 12)
    outside = []
    for _ in loud.run(12, report_at=[1, 2, 5, 11]):
        outside.append(torch.rand(()).item())  # draws between records come from the outside's stream
        with loud.averaged():
            log_weights(loud.model, loud.guide, loud.data, torch.arange(N))
    assert same_bits(parts_of(quiet), parts_of(loud))
    assert len(set(outside)) == 5


def test_the_outside_stream_goes_on_as_if_there_were_no_run():
    run = training()
    torch.manual_seed(8)
    expected = torch.rand(3).tolist()
    torch.manual_seed(8)
    found = []
    for _ in run.run(6, report_at=[2, 4]):
        found.append(torch.rand(()).item())
    assert found == expected


@every_family
@pytest.mark.parametrize("capture", ["off", "replay"])
def test_stopping_and_going_on_is_as_not_stopping(family, capture):
    whole = training(family, capture=capture)
    elbos = [record.elbo for record in steps(whole, 14, report_at=range(15))]

    first = training(family, capture=capture)
    found = [record.elbo for record in steps(first, 5, report_at=range(15))]
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    second = training(family, capture=capture)
    with torch.no_grad():
        for parameter in second.variables.parameters:
            parameter.normal_()
    second.load_state(saved)
    assert (second.steps, second.seconds) == (5, first.seconds)
    found += [record.elbo for record in steps(second, 9, report_at=range(15))]

    assert found == elbos
    assert same_bits(parts_of(whole), parts_of(second))


def test_a_run_in_pieces_is_the_run_in_one():
    whole, pieces = training(), training()
    steps(whole, 14)
    for count in (1, 6, 7):
        steps(pieces, count)
    assert same_bits(parts_of(whole), parts_of(pieces))


@every_family
def test_state_taken_between_records_goes_on(family):
    whole, half = training(family), training(family)
    steps(whole, 12)
    for record in half.run(12, report_at=[5]):
        if record.step == 5:
            saved = {name: tensor.clone() for name, tensor in half.state().items()}
            break
    other = training(family)
    other.load_state(saved)
    steps(other, 7)
    assert same_bits(parts_of(whole), parts_of(other))


def test_state_before_the_first_step_knows_no_first_loss():
    fresh = training()
    other = training()
    other.load_state({name: tensor.clone() for name, tensor in fresh.state().items()})
    assert other.first_loss is None
    steps(other, 2)
    assert math.isfinite(other.first_loss)


def test_state_of_another_guide_is_refused():
    with pytest.raises(ValueError, match="expected a state with tensors"):
        training("amortized").load_state(training("factorized").state())


# Reports, schedule, averages ------------------------------------------------------------------------------------------


def test_records_at_the_marks_and_at_the_last_step():
    run = training()
    records = steps(run, 10, report_at=[3, 7, 99])
    assert [r.step for r in records] == [3, 7, 10]
    assert 0 < records[0].seconds < records[1].seconds < records[2].seconds
    assert [r.step for r in steps(run, 5, report_at=[3, 12])] == [12, 15]


def test_elbo_of_a_record_is_that_of_its_batch(float64):
    run = training(bayesian=False)
    before = copy.deepcopy(run)
    (record,) = steps(run, 1)
    with before.stream:
        loss = before.loss_and_gradients(*before._inputs(before.batches[0]))[0]
    assert record.elbo == -loss.item()


def test_time_between_records_is_not_counted():
    run = training()
    for _ in run.run(3, report_at=[1, 2]):
        torch.randn(1000, 1000) @ torch.randn(1000, 1000) @ torch.randn(1000, 1000)
    generous = 0.5
    assert run.seconds < generous


@every_family
def test_schedule_multiplies_the_rates(family):
    still, moving = training(family, schedule=lambda done: 0.0), training(family)
    seen = []
    recorded = training(family, schedule=lambda done: seen.append(done) or 1.0)
    start = [p.clone() for p in (*still.variables.parameters, *(a.table.weight for a in still.variables.row_adams))]
    for run in (still, moving, recorded):
        steps(run, 4)
    assert all(
        torch.equal(p, q)
        for p, q in zip(
            start, (*still.variables.parameters, *(a.table.weight for a in still.variables.row_adams)), strict=True
        )
    )
    assert seen == [0.0, 0.25, 0.5, 0.75]
    assert same_bits(parts_of(recorded), parts_of(moving))


@every_family
def test_averages_are_put_in_and_taken_out(family):
    run = training(family)
    steps(run, 8)
    tensors = [*run.variables.parameters, *(a.table.weight for a in run.variables.row_adams)]
    averages = [*run.variables.average.averaged, *(a.averaged for a in run.variables.row_adams)]
    before = [t.detach().clone() for t in tensors]
    with run.averaged():
        assert all(torch.equal(t, a) for t, a in zip(tensors, averages, strict=True))
        assert not all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    with pytest.raises(KeyboardInterrupt), run.averaged():
        raise KeyboardInterrupt
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    run.settle()
    assert all(torch.equal(t, a) for t, a in zip(tensors, averages, strict=True))


def test_fit_leaves_the_averages_in():
    run, other = training(), training()
    records = list(fit(run.model, run.guide, run.data, 8, OPTIONS, report_at=[4]))
    steps(other, 8)
    other.settle()
    assert [r.step for r in records] == [4, 8]
    for a, b in zip(run.variables.parameters, other.variables.parameters, strict=True):
        assert torch.equal(a, b)


# What moves and what does not -----------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("capture", ["off", "replay"])
def test_frozen_parameters_do_not_move_a_bit(family, capture):
    run = training(family, bayesian=True)
    for parameter in run.guide.shared.parameters():
        parameter.requires_grad_(False)
    frozen = [p.clone() for p in run.guide.shared.parameters()]
    run = Training(run.model, run.guide, run.data, dataclasses.replace(OPTIONS, capture=capture))
    steps(run, 5)
    run.settle()
    assert all(torch.equal(a, b) for a, b in zip(frozen, run.guide.shared.parameters(), strict=True))


@pytest.mark.parametrize("family", ["factorized", "amortized"])
def test_a_frozen_guide_stays_while_the_model_is_fitted(family):
    run = training(family)
    for parameter in run.guide.parameters():
        parameter.requires_grad_(False)
    frozen = copy.deepcopy(run.guide.state_dict())
    run = Training(run.model, run.guide, run.data, OPTIONS)
    scale = run.model.log_scale.clone()
    steps(run, 5)
    run.settle()
    assert all(torch.equal(a, b) for a, b in zip(frozen.values(), run.guide.state_dict().values(), strict=True))
    assert not torch.equal(scale, run.model.log_scale)


def test_rates_of_local_and_shared_parameters():
    run = training("amortized", learning_rate=0.0, shared_learning_rate=0.1)
    encoder = copy.deepcopy(run.guide.encoder.state_dict())
    shared = copy.deepcopy(run.guide.shared.state_dict())
    scale = run.model.log_scale.clone()
    steps(run, 3)
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.values(), run.guide.encoder.state_dict().values(), strict=True)
    )
    assert not any(
        torch.equal(a, b) for a, b in zip(shared.values(), run.guide.shared.state_dict().values(), strict=True)
    )
    assert not torch.equal(scale, run.model.log_scale)


def test_a_batch_moves_its_own_rows_alone():
    run = training("factorized")
    start = run.guide.table.weight.detach().clone()
    steps(run, 1)
    moved = (run.guide.table.weight != start).all(1)
    assert set(moved.nonzero()[:, 0].tolist()) == set(run.batches[0].tolist())
    assert torch.equal(run.guide.table.weight[~moved], start[~moved])


def test_integer_data_are_converted_batch_by_batch():
    data = torch.bernoulli(torch.full((N, P), 0.5))
    found = []
    for each in (data, data.to(torch.uint8)):
        run = training(data=each)
        steps(run, 4)
        found.append(parts_of(run))
    assert same_bits(*found)


def test_size_counts_local_parameters():
    assert training("factorized").size()[0] == N * 4
    assert training("constant").size()[0] == 4
    assert training("amortized").size()[0] == (P + 1) * 3 + 4 * 4


# Any program ----------------------------------------------------------------------------------------------------------


def param_model(x):
    shift = pyro.param("shift", torch.zeros(2))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("points", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + shift, scale).to_event(1), obs=x)


def param_guide(x):
    slope = pyro.param("slope", torch.zeros(2))
    with pyro.plate("points", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.5).to_event(1))


@pytest.mark.parametrize("capture", ["off", "replay"])
def test_functions_with_params_are_fitted(float64, capture):
    x = 3.0 + torch.randn(40, 2) * 2
    options = FitOptions(20, learning_rate=0.03, shared_learning_rate=0.03, capture=capture)
    list(fit(param_model, param_guide, x, 500, options, plate="points", pass_index=False))
    assert (pyro.param("shift") - x.mean(0)).abs().max() < 1.0
    assert pyro.param("slope").abs().max() > 0.05
    assert pyro.param("scale").min() > 0


class ParamModule(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.ones(2), constraint=constraints.positive)

    def forward(self, x):
        with pyro.plate("points", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, self.scale).to_event(1), obs=x)


def test_constrained_parameters_of_a_pyro_module_are_fitted_once(float64):
    model, x = ParamModule(), torch.randn(40, 2) * 4
    options = FitOptions(20, shared_learning_rate=0.05, capture="off")
    run = Training(model, param_guide, x, options, plate="points", pass_index=False)
    assert len(run.variables.parameters) == 2
    steps(run, 200)
    assert model.scale.min() > 2


def test_a_step_that_cannot_be_captured_says_so_once_and_gives_the_same_numbers(caplog):
    class Branching(DeepGenerative):
        def forward(self, x, index=None):
            return super().forward(x if x.sum() > -1 else -x, index)

    found = []
    for capture in ("off", "replay"):
        plain = training()
        model = Branching(P, 2, [5], N, likelihood="gaussian-learned")
        run = Training(model, plain.guide, plain.data, dataclasses.replace(OPTIONS, capture=capture))
        with caplog.at_level(logging.WARNING):
            steps(run, 3)
            steps(run, 3)
        assert run.captured is None
        found.append(parts_of(run))
    assert same_bits(*found)
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("amortized_bayes")]
    assert len(warnings) == 1
    assert warnings[0].startswith("the step runs uncaptured, which is slower and gives the same numbers")


def test_batch_norm_runs_the_same_captured_or_not(float64):
    found = []
    for capture in ("off", "replay"):
        run = training()
        run.guide.encoder = nn.Sequential(nn.BatchNorm1d(P), run.guide.encoder)
        run = Training(run.model, run.guide, run.data, dataclasses.replace(OPTIONS, capture=capture))
        steps(run, 6)
        assert (run.captured is not None) == (capture == "replay")
        found.append(parts_of(run))
    assert any(name.endswith("running_mean") for name in found[0])
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_run_agrees(float64, family):
    found = []
    for capture in ("off", "inductor"):
        run = training(family, capture=capture)
        steps(run, 10)
        found.append(parts_of(run))
    assert run.captured.backend == "inductor"
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-9, atol=1e-9, msg=name)


# Errors ---------------------------------------------------------------------------------------------------------------


class Poisoned(LinearGaussian):
    """Its likelihood becomes ``poison`` once a batch holds point ``bad``."""

    def __init__(self, model, bad, poison):
        super().__init__(model.weight, model.bias, model.scale, N)
        self.bad, self.poison = bad, poison

    def forward(self, x, index=None):
        super().forward(x, index)
        pyro.factor("poison", torch.where((index == self.bad).any(), torch.tensor(self.poison), torch.tensor(0.0)))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, -1e9])
@pytest.mark.parametrize("capture", ["off", "replay"])
def test_divergence_names_its_step(poison, capture):
    x = torch.randn(N, P)
    plain = LinearGaussian(torch.randn(P, 2), torch.zeros(P), 1.0)
    batches = Batches(N, 6, 0, x.device)
    bad = batches[3 * 3 + 2]  # the third batch of the fourth epoch; its points may come earlier
    first = [next(s for s in range(99) if n in batches[s].tolist()) + 1 for n in bad.tolist()]
    step, point = max(zip(first, bad.tolist(), strict=True))
    model = Poisoned(plain, point, poison)
    guide = Constant(latent_sites(plain, x).local, N)
    with pytest.raises(Divergence, match=f"at step {step}$") as caught:
        list(fit(model, guide, x, 30, dataclasses.replace(OPTIONS, capture=capture)))
    assert caught.value.step == step > 1
    assert not abs(caught.value.value) < 1e6


def test_divergence_leaves_the_outside_as_it_was():
    x = torch.randn(N, P)
    plain = LinearGaussian(torch.randn(P, 2), torch.zeros(P), 1.0)
    run = Training(Poisoned(plain, 5, math.nan), Constant(latent_sites(plain, x).local, N), x, OPTIONS)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(Divergence):
        steps(run, 30)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [0, N + 1])
def test_batch_size_beyond_the_data(size):
    with pytest.raises(ValueError, match=f"batch size of 1 to {N}"):
        training(batch_size=size)


def test_nothing_to_fit():
    x = torch.randn(N, P)
    model = LinearGaussian(torch.randn(P, 2), torch.zeros(P), 1.0)
    guide = Constant(latent_sites(model, x).local, N)
    guide.parameters_of_all.requires_grad_(False)
    with pytest.raises(ValueError, match="expected a parameter to fit"):
        Training(model, guide, x, OPTIONS)


def test_validation_is_back_after_a_run(unchanged_switches):
    with unchanged_switches():
        steps(training(), 2)


# Streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(20, 6), (20, 20), (7, 1), (8, 5)])
def test_batches_of_an_epoch_are_distinct_points(count, size):
    batches = Batches(count, size, 3, torch.device("cpu"))
    assert batches.per_epoch == count // size
    epochs = []
    for epoch in range(3):
        points = torch.cat([batches[epoch * batches.per_epoch + i] for i in range(batches.per_epoch)])
        assert len(set(points.tolist())) == batches.per_epoch * size
        epochs.append(points.tolist())
    assert epochs[0] != epochs[1]
    assert torch.equal(batches[0], Batches(count, size, 3, torch.device("cpu"))[0])  # in any order


def test_every_point_is_visited_equally_often():
    batches = Batches(10, 3, 0, torch.device("cpu"))
    visits = torch.bincount(torch.cat([batches[s] for s in range(3000)]), minlength=10)
    expected = 3000 * 3 / 10
    assert (visits - expected).abs().max() < 5 * math.sqrt(1000 * 0.9 * 0.1)


def test_stream_keeps_its_place_and_gives_back_the_outside():
    torch.manual_seed(2)
    whole, parts = Stream(7, torch.zeros(1)), Stream(7, torch.zeros(1))
    with whole:
        expected = torch.rand(4).tolist()
    outside = torch.rand(2).tolist()
    torch.manual_seed(2)
    with parts:
        found = [torch.rand(()).item()]
        with parts.paused():
            seen = [torch.rand(()).item()]
        found.append(torch.rand(()).item())
    other = Stream(8, torch.zeros(1))
    other.load_state(parts.state())
    seen.append(torch.rand(()).item())
    with other:
        found += torch.rand(2).tolist()
    assert found == expected
    assert seen == outside


# Optima on the linear-Gaussian model ----------------------------------------------------------------------------------


def fitted_elbo(problem, family, num_steps=1500):
    """ELBO a point of a family fitted by full batches, evaluated in closed form."""
    model, x, _ = problem
    sites = latent_sites(model, x).local
    guide = {
        "constant": lambda: Constant(sites, 12),
        "factorized": lambda: Factorized(sites, 12),
        "amortized": lambda: Amortized(sites, 12, 5, depth=0),
    }[family]()
    options = FitOptions(12, learning_rate=0.02, row_learning_rate=0.02, schedule=lambda done: 1 - done)
    list(fit(model, guide, x, num_steps, options))
    with torch.no_grad():
        loc, log_scale = guide.locate(x, torch.arange(12)).chunk(2, -1)
        squares = (x - loc @ model.weight.T - model.bias).square().sum(-1)
        squares = squares + (2 * log_scale).exp() @ model.weight.square().sum(0)
        normaliser = 5 * math.log(model.scale * math.sqrt(2 * math.pi))
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(-1)
        closed = -0.5 * squares / model.scale**2 - normaliser - kl
    estimate = elbo(model, guide, x, torch.arange(12), num_draws=200)
    assert ((estimate.value - closed) / estimate.standard_error).abs().max() < 4.5
    return closed.mean()


def test_families_reach_their_optima_and_a_linear_encoder_closes_the_gap(linear_problem):
    """The posterior mean is linear in x: the family gap of a linear encoder is 0, that of constant VI is not."""
    model, x, _ = linear_problem
    found = {family: fitted_elbo(linear_problem, family) for family in ("constant", "factorized", "amortized")}
    best, constant = model.best_factorized_elbo(x).mean(), model.best_constant_elbo(x).mean()
    for value, optimum in ((found["constant"], constant), (found["factorized"], best), (found["amortized"], best)):
        assert -1e-9 < optimum - value < 1e-2
    assert best - constant > 0.5


def test_validation_is_back_on_between_records():
    from pyro.poutine.util import is_validation_enabled

    model = LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
    x = torch.zeros(8, 3)
    guide = Amortized(latent_sites(model, x).local, num_data=8, observed=3, width=2)
    with pyro.validation_enabled(True):
        training = Training(model, guide, x, FitOptions(batch_size=4, capture="off"))
        assert all(is_validation_enabled() for _ in training.run(4, [1, 2]))
