"""What makes a fit converge sooner: equal expectations, equal optima, and refusals where an option would be wrong."""

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

import amortized_bayes as ab
from amortized_bayes.expectations import check_quadrature, expected_log_weights
from amortized_bayes.guides.registry import GUIDES, GuideSpec
from amortized_bayes.inference.options import WarmUp, linear
from amortized_bayes.inference.svi import Training
from amortized_bayes.networks import Center

torch64 = {"dtype": torch.float64}


def bayesian(likelihood="bernoulli", observed=6, num_data=8):
    """A model with a Bayesian decoder, a guide and data, in float64."""
    torch.manual_seed(0)
    model = ab.DeepGenerative(observed, 2, [5], num_data, likelihood=likelihood).double()
    x = torch.bernoulli(torch.full((num_data, observed), 0.4, **torch64))
    sites = ab.latent_sites(model, x)
    shared = ab.MeanField(sites.shared, locs=sites.shared_draw, log_scale=-0.5)
    return model, ab.Factorized(sites.local, num_data, shared=shared).double(), x


def likelihood_of(model, guide, x, seed, **options):
    torch.manual_seed(seed)
    with pyro.validation_enabled(False):
        return expected_log_weights(model, guide, x, local_reparametrization=True, **options).log_likelihood[0, 0]


@pytest.mark.slow
def test_quadrature_is_the_exact_expectation_over_the_outputs_and_its_gradient():
    """One latent weight per output: E log p(x | m + s e) by adaptive integration, and by nodes."""
    loc, log_scale = torch.tensor([[0.7], [-1.2]], **torch64), torch.tensor([[-0.3], [0.2]], **torch64)
    x = torch.tensor([[1.0, 0.0]], **torch64)
    parameters = loc.requires_grad_(), log_scale.requires_grad_()

    def model(x):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2, 1, **torch64), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, **torch64), 1.0).to_event(1))
            output = torch.nn.functional.linear(torch.ones_like(z), weight)
            pyro.sample("x", dist.Bernoulli(logits=output).to_event(1), obs=x)

    def guide(x):
        pyro.sample("weight", dist.Normal(loc, log_scale.exp()).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1, **torch64), 1.0).to_event(1))

    def exact(values):
        (m0, m1), (s0, s1) = values[:2], np.exp(values[2:])
        terms = [(lambda a: -np.logaddexp(0, -a), m0, s0), (lambda a: -np.logaddexp(0, a), m1, s1)]
        return sum(quad(lambda e, f=f, m=m, s=s: f(m + s * e) * norm.pdf(e), -12, 12)[0] for f, m, s in terms)

    at = np.array([0.7, -1.2, -0.3, 0.2])
    steps = 1e-5 * np.eye(4)
    slopes = [(exact(at + step) - exact(at - step)) / 2e-5 for step in steps]
    errors = {}
    for nodes in (3, 12):
        found = likelihood_of(model, guide, x, 0, quadrature_nodes=nodes).sum()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(found, parameters)]).numpy()
        errors[nodes] = abs(found.item() - exact(at)), np.abs(gradient - slopes).max()
    assert max(errors[3]) < 2e-2
    assert max(errors[12]) < 1e-5
    drawn = torch.stack([likelihood_of(model, guide, x, seed) for seed in range(1_500)]).detach()
    assert abs(drawn.mean() - exact(at)) < 4 * drawn.std() / 1_500**0.5


@pytest.mark.parametrize(
    "likelihood", ["bernoulli", "gaussian", pytest.param("gaussian-learned", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_quadrature_has_the_expectation_of_draws(likelihood):
    model, guide, x = bayesian(likelihood)
    check_quadrature(model, guide, x)
    found = torch.stack([likelihood_of(model, guide, x, s, quadrature_nodes=5).detach() for s in range(400)])
    drawn = torch.stack([likelihood_of(model, guide, x, s).detach() for s in range(400)])
    error = (found.var(0) + drawn.var(0)).div(400).sqrt()
    assert ((found.mean(0) - drawn.mean(0)).abs() < 4.5 * error).all()
    assert found.var(0).mean() < drawn.var(0).mean()


def mixing(x):
    """Pixels whose probabilities sum to one: no output enters a term of its own."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Categorical(logits=torch.nn.functional.linear(z, weight)), obs=x[:, 0])


def reshaping(x):
    """The outputs of all points in one row."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        output = torch.nn.functional.linear(z, weight).reshape(-1)[: 3 * len(x)].reshape(len(x), 3)
        pyro.sample("x", dist.Normal(output, 1.0).to_event(1), obs=x)


def prior_too(x):
    """The outputs are the locations of latents."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        y = pyro.sample("y", dist.Normal(torch.nn.functional.linear(z, weight), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(y, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("model", "words"), [(mixing, "mixes them"), (reshaping, "no dimension"), (prior_too, "latent sites")]
)
def test_quadrature_is_refused_where_it_would_be_wrong(model, words):
    x = torch.ones(4, 3)
    sites = ab.latent_sites(model, x)
    guide = ab.Constant(sites.local, len(x), shared=ab.MeanField(sites.shared, log_scale=-0.5))
    options = ab.FitOptions(batch_size=4, local_reparametrization=True, quadrature_nodes=3)
    with pytest.raises(ValueError, match=words):
        Training(model, guide, x, options, pass_index=False)


def test_quadrature_needs_a_layer_with_latent_weights():
    with pytest.raises(ValueError, match="expected local reparametrization with quadrature"):
        expected_log_weights(*bayesian("bernoulli"), quadrature_nodes=3)
    model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
    x = torch.zeros(4, 3)
    guide = ab.Constant(ab.latent_sites(model, x).local, 4)
    with pytest.raises(ValueError, match="last layer"):
        Training(model, guide, x, ab.FitOptions(batch_size=4, local_reparametrization=True, quadrature_nodes=3))
    with pytest.raises(ValueError, match="local_reparametrization"):
        ab.FitOptions(quadrature_nodes=3)


def linear_problem(num_data=64):
    torch.manual_seed(1)
    model = ab.LinearGaussian(torch.randn(5, 2), torch.randn(5), 0.7)
    z = torch.randn(num_data, 2)
    x = z @ model.weight.T + model.bias + 0.7 * torch.randn(num_data, 5)
    return model, x, ab.latent_sites(model, x).local


@pytest.mark.parametrize("capture", ["off", "replay"])
def test_two_row_steps_are_two_visits_where_nothing_else_moves(capture):
    """Of full batches, such that a visit is a step; local parameters alone are fitted, with the same draws."""
    model, x, sites = linear_problem(16)
    tables = []
    for row_steps, visits in ((2, 10), (1, 20), (1, 10)):
        guide = ab.Factorized(sites, len(x))
        options = ab.FitOptions(batch_size=16, row_steps=row_steps, average=None, capture=capture)
        training = Training(model, guide, x, options)
        training.batches = [torch.arange(16)] * 20  # in one order: it is that of the draws
        list(training.run(visits))
        tables.append(guide.table.weight.detach().clone())
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-5, atol=1e-6)
    assert (tables[0] - tables[2]).abs().max() > 0.1


def test_row_steps_leave_everything_else_to_the_last_of_them():
    model, x, sites = linear_problem(16)
    guide = ab.Factorized(sites, len(x))
    bias = model.bias.clone()
    del model.bias
    model.bias = torch.nn.Parameter(bias)
    training = Training(model, guide, x, ab.FitOptions(batch_size=16, row_steps=3, capture="off"))
    list(training.run(5))
    assert training.variables.row_adams[0].count.unique().tolist() == [15]
    assert training.variables.adam.state[model.bias]["step"].item() == 5


def test_warm_up_ends_at_the_elbo():
    assert [WarmUp(0.2)(done) for done in (0, 0.1, 0.2, 0.7, 1)] == [0, 0.5, 1, 1, 1]
    with pytest.raises(ValueError, match="expected share below 1, got 2"):
        WarmUp(2)
    plain = ab.FitOptions(local_reparametrization=True)
    warm = replace(plain, kl_weight=WarmUp(0.2), shared_kl_weight=WarmUp(0.2))
    assert warm.weights_at(0.0) == (0.0, 0.0, 0.0)
    assert warm.weights_at(0.2) == warm.settled.weights_at(0.0) == (1.0, 1.0, 1.0)
    model, guide, x = bayesian()
    losses = []
    for options in (plain, warm, warm.settled):
        training = Training(model, guide, x, replace(options, batch_size=8, capture="off"))
        inputs = training._inputs(torch.arange(8), 0.3)
        torch.manual_seed(0)
        losses.append([t.double() for t in training.loss_and_gradients(*inputs)])
    for other in losses[1:]:
        for a, b in zip(losses[0], other, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_decayed_and_averaged_runs_end_at_the_same_optimum():
    """Of the linear-Gaussian model, where it is known: the best factorized Gaussian of each point."""
    model, x, sites = linear_problem()
    best = model.best_factorized_elbo(x).mean()
    recipe = ab.FitOptions(
        batch_size=32,
        learning_rate=2e-2,
        average=None,
        schedule=linear,
        kl_weight=WarmUp(0.2),
        row_steps=2,
        adam_beta2=0.99,
        center_input=True,
    )
    for options in (recipe, ab.FitOptions(batch_size=32, learning_rate=4e-3)):
        encoder = nn.Sequential(Center(x.mean(0)), nn.Linear(5, 4))
        for guide in (ab.Factorized(sites, 64), ab.Amortized(sites, 64, 5, encoder=encoder)):
            training = Training(model, guide, x, options)
            list(training.run(2_500))
            torch.manual_seed(0)
            with training.averaged():
                found = ab.elbo(model, guide, x, num_draws=400)
            error = (found.standard_error.square().sum().sqrt() / 64).item()
            assert found.value.mean() - best == pytest.approx(0, abs=4 * error + 3e-3)


def test_a_centered_encoder_has_one_bias_in_place_of_another():
    _, x, sites = linear_problem()
    spec = GuideSpec(sites, x, 3, center=True)
    guide, plain = (GUIDES["amortized"].build(spec._replace(center=center)) for center in (True, False))
    plain.encoder[1].load_state_dict(guide.encoder[2].state_dict())
    with torch.no_grad():
        for encoder in (guide.encoder[2], plain.encoder[1]):
            encoder[-1].weight.fill_(0.3)  # at the start it answers with a constant
        first = plain.encoder[1][0]
        first.bias -= first.weight @ x.mean(0)
    index = torch.arange(64)
    torch.testing.assert_close(guide.locate(x, index), plain.locate(x, index))


def test_log_scales_of_theta_have_a_rate_of_their_own():
    model, guide, x = bayesian()
    options = ab.FitOptions(
        batch_size=8, shared_learning_rate=0.5, shared_scale_learning_rate=0.01, average=None, capture="off"
    )
    before = {name: value.clone() for name, value in guide.shared.state_dict().items()}
    list(Training(model, guide, x, options).run(1))
    moved = {name: (value - before[name]).abs().max().item() for name, value in guide.shared.state_dict().items()}
    for name, distance in moved.items():
        assert distance == pytest.approx(0.01 if "log_scales" in name else 0.5, rel=1e-3), name
