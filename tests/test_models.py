"""Models against closed forms, and closed forms against brute force."""

import math

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.func import functional_call

from amortized_bayes.likelihoods import LIKELIHOODS, Likelihood
from amortized_bayes.models import DeepGenerative, LinearGaussian
from amortized_bayes.networks import MLP, ConvolutionalDecoder, ConvolutionalEncoder, fan_in


def joint(model, x, z):
    prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
    return prior + Normal(z @ model.weight.T + model.bias, model.scale).log_prob(x).sum(-1)


def elbo_of(model, x, loc, log_scale):
    """ELBO of a factorized Gaussian in closed form, from the integral and not from the gap."""
    variance = (2 * log_scale).exp()
    squares = (x - loc @ model.weight.T - model.bias).square().sum(-1) + variance @ model.weight.square().sum(0)
    likelihood = -0.5 * squares / model.scale**2 - x.shape[1] * math.log(model.scale * math.sqrt(2 * math.pi))
    return likelihood - 0.5 * (loc.square() + variance - 1 - 2 * log_scale).sum(-1)


def maximise(objective, *starts):
    parameters = [start.requires_grad_() for start in starts]
    optimiser = torch.optim.LBFGS(parameters, max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = -objective(*parameters)
        loss.backward()
        return loss

    optimiser.step(closure)
    return [p.detach() for p in parameters]


# Linear-Gaussian ------------------------------------------------------------------------------------------------------


def test_evidence_is_joint_over_posterior_at_any_latent(linear_problem):
    model, x, _ = linear_problem
    for z in (torch.zeros(12, 2), torch.randn(12, 2)):
        torch.testing.assert_close(model.log_evidence(x), joint(model, x, z) - model.posterior(x).log_prob(z))


def test_program_scores_the_joint(linear_problem):
    model, x, _ = linear_problem
    trace = poutine.trace(model).get_trace(x)
    torch.testing.assert_close(trace.log_prob_sum(), joint(model, x, trace.nodes["z"]["value"]).sum())
    index = torch.tensor([3, 7])
    trace = poutine.trace(model).get_trace(x[index], index)
    torch.testing.assert_close(trace.log_prob_sum(), 6 * joint(model, x[index], trace.nodes["z"]["value"]).sum())


def test_evidence_integrates_to_one(float64):
    model = LinearGaussian(torch.tensor([[1.3]]), torch.tensor([0.4]), 0.8)
    grid = torch.linspace(-15, 15, 4001)[:, None]
    assert torch.trapezoid(model.log_evidence(grid).exp(), grid[:, 0]).item() == pytest.approx(1, abs=1e-9)


def test_best_factorized_elbo_is_what_optimisation_finds(linear_problem):
    model, x, _ = linear_problem
    loc, log_scale = maximise(lambda m, s: elbo_of(model, x, m, s).sum(), torch.zeros(12, 2), torch.zeros(12, 2))
    torch.testing.assert_close(model.best_factorized_elbo(x), elbo_of(model, x, loc, log_scale), rtol=0, atol=1e-8)
    assert (model.log_evidence(x) - model.best_factorized_elbo(x)).min() > 0.2


def test_best_constant_elbo_is_what_optimisation_finds(linear_problem):
    model, x, _ = linear_problem
    loc, log_scale = maximise(lambda m, s: elbo_of(model, x, m, s).sum(), torch.zeros(2), torch.zeros(2))
    found = elbo_of(model, x, loc.expand(12, 2), log_scale.expand(12, 2))
    torch.testing.assert_close(model.best_constant_elbo(x).mean(), found.mean(), rtol=0, atol=1e-10)
    torch.testing.assert_close(model.best_constant_elbo(x), found, rtol=0, atol=1e-5)  # each is of first order alone
    assert (model.best_factorized_elbo(x) - model.best_constant_elbo(x)).mean() > 0.1


def test_no_gap_where_the_posterior_is_factorized(float64):
    model = LinearGaussian(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2), 0.5)
    x = torch.randn(6, 2)
    torch.testing.assert_close(model.best_factorized_elbo(x), model.log_evidence(x))


def test_closed_forms_survive_a_change_of_dtype(linear_problem):
    model, x, _ = linear_problem
    single = LinearGaussian(model.weight, model.bias, model.scale).float()
    for name in ("log_evidence", "best_factorized_elbo", "best_constant_elbo"):
        found = getattr(single, name)(x.float())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), getattr(model, name)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("weight", "bias", "scale", "message"),
    [
        (torch.ones(3), torch.zeros(3), 1.0, r"weight \(P, D\)"),
        (torch.ones(3, 2), torch.zeros(2), 1.0, r"got \(3, 2\) and \(2,\)"),
        (torch.ones(3, 2), torch.zeros(3), 0.0, "scale above 0"),
        (torch.ones(3, 2), torch.zeros(3), math.nan, "scale above 0"),
        (torch.full((3, 2), math.nan), torch.zeros(3), 1.0, "finite weight and bias"),
    ],
)
def test_linear_gaussian_refuses(weight, bias, scale, message):
    with pytest.raises(ValueError, match=message):
        LinearGaussian(weight, bias, scale)


# Deep generative ------------------------------------------------------------------------------------------------------

WEIGHTS = ["decoder.0.weight", "decoder.0.bias", "decoder.1.weight", "decoder.1.bias"]


def traced(model, batch=4, index=None):
    x = torch.bernoulli(torch.full((batch, 3), 0.5))
    trace = poutine.trace(model).get_trace(x, index)
    return x, trace, {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}


@pytest.mark.parametrize("bayesian", [True, False])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_sites_and_joint_of_the_deep_generative_model(float64, bayesian, likelihood):
    model = DeepGenerative(3, 2, [5], 20, likelihood=likelihood, bayesian=bayesian)
    if likelihood == "gaussian-learned":
        model.log_scale.data.fill_(-0.7)
    x, trace, sites = traced(model, index=torch.tensor([0, 5, 7, 19]))
    assert list(sites) == [*(WEIGHTS if bayesian else []), "data", "z", "x"]
    z = sites["z"]["value"]
    assert z.shape == (4, 2)
    if bayesian:
        w0, b0, w1, b1 = (sites[name]["value"] for name in WEIGHTS)
    else:
        w0, b0, w1, b1 = model.parameters() if model.log_scale is None else list(model.parameters())[1:]
    hidden = z @ w0.T + b0
    output = torch.where(hidden > 0, hidden, 0.2 * hidden) @ w1.T + b1
    if likelihood == "bernoulli":
        expected = -torch.nn.functional.binary_cross_entropy_with_logits(output, x, reduction="none").sum(-1)
    elif likelihood == "binomial":
        expected = dist.Binomial(255, logits=output).log_prob(255 * x).sum(-1)
    else:
        scale = 1.0 if likelihood == "gaussian" else math.exp(-0.7)
        expected = Normal(output, scale).log_prob(x).sum(-1)
    trace.compute_log_prob()
    torch.testing.assert_close(sites["x"]["unscaled_log_prob"], expected)
    assert sites["x"]["scale"] == 5
    torch.testing.assert_close(sites["z"]["unscaled_log_prob"], Normal(0.0, 1.0).log_prob(z).sum(-1))


@pytest.mark.parametrize(("prior", "scales"), [("fan-in", (1 / math.sqrt(2), 1 / math.sqrt(5))), ("standard", (1, 1))])
def test_priors_of_the_weights(float64, prior, scales):
    _, trace, sites = traced(DeepGenerative(3, 2, [5], 20, weight_prior=prior))
    trace.compute_log_prob()
    for name, scale in zip(WEIGHTS, (scales[0], 1, scales[1], 1), strict=True):
        expected = dist.Normal(0.0, scale).log_prob(sites[name]["value"]).sum()
        torch.testing.assert_close(sites[name]["log_prob_sum"], expected)


def test_point_estimated_decoder_has_parameters_and_the_bayesian_one_none():
    assert list(DeepGenerative(3, 2, [5], 20).parameters()) == []
    point = DeepGenerative(3, 2, [5], 20, bayesian=False, likelihood="gaussian-learned")
    assert sum(p.numel() for p in point.parameters()) == (2 * 5 + 5) + (5 * 3 + 3) + 1


def test_grey_pixels_have_a_bernoulli_score():
    trace = poutine.trace(DeepGenerative(3, 2, [5], 4)).get_trace(torch.full((4, 3), 0.3))
    assert trace.log_prob_sum().isfinite()


def test_a_likelihood_is_one_entry(monkeypatch):
    laplace = Likelihood(False, lambda output, scale: dist.Laplace(output, scale.expand_as(output)), learned=True)
    monkeypatch.setitem(LIKELIHOODS, "laplace-learned", laplace)
    model = DeepGenerative(3, 2, [5], 20, likelihood="laplace-learned", bayesian=False)
    assert model.log_scale is not None
    model.log_scale.data.fill_(0.4)
    x, trace, sites = traced(model)
    trace.compute_log_prob()
    mean = model.decode(sites["z"]["value"], model.weights())
    expected = dist.Laplace(mean, math.exp(0.4)).log_prob(x).sum(-1)
    torch.testing.assert_close(sites["x"]["unscaled_log_prob"], expected)


def test_no_hidden_layer_is_a_linear_decoder(float64):
    model = DeepGenerative(3, 2, [], 4, bayesian=False)
    z = torch.randn(4, 2)
    weight, bias = model.weights()["0.weight"], model.weights()["0.bias"]
    torch.testing.assert_close(model.decode(z, model.weights()), z @ weight.T + bias)


@pytest.mark.parametrize("bayesian", [True, False])
def test_convolutional_decoder_in_the_model(float64, bayesian):
    network = ConvolutionalDecoder(2, 5, (3, 4), (1, 8, 12))
    model = DeepGenerative(96, 2, network, 20, bayesian=bayesian).double()
    x = torch.bernoulli(torch.full((4, 96), 0.5))
    trace = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    sites = trace.nodes
    weights = {name: sites[f"decoder.{name}"]["value"] for name, _ in network.named_parameters()} if bayesian else {}
    logits = (
        functional_call(network.double(), weights, (sites["z"]["value"],)) if bayesian else network(sites["z"]["value"])
    )
    expected = -torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    torch.testing.assert_close(sites["x"]["unscaled_log_prob"], expected)
    assert len(list(model.parameters())) == (0 if bayesian else len(list(network.parameters())))


def test_fan_in_counts_what_an_output_adds_up():
    ones = torch.ones(1, 3, 8, 8)
    for layer in (nn.Conv2d(3, 2, 4, 2, 1), nn.ConvTranspose2d(3, 2, 4, 2, 1)):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
        assert layer(ones)[0, 0, 1, 1].item() == fan_in(layer)  # an output away from the border
    assert fan_in(nn.Linear(7, 2)) == 7
    with pytest.raises(TypeError, match="got LSTM"):
        fan_in(nn.LSTM(2, 2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32])
def test_convolutional_networks_have_the_shapes_they_say(channels, size):
    shape = (channels, size, size)
    images = torch.rand(6, channels * size**2)
    encoder = ConvolutionalEncoder(shape, (4, 8), 16, 10, torch.arange(10.0))
    torch.testing.assert_close(encoder(images), torch.arange(10.0).expand(6, 10))
    decoder = ConvolutionalDecoder(5, 16, (8, 4), shape)
    assert decoder(torch.zeros(3, 6, 5)).shape == (3, 6, channels * size**2)


def test_convolutional_networks_refuse_sizes_that_4_does_not_divide():
    with pytest.raises(ValueError, match="got 28 by 30"):
        ConvolutionalDecoder(5, 16, (8, 4), (1, 28, 30))


def test_channels_lie_one_after_another_in_a_row():
    """What a network reads and writes is (C, H, W): a channel's pixels decide about that channel's weights alone."""
    encoder = ConvolutionalEncoder((3, 8, 8), (4, 8), 16, 5)
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        encoder.first.weight[:, 1] = 0  # the second channel is not looked at
    changed = images.clone()
    changed[:, 1] += 1
    torch.testing.assert_close(encoder(changed.flatten(1)), encoder(images.flatten(1)))
    changed[:, 2] += 1
    assert (encoder(changed.flatten(1)) - encoder(images.flatten(1))).abs().max() > 1e-4
    decoder = ConvolutionalDecoder(2, 16, (8, 4), (3, 8, 8))
    with torch.no_grad():
        decoder.second.bias.copy_(torch.tensor([100.0, 200.0, 300.0]))
    means = decoder(torch.randn(4, 2)).reshape(4, 3, 64).mean((0, 2))
    torch.testing.assert_close(means, torch.tensor([100.0, 200.0, 300.0]), rtol=0, atol=5.0)


@pytest.mark.parametrize("activation", ["elu", "tanh", "relu", "leaky-relu"])
def test_convolutional_networks_use_their_activation(float64, activation):
    f = {
        "elu": nn.functional.elu,
        "tanh": torch.tanh,
        "relu": lambda x: x.clamp(min=0),
        "leaky-relu": lambda x: torch.where(x > 0, x, 0.2 * x),
    }[activation]
    encoder = ConvolutionalEncoder((1, 8, 8), (4, 8), 16, 5, activation=activation)
    x = torch.randn(3, 64)
    features = f(encoder.second(f(encoder.first(x.reshape(3, 1, 8, 8))))).flatten(1)
    torch.testing.assert_close(encoder(x), encoder.dense[1](f(encoder.dense[0](features))))
    decoder = ConvolutionalDecoder(2, 16, (8, 4), (1, 8, 8), activation)
    z = torch.randn(3, 2)
    features = f(decoder.dense[1](f(decoder.dense[0](z)))).reshape(3, 8, 2, 2)
    torch.testing.assert_close(decoder(z), decoder.second(f(decoder.first(features))).flatten(1))


def test_convolutional_weights_of_grey_images_start_as_ever():
    """Frozen sums of the initial weights: results of the same seed stay the same."""
    torch.manual_seed(0)
    encoder = ConvolutionalEncoder((1, 8, 8), (4, 8), 16, 5)
    decoder = ConvolutionalDecoder(2, 16, (8, 4), (1, 8, 8))
    sums = [sum(p.double().abs().sum().item() for p in network.parameters()) for network in (encoder, decoder)]
    assert sums == pytest.approx([99.57821291152504, 126.24352195486426], rel=1e-6)


def test_mlp_with_elu(float64):
    network = MLP([3, 4, 2], None, "elu")
    x = torch.randn(5, 3)
    hidden = x @ network[0].weight.T + network[0].bias
    hidden = torch.where(hidden > 0, hidden, hidden.exp() - 1)
    torch.testing.assert_close(network(x), hidden @ network[1].weight.T + network[1].bias)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observed": 0}, "observed of 1 or more"),
        ({"latent_dim": 0}, "latent_dim of 1 or more"),
        ({"hidden": [4, 0]}, "hidden of 1 or more"),
        ({"likelihood": "poisson"}, "got 'poisson'"),
        ({"weight_prior": "wide"}, "got 'wide'"),
        ({"activation": "step"}, "got 'step'"),
    ],
)
def test_deep_generative_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        DeepGenerative(**({"observed": 3, "latent_dim": 2, "hidden": [4], "num_data": 9} | options))
