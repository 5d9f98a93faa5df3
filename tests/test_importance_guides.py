"""Importance-weighted objectives on guides of other forms: against the plain gradient, captured, resumed, refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import every_family, parts_of, same_bits, steps, training
from pyro.distributions.transforms import ELUTransform, ExpTransform, Planar
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions.transforms import IndependentTransform

import amortized_bayes as ab
from amortized_bayes.capture import capture, compiler_available
from amortized_bayes.entrance import enter
from amortized_bayes.flows import FlowSettings
from amortized_bayes.inference.importance import _is_flow
from amortized_bayes.inference.options import FitOptions, WarmUp, linear
from amortized_bayes.inference.svi import Training
from amortized_bayes.weights import draw_weights

B, K = 200, 3
REPEATS = 200
IWAE = {"objective": "iwae", "num_particles": K}
RWS = {"objective": "rws", "num_particles": K, "bayesian": False}
both = pytest.mark.parametrize("objective", [IWAE, RWS], ids=["iwae", "rws"])


class Chain(nn.Module):
    """z_1, z_2 given z_1, x given both; with a weight that the guide has too, where it asks for that."""

    def __init__(self, shared=False):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))
        self.shared = shared

    def forward(self, x):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0)) if self.shared else 0.3
        with pyro.plate("data", len(x)):
            first = pyro.sample("first", dist.Normal(torch.zeros(len(x)), 1.0))
            second = pyro.sample("second", dist.LogNormal(self.weight * first, 0.5))
            pyro.sample("x", dist.Normal(second + theta * first, 0.6), obs=x)


class ChainGuide(nn.Module):
    """Each latent given those before it, with one parameter of the model's."""

    def __init__(self, model):
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([0.3, 0.4, -0.3, 0.2]))
        self.log_scales = nn.Parameter(torch.tensor([-0.3, -0.6, -1.0]))
        self.model = [model]

    def forward(self, x):
        a, b, c, d = self.slopes
        theta = pyro.sample("theta", dist.Normal(c, self.log_scales[2].exp())) if self.model[0].shared else 0.3
        with pyro.plate("data", len(x)):
            first = pyro.sample("first", dist.Normal(a * x + d * theta, self.log_scales[0].exp()))
            loc = b * torch.tanh(first) + 0.5 * self.model[0].weight * first + d * theta
            pyro.sample("second", dist.LogNormal(loc, self.log_scales[1].exp()))


def chain(shared=False):
    model = Chain(shared)
    return model, ChainGuide(model), torch.linspace(-1, 2, B)


def flow(family):
    torch.manual_seed(2)
    model = ab.LinearGaussian(torch.randn(3, 2), torch.zeros(3), 0.8)
    x = torch.randn(B, 3)
    settings = FlowSettings(family, num_flows=2, hidden=(4,), context=2)
    guide = ab.FlowGuide(ab.latent_sites(model, x).local, B, 3, settings, width=3)
    for parameter in guide.parameters():  # off the start, at which flows are the identity
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model, guide, x


def auto():
    def model(x, index=None):
        with pyro.plate("data", B, subsample=index):
            z = pyro.sample("z", dist.Gamma(torch.full((len(x),), 2.0), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x = torch.linspace(0.5, 3, B)
    guide = AutoNormal(model, create_plates=lambda x, index=None: pyro.plate("data", B, subsample=index))
    guide(x)
    return model, guide, x


PROBLEMS = {
    "a chain with a parameter that model and guide share": chain,
    "a chain under a latent outside the plate": lambda: chain(shared=True),
    "planar": lambda: flow("planar"),
    "realnvp-contextual": lambda: flow("realnvp-contextual"),
    "spline": lambda: flow("spline"),
    "auxiliary": lambda: flow("auxiliary"),
    "a guide of Pyro's": auto,
}


def a_training(problem, **options):
    model, guide, x = problem
    made = FitOptions(batch_size=len(x), **{"capture": "replay", "objective": "iwae", "num_particles": K} | options)
    entered = enter(ab.fit, model, guide, (x,), {})
    told = entered.model.takes_index or entered.guide.takes_index
    return Training(entered.model, entered.guide, entered.args[0], made, plate=entered.plate, pass_index=told)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.slow_cases(
    "a chain under a latent outside the plate",
    "a guide of Pyro's",
    "auxiliary",
    "planar",
    "realnvp-contextual",
    "spline",
)
def test_gradients_have_the_mean_of_the_plain_ones(float64, name):
    run = a_training(PROBLEMS[name]())
    repeats = 1_000 if "outside" in name else REPEATS  # one draw for all points
    rows, index = run._batch(torch.arange(B)), torch.arange(B)
    wanted = run.variables.parameters

    def plain(*inputs):
        *leaves, places = inputs
        args = (type(rows)(tuple(leaves)), *([places] if run.pass_index else []))
        weights = draw_weights(run.model, run.guide, *args, num_particles=K)
        bound = weights.local[0].logsumexp(0).mean() + weights.shared[0] / B
        return torch.autograd.grad(-bound, wanted)

    found = []
    for program in (lambda *inputs: run.loss_and_gradients(*inputs)[1:], plain):
        inputs = [*rows.tensors, index]
        captured = capture(program, inputs, inputs)
        torch.manual_seed(6)
        draws = [torch.cat([g.flatten() for g in captured(*inputs)]) for _ in range(repeats)]
        found.append(torch.stack(draws))
    means, errors = zip(*((d.mean(0), d.std(0) / math.sqrt(repeats)) for d in found), strict=True)
    z = (means[0] - means[1]) / torch.hypot(*errors).clamp(min=1e-12)
    assert z.abs().max() < 4, z
    assert (z**2).mean() < 2
    assert (means[0].abs() > 10 * errors[0]).any()


@both
@every_family
@pytest.mark.parametrize("row_steps", [1, 2])
@pytest.mark.slow_cases(
    "1-amortized-iwae",
    "1-amortized-rws",
    "1-constant-iwae",
    "1-constant-rws",
    "1-factorized-iwae",
    "2-amortized-iwae",
    "2-amortized-rws",
    "2-constant-iwae",
    "2-factorized-iwae",
    "2-factorized-rws",
)
def test_captured_and_uncaptured_runs_agree(float64, family, objective, row_steps):
    found = []
    for how in ("off", "replay"):
        run = training(family, capture=how, row_steps=row_steps, **objective)
        records = steps(run, 12, report_at=range(13))
        assert (run.captured is not None) == (how == "replay")
        found.append((torch.tensor([r.elbo for r in records]), parts_of(run)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-10)
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(tensor, found[1][1][name], rtol=1e-9, atol=1e-9, msg=name)


def test_a_compiled_run_agrees(float64):
    if not compiler_available():
        pytest.skip("no C++ compiler")
    runs = [training(capture=how, bayesian=False, **IWAE) for how in ("off", "inductor")]
    values = [torch.tensor([r.elbo for r in steps(run, 8, report_at=range(9))]) for run in runs]
    assert runs[1].captured is not None
    assert runs[1].captured.backend == "inductor"
    torch.testing.assert_close(*values, rtol=0, atol=1e-9)


@both
@pytest.mark.parametrize("how", ["off", "replay"])
@pytest.mark.slow_cases("replay-iwae", "replay-rws")
def test_stopping_and_going_on_is_as_not_stopping(objective, how):
    whole, first, second = (training(capture=how, **objective) for _ in range(3))
    steps(whole, 9)
    steps(first, 4)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    steps(second, 5)
    assert same_bits(parts_of(whole), parts_of(second))


def test_trying_the_objective_changes_nothing():
    """Buffers and random numbers: the first step of a run is that of the same run made twice."""
    torch.manual_seed(9)
    before = torch.get_rng_state()
    training(**IWAE)
    torch.manual_seed(9)
    assert torch.equal(before, torch.get_rng_state())


def discrete(marked=None):
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.full((len(x),), 0.3)), infer={"enumerate": marked})
            pyro.sample("x", dist.Normal(2 * y, 0.8), obs=x)

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor([0.0, 0.0]))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                logits = self.slope[0] + self.slope[1] * x
                pyro.sample("y", dist.Bernoulli(logits=logits), infer={"enumerate": marked})

    return model, Logits(), torch.linspace(-1.5, 3.5, B)


@pytest.mark.parametrize("marked", [None, "parallel"])
@pytest.mark.slow
def test_reweighted_wake_sleep_fits_a_discrete_guide_to_the_exact_posterior(float64, marked):
    """Its log odds are linear in x: log(.3/.7) + (2 x - 2) / .64."""
    model, guide, x = discrete(marked)
    options = FitOptions(batch_size=B, learning_rate=0.05, objective="rws", num_particles=20, schedule=linear)
    ab.fit(model, guide, x, 1_500, options, progress=False)
    expected = torch.tensor([math.log(3 / 7) - 2 / 0.64, 2 / 0.64])
    torch.testing.assert_close(guide.slope.detach(), expected, rtol=0, atol=0.1)


class PointMass(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(1.0))

    def forward(self, x, index=None):
        with pyro.plate("data", B, subsample=index):
            pyro.sample("z", dist.Delta(self.loc.expand(len(x))))


def test_what_an_objective_has_no_gradient_for_is_refused():
    with pytest.raises(ValueError, match=r"^objective 'iwae' expected draws that can be reparametrized, got 'y' from"):
        a_training(discrete("parallel"))
    with pytest.raises(ValueError, match=r"^objective 'rws' expected latents inside plate 'data' alone, got 'theta'"):
        a_training(chain(shared=True), objective="rws")
    with pytest.raises(ValueError, match=r"^objective 'rws' expected a guide that can score any value, got the flow"):
        a_training(flow("planar"), objective="rws")
    with pytest.raises(ValueError, match=r"^objective 'rws' expected draws that it can hold fixed"):
        a_training(flow("auxiliary"), objective="rws")
    model, _, x = auto()
    with pytest.raises(ValueError, match=r"^objective 'rws' expected draws that it can hold fixed, got 'z'"):
        a_training((model, PointMass(), x), objective="rws")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_particles": 2}, "expected num_particles of 1 with objective 'elbo', got 2"),
        ({"objective": "rws"}, "expected num_particles of 2 or more with objective 'rws'"),
        ({"objective": "iwae", "analytic_kl": True}, "expected objective 'elbo' with analytic_kl, got 'iwae'"),
        ({"objective": "iwae", "kl_weight": WarmUp(0.2)}, "expected objective 'elbo' with kl_weight, got 'iwae'"),
        ({"objective": "iwae", "local_reparametrization": True}, "expected objective 'elbo' with local_rep"),
        ({"objective": "wake"}, "objective"),
        ({"objective": "iwae", "num_particles": 0}, "num_particles"),
    ],
)
def test_options_of_the_elbo_are_refused_with_other_objectives(options, words):
    with pytest.raises(ValueError, match=words) as found:
        FitOptions(**options)
    assert "\n" not in str(found.value)


def test_the_recipe_of_an_importance_weighted_fit_has_no_warm_up():
    assert FitOptions.recipe(objective="iwae", num_particles=5).kl_weight is None
    assert FitOptions.recipe().kl_weight is not None


def test_a_result_says_which_bound_it_is():
    model, guide, x = chain()
    found = ab.fit(model, guide, x, 5, FitOptions(batch_size=B, **IWAE), progress=False)
    assert found.bound == "IWAE bound (K = 3)"
    assert "IWAE bound (K = 3) -" in repr(found)
    plain = ab.fit(model, guide, x, 5, FitOptions(batch_size=B), progress=False)
    assert "s, ELBO -" in repr(plain)


@pytest.mark.parametrize("objective", ["iwae", "rws"])
@pytest.mark.slow
def test_compare_fits_all_families_by_the_objective(float64, objective):
    model = ab.LinearGaussian(torch.ones(3, 1), torch.zeros(3), 0.8)
    x = torch.randn(60, 1) + 0.8 * torch.randn(60, 3)
    fit = FitOptions.recipe(batch_size=20, objective=objective, num_particles=5, capture="replay")
    found = ab.compare(model, x, widths=(4,), settings=ab.ComparisonSettings(epochs=60, fit=fit), progress=False)
    frame = found.to_frame().set_index("guide")
    best = model.best_factorized_elbo(x).mean().item()
    for name in ("amortized", "factorized"):  # the exact posterior is in both families
        assert best - 0.15 < frame.loc[name, "elbo"] < best + 0.05


@pytest.mark.parametrize("transform", [Planar(2), Planar(2).inv, IndependentTransform(ELUTransform(), 1)])
def test_a_flow_is_one_whatever_wraps_it(transform):
    """Its inverse is not closed, so that densities at a draw see its base."""
    base = dist.Normal(torch.zeros(3, 2), 1.0)
    assert _is_flow(dist.TransformedDistribution(base, [transform]))
    for known in (ExpTransform(), ExpTransform().inv, IndependentTransform(ExpTransform(), 1)):
        assert not _is_flow(dist.TransformedDistribution(base, [known]))
