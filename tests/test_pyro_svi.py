"""Pyro's own SVI trains our guides and models, and leaves nothing behind that other fits would find."""

import copy
import io

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import FAMILIES, OPTIONS, N, P, parts_of, same_bits, steps, training
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import constraints

import amortized_bayes as ab
from amortized_bayes.types import LatentSite

FLOW = ab.FlowSettings("planar", num_flows=2)


def svi(model, guide, rate=0.01, loss=Trace_ELBO):
    return SVI(model, guide, pyro.optim.Adam({"lr": rate}), loss())


def steps_of(run, *args):
    """Two steps: the first leaves the layers before a last layer that starts at zero where they are."""
    for _ in range(2):
        run.step(*args)


def moved(module, before):
    """Names of the parameters that are not what they were."""
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


@pytest.fixture
def problem():
    """A model with a decoder to fit and a learned scale, data, and what guides are built from."""
    model = ab.DeepGenerative(P, 2, [5], N, likelihood="gaussian-learned", bayesian=False)
    x = torch.randn(N, P)
    return model, x, ab.latent_sites(model, x).local


@pytest.mark.parametrize("family", [*FAMILIES, "flow"])
def test_every_parameter_of_guide_and_model_moves(problem, family):
    model, x, sites = problem
    guide = ab.FlowGuide(sites, N, P, FLOW, width=3) if family == "flow" else FAMILIES[family](sites, None)
    before = [copy.deepcopy(module.state_dict()) for module in (model, guide)]
    steps_of(svi(model, guide), x, torch.arange(N))
    for module, start in zip((model, guide), before, strict=True):
        assert moved(module, start) == dict(module.named_parameters()).keys()


def test_the_guide_of_shared_latents_moves():
    fit = training(bayesian=True)
    before = copy.deepcopy(fit.guide.state_dict())
    steps_of(svi(fit.model, fit.guide), fit.data, torch.arange(N))
    assert moved(fit.guide, before) == dict(fit.guide.named_parameters()).keys()
    names = set(pyro.get_param_store())
    assert "Amortized.encoder.1.0.weight" in names
    assert len(names) == len([*fit.guide.parameters(), *fit.model.parameters()])  # each once


@pytest.mark.parametrize(("family", "loss"), [("amortized", TraceMeanField_ELBO), ("factorized", Trace_ELBO)])
@pytest.mark.slow_cases("amortized-TraceMeanField_ELBO")
def test_the_optimum_of_the_linear_gaussian_model_is_reached(linear_problem, family, loss):
    model, x, _ = linear_problem
    sites = ab.latent_sites(model, x).local
    guide = ab.Amortized(sites, 12, 5, depth=0) if family == "amortized" else ab.Factorized(sites, 12)
    rates = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.975}
    falling = pyro.optim.ExponentialLR(rates)
    run = SVI(model, guide, falling, loss())
    with pyro.validation_enabled(False):
        for _ in range(250):
            run.step(x)
            falling.step()
    behind = model.best_factorized_elbo(x) - ab.elbo(model, guide, x, num_draws=400).value
    assert -0.02 < behind.mean() < 0.1  # at the start 90 nats, constant VI 4


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_loss_of_pyro_moves_parameters_too(problem):
    _, x, sites = problem
    model = ab.LinearGaussian(torch.randn(P, 2), torch.zeros(P), 1.0)
    guide = FAMILIES["constant"](sites, None)
    before = copy.deepcopy(guide.state_dict())
    steps_of(svi(model, guide, loss=JitTrace_ELBO), x)
    assert moved(guide, before)


def test_a_frozen_parameter_stays(problem):
    model, x, sites = problem
    guide = FAMILIES["amortized"](sites, None)
    guide.encoder[1][0].weight.requires_grad_(False)
    before = copy.deepcopy(guide.state_dict())
    steps_of(svi(model, guide), x)
    assert dict(guide.named_parameters()).keys() - moved(guide, before) == {"encoder.1.0.weight"}


def test_a_parameter_that_is_not_contiguous_moves(problem):
    model, x, sites = problem
    encoder = nn.Linear(P, 4)
    encoder.weight = nn.Parameter(torch.randn(P, 4).T)
    guide = ab.Amortized(sites, N, P, encoder=encoder)
    before = copy.deepcopy(guide.state_dict())
    steps_of(svi(model, guide), x)
    assert "encoder.weight" in moved(guide, before)


def test_a_second_guide_of_the_same_class_is_trained_and_the_first_stays(problem):
    model, x, sites = problem
    guides = [FAMILIES["amortized"](sites, None) for _ in range(2)]
    before = [copy.deepcopy(guide.state_dict()) for guide in guides]
    for guide in guides:
        steps_of(svi(model, guide), x)
    assert moved(guides[1], before[1]) == before[1].keys()
    assert pyro.get_param_store()._params["Amortized.encoder.1.0.bias"] is guides[1].encoder[1][0].bias
    after = copy.deepcopy(guides[0].state_dict())
    steps_of(svi(model, guides[1]), x)
    assert not moved(guides[0], after)
    steps_of(svi(model, guides[0]), x)  # and takes its names back
    assert moved(guides[0], after) == after.keys()


def test_two_guides_of_one_class_in_one_program_both_move():
    x = torch.randn(N, 2)
    names = ("first", "second")
    parts = [
        ab.Constant([LatentSite(n, torch.Size([2]), constraints.real_vector)], N, plate=f"{n} plate") for n in names
    ]

    def model(x):
        for name in names:
            with pyro.plate(f"{name} plate", N):
                z = pyro.sample(name, dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample(f"{name} x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        for part in parts:
            part(x)

    before = [copy.deepcopy(part.state_dict()) for part in parts]
    steps_of(svi(model, guide), x)
    assert all(moved(part, start) for part, start in zip(parts, before, strict=True))


def test_parameters_registered_by_their_user_keep_their_names(problem):
    model, x, sites = problem
    guide = FAMILIES["constant"](sites, None)

    def own(x):
        pyro.module("mine", guide)
        guide(x)

    before = copy.deepcopy(guide.state_dict())
    steps_of(svi(model, own), x)
    assert moved(guide, before)
    assert "mine$$$parameters_of_all" in pyro.get_param_store()
    assert "Constant.parameters_of_all" not in pyro.get_param_store()


def test_loaded_values_are_not_passed_over_in_silence(problem):
    model, x, sites = problem
    pyro.param("Constant.parameters_of_all", torch.ones(4))
    with pytest.raises(ValueError, match=r"other values for 'Constant.parameters_of_all'.*clear_param_store"):
        steps_of(svi(model, FAMILIES["constant"](sites, None)), x)


def test_a_trained_guide_can_be_saved_and_copied(problem):
    model, x, sites = problem
    guide = FAMILIES["amortized"](sites, None)
    steps_of(svi(model, guide), x)
    torch.save(guide.encoder, io.BytesIO())
    assert not moved(copy.deepcopy(guide), guide.state_dict())


def test_only_svi_enters_parameters_into_the_param_store(problem):
    model, x, sites = problem
    guide = FAMILIES["amortized"](sites, None)
    ab.elbo(model, guide, x)
    steps(ab.Training(model, guide, x, OPTIONS), 2)
    assert not pyro.get_param_store()


def test_a_training_does_not_find_the_parameters_of_other_runs():
    alone = training()
    steps(alone, 3)
    other = training("factorized")
    svi(other.model, other.guide).step(other.data, torch.arange(N))
    pyro.param("of another program", torch.zeros(3))
    beside = training()
    steps(beside, 3)
    assert same_bits(parts_of(alone), parts_of(beside))
    assert len(beside.variables.parameters) == len([*beside.guide.parameters(), *beside.model.parameters()])
