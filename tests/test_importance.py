"""Gradients of importance-weighted objectives against integrals, closed forms, and the plain gradient."""

import math

import pytest
import torch
from iwae_problems import START, Guide, Model, NoRepeats, X, integrals, posterior
from torch import Tensor

import amortized_bayes as ab
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.inference.svi import Training

N = 20_000
pytestmark = pytest.mark.usefixtures("float64")


def a_training(objective, num_particles, guide=Guide, num_data=N, **start):
    data = torch.full((num_data,), X)
    options = FitOptions(batch_size=num_data, objective=objective, num_particles=num_particles, capture="off")
    return Training(Model(num_data), guide(num_data, **start), data, options, pass_index=False)


def draws_of(objective, num_particles, guide=Guide, num_data=N, **start) -> tuple[float, dict[str, Tensor]]:
    """Bound of a batch, and N gradients of the expected bound with respect to each parameter."""
    run = a_training(objective, num_particles, guide, num_data, **start)
    torch.manual_seed(3)
    loss, *gradients = run.loss_and_gradients(run.data, torch.arange(num_data))
    names = {id(p): name for program in (run.model, run.guide) for name, p in program.named_parameters()}
    found = {names[id(p)]: -g * num_data for p, g in zip(run.variables.parameters, gradients, strict=True)}
    return -loss.item(), found


def plain_draws(num_particles, num_data=N):
    """The same of the plain gradient, by autograd through the bound."""
    model, guide, x = Model(num_data), Guide(num_data), torch.full((num_data,), X)
    torch.manual_seed(4)
    bound = ab.log_weights(model, guide, x, num_particles=num_particles).local[0].logsumexp(0).sum()
    parameters = dict([*model.named_parameters(), *guide.named_parameters()])
    return dict(zip(parameters, torch.autograd.grad(bound, [*parameters.values()]), strict=True))


def assert_mean(draws, expected):
    error = draws.std() / math.sqrt(len(draws))
    assert abs(draws.mean() - expected) < 3 * error, (draws.mean().item(), float(expected), error.item())


@pytest.mark.parametrize("guide", [Guide, NoRepeats])
@pytest.mark.parametrize(
    ("objective", "num_particles"), [("iwae", 1), ("iwae", 2), ("iwae", 3), ("rws", 2), ("rws", 3)]
)
def test_gradients_are_those_of_the_integrals(objective, num_particles, guide):
    bound, of_iwae, of_wake = integrals(num_particles)
    value, found = draws_of(objective, num_particles, guide)
    for name, expected in (of_iwae if objective == "iwae" else of_wake).items():
        assert_mean(found[name], expected)
    assert abs(value - bound) < 0.02  # 20,000 points of spread below 1


def test_one_particle_has_the_value_of_the_elbo_and_its_path_gradient():
    run, plain = a_training("iwae", 1, num_data=50), a_training("elbo", 1, num_data=50)
    plain.options = FitOptions(batch_size=50, analytic_kl=False)
    found = []
    for one in (run, plain):
        torch.manual_seed(5)
        found.append(one.loss_and_gradients(one.data, torch.arange(50)))
    assert found[0][0] == found[1][0]
    torch.manual_seed(5)
    noise = torch.randn(50)
    score = {"loc": noise / math.exp(START["log_scale"]), "log_scale": noise**2 - 1}
    for (name, _), path, total in zip(run.guide.named_parameters(), found[0][1:], found[1][1:], strict=False):
        torch.testing.assert_close(path * 50, total * 50 - score[name])


@pytest.mark.parametrize("num_particles", [2, 8, 64])
def test_the_guides_gradient_varies_less_than_the_plain_one(num_particles):
    _, found = draws_of("iwae", num_particles)
    plain = plain_draws(num_particles)
    for name in ("loc", "log_scale"):
        assert found[name].var() < 0.9 * plain[name].var()
        error = math.hypot(*((d.std() / math.sqrt(N)).item() for d in (found[name], plain[name])))
        assert abs(found[name].mean() - plain[name].mean()) < 3 * error
    torch.testing.assert_close(found["weight"].var(), plain["weight"].var(), rtol=0.1, atol=0)


def test_the_signal_does_not_drown_as_particles_grow():
    def ratio(draws):
        return (draws.mean().abs() / draws.std()).item()

    ours = [ratio(draws_of("iwae", count, num_data=5_000)[1]["loc"]) for count in (4, 16, 64)]
    plain = [ratio(plain_draws(count, 5_000)["loc"]) for count in (4, 16, 64)]
    assert ours[0] < ours[1] < ours[2]
    assert plain[0] > plain[1] > plain[2]


def test_at_the_exact_posterior_no_draw_has_a_gradient_of_iwae():
    loc, scale = posterior()
    _, found = draws_of("iwae", 5, num_data=100, loc=loc, log_scale=math.log(scale))
    for name in ("loc", "log_scale"):
        assert found[name].abs().max() < 1e-12


def test_the_wake_phase_goes_to_the_inclusive_divergence_and_vanishes_at_the_posterior():
    (mean, sd), (loc, scale) = posterior(), (START["loc"], math.exp(START["log_scale"]))
    exact = {"loc": (mean - loc) / scale**2, "log_scale": ((mean - loc) ** 2 + sd**2) / scale**2 - 1}
    _, few = draws_of("rws", 2)
    _, many = draws_of("rws", 2_000, num_data=500)
    for name, expected in exact.items():
        near = abs(many[name].mean() - expected)
        assert near < 3 * many[name].std() / math.sqrt(500) + 0.005  # its bias falls as 1/K
        assert near < 0.1 * abs(few[name].mean() - expected)
    _, at_posterior = draws_of("rws", 4, loc=mean, log_scale=math.log(sd))
    for name in exact:
        assert_mean(at_posterior[name], 0)
