"""A module is tried once for each form of a call; nothing that could move its rows goes unnoticed."""

import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from amortized_bayes.calls import bind_points, trials

X = torch.linspace(-1.0, 1.0, 12)


class Model(nn.Module):
    """Observes its rows, or data of its own."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.own: Tensor | None = None

    def forward(self, x, noise=1.0):
        data = x if self.own is None else self.own[: len(x)]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z + self.shift, noise), obs=data)


def plain(x, noise=1.0):
    Model()(x, noise)


@pytest.fixture
def trial_count(monkeypatch):
    """How often a call was tried."""
    tried = []
    monkeypatch.setattr("amortized_bayes.calls.binding.try_call", lambda *args: tried.append(1) or TRY(*args))
    return lambda: len(tried)


TRY = trials.try_call


def bind(model, *args, **kwargs):
    return bind_points(model, args, kwargs)


def test_a_module_is_tried_once_and_answers_alike(trial_count):
    model = Model()
    first = bind(model, X)
    again = bind(model, X + 1)
    assert trial_count() == 1
    assert again.plate == first.plate
    assert again.data.is_data == first.data.is_data
    assert torch.equal(again.data.rows.tensors[0], X + 1)


def test_parameters_may_change(trial_count):
    model = Model()
    bind(model, X)
    with torch.no_grad():
        model.shift.add_(1)
    bind(model, X)
    assert trial_count() == 1


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X[:5],), {}),
        ((X.double(),), {}),
        ((X, 2.0), {}),
        ((X,), {"noise": 2.0}),
        ((X, torch.ones(12)), {}),
    ],
)
def test_other_forms_are_tried_again(trial_count, args, kwargs):
    model = Model()
    bind(model, X)
    bind(model, *args, **kwargs)
    assert trial_count() >= 2


def test_another_mode_or_attribute_is_tried_again(trial_count):
    model = Model()
    bind(model, X)
    bind(model.eval(), X)
    assert trial_count() == 2
    model.own = X.flip(0)
    with pytest.raises(ValueError, match="does not follow its rows"):
        bind(model, X)


def test_numbers_in_tensors_are_told_apart(trial_count):
    model = Model()
    bind(model, X, torch.tensor(1.0))
    bind(model, X, torch.tensor(1.0))
    assert trial_count() == 1
    bind(model, X, torch.tensor(2.0))
    assert trial_count() == 2


def test_functions_are_tried_each_time(trial_count):
    bind(plain, X)
    bind(plain, X)
    assert trial_count() == 2


def test_refusals_are_not_remembered():
    model = Model()
    model.own = X.flip(0)
    for _ in range(2):
        with pytest.raises(ValueError, match="does not follow its rows"):
            bind(model, X)


def test_nan_is_refused_in_a_known_call():
    model = Model()
    bind(model, X)
    with pytest.raises(ValueError, match="finite data"):
        bind(model, torch.where(X > 0, torch.nan, X))


def test_names_count_not_what_holds_them(trial_count):
    model = Model()
    bind_points(model, (X,), {}, per_point=["x"])
    bind_points(model, (X,), {}, per_point=("x",))
    assert trial_count() == 1
    bind_points(model, (X,), {}, per_point=iter(["x"]))
    assert trial_count() == 1


def test_models_are_not_kept_alive():
    model = Model()
    bind(model, X)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
