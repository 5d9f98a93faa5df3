"""Wrong values of every kind for every option of every public call: one line of ours names it, before anything runs."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# (what is wrong here is wrong on purpose)

import inspect
import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortized_bayes as ab
from amortized_bayes.joint import Gaussian

HERE = Path(ab.__file__).parent
RESULTS = {"Amortizability", "Comparison", "Diagnosis", "FitResult", "LogWeights", "VAE", "Divergence"}
"""What calls give; nobody makes them."""
MAY_BE_0 = {
    *("seed", "depth", "quadrature_nodes", "average", "adam_beta2", "adam_eps", "tolerance", "restart_spread"),
    *("share", "log_scale", "learning_rate", "shared_learning_rate", "shared_scale_learning_rate", "row_learning_rate"),
    *("steps", "sum_up_to"),
}
MAY_BE_HUGE = {"seed", "num_data", "observed", "width", "latent_dim", "num_steps_done"}
"""What has no limit of its own: sizes are held against the machine's memory."""
MAY_BE_NEGATIVE = {"log_scale"}
X = torch.zeros(4, 3)
MODEL = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
SITES = ab.latent_sites(MODEL, X).local
GUIDE = ab.Constant(SITES, num_data=4)
Q = Gaussian(torch.zeros(4, 2), torch.ones(4, 2))
OF_MODEL = {"can_amortize", "compare", "latent_sites", "log_joint", "optimize_flow"}
OF_BOTH = {
    *("ais", "bdmc", "diagnose", "elbo", "fit", "fit_steps", "iwae", "log_predictive", "log_weights"),
    *("mean_prediction", "optimize_local", "refine"),
}
GIVEN = {
    "Amortized": {"sites": SITES, "num_data": 4, "observed": 3},
    "Constant": {"sites": SITES, "num_data": 4},
    "DeepGenerative": {"observed": 3, "latent_dim": 2, "hidden": [4], "num_data": 4},
    "Factorized": {"sites": SITES, "num_data": 4},
    "FlowGuide": {"sites": SITES, "num_data": 4, "observed": 3},
    "LinearGaussian": {"weight": torch.ones(3, 2), "bias": torch.zeros(3), "scale": 0.5},
    "MeanField": {"sites": []},
    "SemiAmortized": {"model": MODEL, "guide": GUIDE},
    "Training": {"model": MODEL, "guide": GUIDE, "data": X, "options": ab.FitOptions(batch_size=2)},
    **{name: {"num_steps": 2} for name in ("fit", "fit_steps")},
    "active_units": {"latent_means": torch.zeros(4, 2)},
    "load_dataset": {"name_or_path": "digits"},
    "mean_squared_error": {"prediction": X, "target": X},
    "psis_khat": {"log_weights": torch.zeros(4, 30)},
    "vae": {
        **{"encoder": torch.nn.Linear(3, 4), "decoder": torch.nn.Linear(2, 3), "likelihood": "gaussian"},
        **{"latent_dim": 2, "scale": 1.0, "encoder_gives": "log_variance"},
    },
}
"""What a call cannot do without."""


def plain(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))


def placed(name):
    """Arguments by place."""
    if name in OF_MODEL:
        return [MODEL, *([Q] if name == "optimize_flow" else []), X]
    return [MODEL, GUIDE, X] if name in OF_BOTH else [plain, X] if name in ("draw_shared", "per_point_guide") else []


def options(call):
    """Annotations of the options of a call."""
    target = call.__init__ if isinstance(call, type) and not is_dataclass(call) else call
    hints = get_type_hints(target, include_extras=True)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: hints[p.name] for p in inspect.signature(call).parameters.values() if p.kind not in kinds}


def parts(hint):
    """The types that a value may have."""
    if get_origin(hint) is Annotated:
        return parts(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [part for one in get_args(hint) for part in parts(one)]
    return [hint]


def wrong(name, hint):
    """Values that an option of these types must refuse."""
    if name == "per_point":
        return ["nothing", 99, 3.5, object()]
    kinds = parts(hint)
    numbers = {int, float} & set(kinds)
    found: list[Any] = [object()]
    if NoneType not in kinds:
        found.append(None)
    if numbers:
        found += ["3", math.nan, math.inf, -math.inf, torch.zeros(2)]
        found += [True] if bool not in kinds else []
        found += [-1] if name not in MAY_BE_NEGATIVE else []
        found += [0] if name not in MAY_BE_0 else []
    if int in kinds:
        found += [1.5] + ([10**18, 10**5000] if name not in MAY_BE_HUGE else [])
    if bool in kinds:
        found += [2, "yes"]
    if str in kinds and not any(get_origin(kind) in (Iterable, Callable) for kind in kinds):
        found += [3]
    for kind in kinds:
        if get_origin(kind) is Literal:
            choice = next(choice for choice in get_args(kind) if isinstance(choice, str))
            found += [choice[:-1] + "x", choice.upper(), 3, ""]
        if get_origin(kind) in (Sequence, tuple) and int in map(lambda h: (parts(h) or [None])[0], get_args(kind)):
            found += [[1.5], [-1, 2], ["a"], "12", [math.nan]] + ([[0]] if name not in MAY_BE_0 else [])
        if get_origin(kind) in (Mapping, Callable) or is_dataclass(kind):
            found += [3, [1]]
        if is_dataclass(kind):
            found += [{}, kind]
    return found


PUBLIC = sorted(set(ab.__all__) - RESULTS)
CASES = [
    pytest.param(name, option, wrong(option, hint), id=f"{name}-{option}")
    for name in PUBLIC
    for option, hint in options(getattr(ab, name)).items()
]


def call_with(name, option, value):
    given, by_place = {**GIVEN.get(name, {})}, placed(name)
    first = list(options(getattr(ab, name)))[: len(by_place)]
    if option in first and len(by_place) > first.index(option) and option in ("model", "guide", "start", "autoguide"):
        by_place[first.index(option)] = value
    else:
        given[option] = value
    call = getattr(ab, name)
    if name == "LocalGuide":

        class Own(ab.LocalGuide):
            def locate(self, x, index):
                return torch.zeros(len(x), 4)

        call, given = Own, {"sites": SITES, "num_data": 4, **given}
    elif name == "gaps":
        ones = ab.iwae(MODEL, GUIDE, X)
        given = {"elbo": ones, "elbo_star": ones, "iwae": ones, **given}
    made = call(*by_place, **given)
    return made(X) if name == "SemiAmortized" else made  # rows are looked for when there are arguments


def one_line_of_ours(error, *words):
    """Whether an error is a line of our own code, with these words in it."""
    last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    assert last.is_relative_to(HERE), f"raised in {last}: {error!r}"
    assert type(error) in (ValueError, TypeError), repr(error)
    text = str(error)
    assert "\n" not in text
    assert len(text) < 500, text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(("name", "option", "values"), CASES)
def test_wrong_values_are_one_line_that_names_their_option(name, option, values):
    for value in values:
        with pytest.raises(Exception) as refused:  # noqa: PT011 (whatever is raised is looked at)
            call_with(name, option, value)
        one_line_of_ours(refused.value, option, "got" if "expected" in str(refused.value) else "")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ab.Constant(SITES, 4, start=torch.full((4,), math.nan)), "expected start with finite values, got 4"),
        (lambda: ab.Constant(SITES, 4, start=torch.zeros(3)), r"start of shape (4,), got (3,)"),
        (lambda: ab.Factorized(SITES, 4, start=torch.full((4, 4), math.inf)), "expected start with finite values"),
        (lambda: ab.MeanField(SITES, locs={"y": torch.zeros(2)}), "expected locs of z, got 'y'"),
        (lambda: ab.MeanField(SITES, locs={"z": torch.full((2,), math.nan)}), "expected start with finite values"),
        (lambda: ab.Amortized(ab.latent_sites(MODEL, X), 4, 3), "expected sites as a list of LatentSite"),
        (lambda: ab.mean_squared_error(torch.zeros(3), torch.zeros(3)), "expected prediction of shape (B, ...)"),
        (lambda: ab.active_units(torch.zeros(3)), "expected latent_means of shape (N, D)"),
        (lambda: ab.active_units(torch.zeros(3, 2), torch.ones(2)), "expected scales of shape (3, 2), got (2,)"),
        (lambda: ab.psis_khat(torch.zeros(())), "expected at least 25 draws along the last dimension, got 0"),
        (lambda: ab.FlowSettings("realnpv"), "got 'realnpv'; did you mean 'realnvp'?"),
        (lambda: ab.elbo(MODEL, GUIDE, X.to_sparse()), "expected dense data, got a sparse tensor of shape (4, 3)"),
        (lambda: ab.elbo(MODEL, GUIDE, X.to(torch.complex64)), "expected real log densities, got complex ones at site"),
        (lambda: ab.fit(MODEL, GUIDE, X, 0), "expected num_steps of 1 or more, got 0"),
    ],
)
def test_wrong_shapes_and_starts_that_are_no_numbers_are_one_line(call, words):
    with pytest.raises(Exception) as refused:  # noqa: PT011 (whatever is raised is looked at)
        call()
    one_line_of_ours(refused.value, words)


NAMED = [(name, option) for name in PUBLIC for option in list(options(getattr(ab, name)))[-1:]]


@pytest.mark.parametrize(("name", "option"), NAMED)
def test_a_misspelt_name_gets_the_nearest(name, option):
    with pytest.raises(TypeError) as refused:
        call_with(name, option[:1] + option[2:] if len(option) > 3 else option + "s", 1)
    one_line_of_ours(refused.value, f"did you mean {option}=?")
