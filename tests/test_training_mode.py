"""Modules in training mode: noise of dropout and neighbours of batch norm are no part of a density, in every call."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.nn import functional

import amortized_bayes as ab
from amortized_bayes.training_mode import in_evaluation_mode

N, P = 12, 3
X = torch.linspace(-1, 1, N * P).reshape(N, P)
QUICK = ab.ComparisonSettings(epochs=2, rungs=1, num_draws=5)
NOISE = r"expected {} in evaluation mode, got dropout in training mode, whose noise is no part of log {}: .*eval\(\)"
NEIGHBOURS = r"expected {} in evaluation mode, got batch norm in training mode, by which log {} of a point changes"


class Functional(nn.Module):
    """Dropout as a function, as many write it."""

    def forward(self, z):
        return functional.dropout(z, 0.4, self.training)


class Own(nn.Module):
    """Noise of one's own."""

    def forward(self, z):
        return z + torch.randn_like(z) if self.training else z


LAYERS = {"dropout": nn.Dropout(0.3), "functional": Functional(), "batch norm": nn.BatchNorm1d(P)}
WORDS = {"dropout": NOISE, "functional": NOISE, "batch norm": NEIGHBOURS}


def decoding(layer):
    net = nn.Sequential(nn.Linear(2, P), layer)

    def model(x):
        pyro.module("decoder", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1), obs=x)

    return model, net


def predicting(layer):
    """A prediction is hidden, with which log p does not move."""
    model, net = decoding(layer)

    def both(x):
        model(x)
        with pyro.plate("new", len(x)):
            pyro.sample("y", dist.Normal(0.0, 1.0))

    return poutine.block(both, hide=["y"]), net


def encoding(layer):
    net = nn.Sequential(nn.Linear(P, P), layer, nn.Linear(P, 2))

    def guide(x):
        pyro.module("encoder", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 0.7).to_event(1))

    return guide, net


STEADY = decoding(nn.Identity())[0]
GUIDE = encoding(nn.Identity())[0]
OF_MODEL = {
    "log_joint": lambda model, guide: ab.log_joint(model, X),
    "compare": lambda model, guide: ab.compare(model, X, guides=("constant",), settings=QUICK, progress=False),
}
OF_BOTH = {
    "log_weights": lambda model, guide: ab.log_weights(model, guide, X),
    "elbo": lambda model, guide: ab.elbo(model, guide, X),
    "iwae": lambda model, guide: ab.iwae(model, guide, X),
    "iwae in blocks": lambda model, guide: ab.iwae(model, guide, X, num_particles=1_100),
    "log_predictive": lambda model, guide: ab.log_predictive(model, guide, X),
    "ais": lambda model, guide: ab.ais(model, guide, X, settings=ab.AISSettings(num_temperatures=10)),
    "optimize_local": lambda model, guide: ab.optimize_local(
        model, guide, X, settings=ab.LocalSettings(max_steps=10, max_rounds=1)
    ),
    "refine": lambda model, guide: ab.refine(model, guide, X, settings=ab.RefineSettings(steps=(1,))),
    "diagnose": lambda model, guide: ab.diagnose(model, guide, X, progress=False),
}
CALLS = OF_MODEL | OF_BOTH


def refusal(call, model, guide):
    with pytest.raises(ValueError, match="in evaluation mode") as refused:
        call(model, guide)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("call", CALLS)
def test_every_call_refuses_a_model_in_training_mode_in_the_same_line(call, layer):
    model, net = decoding(copy.deepcopy(LAYERS[layer]))
    before = copy.deepcopy(net.state_dict())
    said = refusal(CALLS[call], model, GUIDE)
    with pytest.raises(ValueError, match=WORDS[layer].format("a model", r"p\(x, z\)")):
        raise ValueError(said)
    for name, value in net.state_dict().items():  # statistics of a batch norm stay too
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("call", OF_BOTH)
def test_and_a_guide(call, layer):
    guide, net = encoding(copy.deepcopy(LAYERS[layer]))
    before = copy.deepcopy(net.state_dict())
    said = refusal(OF_BOTH[call], STEADY, guide)
    with pytest.raises(ValueError, match=WORDS[layer].format("a guide", r"q\(z\)")):
        raise ValueError(said)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_and_a_guide_that_would_be_compared():
    guide = encoding(nn.Dropout(0.3))[0]
    with pytest.raises(ValueError, match=NOISE.format(r"guides\['mine'\]", r"q\(z\)")):
        ab.compare(STEADY, X, guides={"mine": guide}, settings=QUICK, progress=False)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("call", ["elbo", "iwae", "log_joint"])
def test_in_evaluation_mode_all_answer(call, layer):
    (model, net), (guide, encoder) = decoding(copy.deepcopy(LAYERS[layer])), encoding(copy.deepcopy(LAYERS[layer]))
    net.eval()
    encoder.eval()
    CALLS[call](model, guide)
    net.train()  # a module that was tried before is tried again
    refusal(CALLS[call], model, guide)


@pytest.mark.parametrize("call", CALLS)
def test_a_hidden_prediction_is_not_blamed_for_dropout(call):
    assert "dropout in training mode" in refusal(CALLS[call], predicting(nn.Dropout(0.3))[0], GUIDE)


@pytest.mark.parametrize("call", CALLS)
def test_noise_of_ones_own_is_refused_too(call):
    with pytest.raises(ValueError, match=r"random given its latents, by noise that no pyro.sample draws: .*eval\(\)"):
        CALLS[call](decoding(Own())[0], GUIDE)


def test_fits_train_in_the_mode_that_they_find():
    (model, net), (guide, encoder) = decoding(nn.Dropout(0.3)), encoding(nn.BatchNorm1d(P))
    sites = ab.latent_sites(model, X)
    assert [site.name for site in sites.local] == ["z"]
    ab.fit(model, guide, X, num_steps=3, options=ab.FitOptions(batch_size=N), progress=False)
    assert net.training
    assert encoder[1].num_batches_tracked >= 3


def test_a_plate_that_draws_a_part_of_itself_is_not_taken_for_noise():
    """Its scale is what is wrong with it."""

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            with pyro.plate("pixels", 30, subsample_size=15, dim=-1) as few:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, few])

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))

    with pytest.raises(ValueError, match="'x' with a scale of 2:"):
        ab.elbo(model, guide, X.repeat(1, 10), plate="data")


ATTENDED = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
OTHERS = {
    "rrelu": (nn.RReLU(), 1),
    "alpha": (nn.AlphaDropout(0.2), 1),
    "channels": (nn.Dropout1d(0.2), 1),
    "recurrent": (nn.LSTM(6, 6, num_layers=2, dropout=0.2), 1),
    "attention": (nn.MultiheadAttention(6, 2, dropout=0.2), 3),
    "transformer": (nn.TransformerEncoderLayer(6, 2, 8, dropout=0.2), 1),
    "batch norm": (nn.BatchNorm1d(5), 1),
}
STILL = {
    "no dropout": (nn.Dropout(0.0), 1),
    "recurrent": (nn.GRU(6, 6), 1),
    "attention": (nn.MultiheadAttention(6, 2), 3),
    "no statistics": (nn.BatchNorm1d(5, track_running_stats=False), 1),
    "layer norm": (nn.LayerNorm(6), 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_layer_with_a_mode_of_its_own_is_noticed(name):
    layer, times = OTHERS[name]
    with pytest.raises(ValueError, match="in training mode"), in_evaluation_mode("a model", "p"):
        layer(*[ATTENDED] * times)
    with in_evaluation_mode("a model", "p"):
        copy.deepcopy(layer).eval()(*[ATTENDED] * times)


@pytest.mark.parametrize("name", STILL)
def test_layers_without_are_left_alone(name):
    layer, times = STILL[name]
    with in_evaluation_mode("a model", "p"):
        layer(*[ATTENDED] * times)


@pytest.mark.parametrize("function", [torch.dropout, torch.alpha_dropout, torch.feature_dropout])
def test_functions_of_torch_itself_are_noticed(function):
    with pytest.raises(ValueError, match="got dropout"), in_evaluation_mode("a model", "p"):
        function(ATTENDED, 0.5, True)
    with in_evaluation_mode("a model", "p"):
        function(ATTENDED, 0.5, False)


def test_so_is_batch_norm_of_torch_itself():
    statistics = (torch.zeros(5), torch.ones(5))
    with pytest.raises(ValueError, match="got batch norm"), in_evaluation_mode("a model", "p"):
        torch.batch_norm(ATTENDED, None, None, *statistics, True, 0.1, 1e-5, False)
    with in_evaluation_mode("a model", "p"):
        torch.batch_norm(ATTENDED, None, None, *statistics, False, 0.1, 1e-5, False)
        torch.batch_norm(ATTENDED, None, None, None, None, True, 0.1, 1e-5, False)
