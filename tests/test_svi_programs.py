"""Training of any Pyro program, captured or not."""

import dataclasses
import logging
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import FAMILIES, OPTIONS, N, P, parts_of, same_bits, steps, training
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from amortized_bayes.inference.fit import fit
from amortized_bayes.inference.options import FitOptions, WarmUp, linear
from amortized_bayes.inference.svi import Training
from amortized_bayes.models import DeepGenerative


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
@pytest.mark.slow_cases("off")
def test_functions_with_params_are_fitted(float64, capture):
    x = 3.0 + torch.randn(40, 2) * 2
    options = FitOptions(20, learning_rate=0.03, shared_learning_rate=0.03, capture=capture)
    fit(param_model, param_guide, x, 500, options, plate="points", pass_index=False)
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


@pytest.mark.slow
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
    rates = {"learning_rate": 3e-2, "shared_scale_learning_rate": 1e-3, "adam_beta2": 0.99, "schedule": linear}
    for capture in ("off", "inductor"):
        run = training(family, capture=capture, kl_weight=WarmUp(0.5), **rates)
        steps(run, 10)
        found.append(parts_of(run))
    assert run.captured.backend == "inductor"
    assert run.captured.into
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.usefixtures("captured")
def test_the_rest_of_a_run_is_carried_out_as_its_beginning_was(monkeypatch):
    """What is compiled rounds otherwise than what is replayed: the length of the whole run decides."""
    asked = []
    monkeypatch.setattr("amortized_bayes.inference.svi.captured_step", lambda *given: asked.append(given[4]))
    run = training("factorized", capture="auto", row_steps=1)
    steps(run, 30)
    state = run.state()
    rest = training("factorized", capture="auto", row_steps=1)
    rest.load_state(state)
    for _ in rest.run(10, begin=0):
        pass
    assert asked == [30, 40]


@pytest.mark.slow
def test_few_steps_are_not_captured_and_those_after_many_are(monkeypatch):
    monkeypatch.setattr("amortized_bayes.capture.CAPTURED_FROM", 8)
    run = training("factorized", capture="auto", row_steps=1)
    for num_steps, captured in ((7, False), (1, False), (1, True)):
        steps(run, num_steps)
        assert (run.captured is not None) == captured
    rest = training("factorized", capture="auto", row_steps=1)
    rest.load_state(run.state())
    steps(rest, 1)
    assert rest.captured is not None
    whole = training("factorized", capture="auto", row_steps=1)
    steps(whole, 8)
    assert whole.captured is not None


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_compiled_run_goes_on_bit_for_bit_from_its_state(family):
    run, other = (training(family, capture="inductor") for _ in range(2))
    other.prepare(1)  # the state then has to reach the tensors that the compiled step holds
    steps(run, 3)
    state = {name: tensor.clone() for name, tensor in run.state().items()}
    steps(run, 4)
    other.load_state(state)
    steps(other, 4)
    assert same_bits(parts_of(run), parts_of(other))


@pytest.mark.parametrize("rows", ["indexed", "event_dim"])
def test_a_table_of_rows_meets_its_own_points_where_programs_take_no_places(float64, rows):
    x = torch.linspace(-2, 2, 12)[:, None]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 0.5).to_event(1), obs=x)

    def guide(x):
        if rows == "indexed":
            table = pyro.param("table", torch.zeros(12, dtype=torch.float64))
            with pyro.plate("data", len(x)) as places:
                pyro.sample("z", dist.Normal(table[places], math.sqrt(0.2)))
        else:
            with pyro.plate("data", len(x)):
                loc = pyro.param("table", torch.zeros(12, dtype=torch.float64), event_dim=0)
                pyro.sample("z", dist.Normal(loc, math.sqrt(0.2)))

    options = FitOptions(batch_size=4, learning_rate=0.05, shared_learning_rate=0.05)
    fit(model, guide, x, 600, options, pass_index=False, progress=False)
    torch.testing.assert_close(pyro.param("table"), x[:, 0] / 1.25, rtol=0, atol=0.25)  # another's row is 0.3 to 3 away
