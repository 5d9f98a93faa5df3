"""VAEs in plain PyTorch: exact numbers for what is known, and one line for what cannot be right."""

import logging
import math
import re
from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import amortized_bayes as ab

B, P, D = 6, 5, 2
NOISE = 0.5
QUICK = ab.DiagnosisSettings(
    num_particles=200, ais=ab.AISSettings(num_temperatures=40), certificate=ab.CertificateSettings(20, 0.1, 40)
)


class Spread(nn.Module):
    """A linear mean, and one variance for all points, laid out in some way."""

    def __init__(self, mean, variance, lay_out):
        super().__init__()
        self.mean, self.variance, self.lay_out = mean, variance, lay_out

    def forward(self, x):
        mean = self.mean(x)
        return self.lay_out(mean, self.variance.expand_as(mean))


@pytest.fixture
def pca(float64):
    """Probabilistic PCA in plain PyTorch: decoder, the parts of its exact encoder, data, and log p(x) of each point."""
    torch.manual_seed(0)
    decoder, mean = nn.Linear(D, P), nn.Linear(P, D)
    with torch.no_grad():
        decoder.weight.copy_(torch.linalg.qr(torch.randn(P, D))[0] * torch.tensor([2.0, 0.7]))  # factorized posterior
        variance = 1 / (1 + decoder.weight.square().sum(0) / NOISE**2)
        mean.weight.copy_(variance[:, None] * decoder.weight.T / NOISE**2)
        mean.bias.copy_(-mean.weight @ decoder.bias)
    x = 2 * torch.randn(B, P)
    log_p = ab.LinearGaussian(decoder.weight.detach(), decoder.bias.detach(), NOISE).log_evidence(x)
    return SimpleNamespace(decoder=decoder, mean=mean, variance=variance, x=x, log_p=log_p)


ModelOutput = type("ModelOutput", (OrderedDict,), {"__getattr__": lambda self, name: self[name]})
Named = namedtuple("Named", "mu logvar")
LAID_OUT = {
    "log variance": ("log_variance", lambda m, v: (m, v.log())),
    "log scale": ("log_scale", lambda m, v: (m, 0.5 * v.log())),
    "scale": ("scale", lambda m, v: (m, v.sqrt())),
    "variance": ("variance", lambda m, v: [m, v]),
    "one tensor": ("log_variance", lambda m, v: torch.cat([m, v.log()], -1)),
    "mapping": (None, lambda m, v: {"mean": m, "scale": v.sqrt(), "features": m}),
    "pythae": (None, lambda m, v: ModelOutput(embedding=m, log_covariance=v.log())),
    "named tuple": (None, lambda m, v: Named(m, v.log())),
    "object": (None, lambda m, v: SimpleNamespace(loc=m, log_std=0.5 * v.log())),
    "normal": (None, lambda m, v: torch.distributions.Independent(torch.distributions.Normal(m, v.sqrt()), 1)),
}


@pytest.mark.parametrize("form", LAID_OUT)
def test_every_weight_of_the_exact_posterior_is_the_evidence(pca, form):
    gives, lay_out = LAID_OUT[form]
    encoder = Spread(pca.mean, pca.variance, lay_out)
    pair = ab.vae(encoder, pca.decoder, "gaussian", D, scale=NOISE, encoder_gives=gives)
    weights = ab.log_weights(*pair, pca.x, num_particles=7)
    torch.testing.assert_close(weights.local, pca.log_p.expand(1, 7, B))


def test_another_reading_of_the_same_outputs_is_another_number(pca):
    encoder = Spread(pca.mean, pca.variance, lambda m, v: (m, v.log()))
    pair = ab.vae(encoder, pca.decoder, "gaussian", D, scale=NOISE, encoder_gives="log_scale")
    assert (ab.elbo(*pair, pca.x, num_draws=200).value < pca.log_p - 0.3).all()


@pytest.mark.parametrize("scale", [torch.tensor(NOISE), torch.full((P,), NOISE), nn.Parameter(torch.tensor(NOISE))])
def test_forms_of_the_scale(pca, scale):
    encoder = Spread(pca.mean, pca.variance, LAID_OUT["scale"][1])
    pair = ab.vae(encoder, pca.decoder, "gaussian", D, scale=scale.to(torch.float64), encoder_gives="scale")
    torch.testing.assert_close(ab.log_weights(*pair, pca.x).local[0, 0], pca.log_p)


def test_diagnose_finds_the_gaps_of_a_plain_vae(pca):
    wide = 2.0
    encoder = Spread(pca.mean, wide**2 * pca.variance, LAID_OUT["scale"][1])
    report = ab.diagnose(
        *ab.vae(encoder, pca.decoder, "gaussian", D, scale=NOISE, encoder_gives="scale"), pca.x, settings=QUICK
    )
    exact = D * (0.5 * (wide**2 - 1) - math.log(wide))
    found = report.gaps()
    assert abs(found.amortization.mean - exact) < 4 * found.amortization.mean_error + 0.01
    assert abs(found.approximation.mean) < 0.1


def test_modules_may_be_methods_of_one_network(pca):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([pca.mean, pca.decoder])

        def encode(self, x):
            return self.parts[0](x), pca.variance.log().expand(len(x), D)

        def decode(self, z):
            return self.parts[1](z)

    net = Whole()
    pair = ab.vae(net.encode, net.decode, "gaussian", D, scale=NOISE, encoder_gives="log_variance")
    torch.testing.assert_close(ab.log_weights(*pair, pca.x).local[0, 0], pca.log_p)
    net.parts.append(nn.Dropout())
    with pytest.raises(ValueError, match=r"Dropout in training mode: call .eval\(\)"):
        ab.elbo(*pair, pca.x)


# Likelihoods ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pixels(float64):
    """A Bernoulli decoder of one latent, an encoder, and binary images (B, 1, 2, 3)."""
    torch.manual_seed(1)
    return SimpleNamespace(
        decoder=nn.Linear(1, 6),
        encoder=nn.Sequential(nn.Flatten(), nn.Linear(6, 2)),
        x=torch.bernoulli(torch.full((B, 1, 2, 3), 0.5)),
    )


def by_quadrature(logits_of, x, log_likelihood):
    """Log p(x) of a model with one latent, by the trapezoidal rule."""
    z = torch.linspace(-9, 9, 4001)
    terms = log_likelihood(logits_of(z[:, None])[:, None], x.flatten(1)[None]).sum(-1)
    return torch.logsumexp(terms + dist.Normal(0.0, 1.0).log_prob(z)[:, None], 0) + math.log(z[1] - z[0])


GIVEN = {
    "logits": ("logits", lambda out: out),
    "probs": ("probs", torch.sigmoid),
    "images": ("probs", lambda out: out.sigmoid().reshape(-1, 1, 2, 3)),
    "pythae": ("probs", lambda out: ModelOutput(reconstruction=out.sigmoid().reshape(-1, 1, 2, 3))),
    "named probs": (None, lambda out: {"probs": out.sigmoid()}),
    "named logits": (None, lambda out: SimpleNamespace(logits=out)),
}


@pytest.mark.parametrize("form", GIVEN)
def test_bernoulli_decoders_have_the_evidence_of_quadrature(pixels, form):
    gives, after = GIVEN[form]
    pair = ab.vae(
        pixels.encoder,
        lambda z: after(pixels.decoder(z)),
        "bernoulli",
        1,
        encoder_gives="log_scale",
        decoder_gives=gives,
    )
    exact = by_quadrature(
        pixels.decoder,
        pixels.x,
        lambda o, x: -F.binary_cross_entropy_with_logits(*torch.broadcast_tensors(o, x), reduction="none"),
    )
    found = ab.iwae(*pair, pixels.x, num_particles=2000)
    assert ((found.value - exact).abs() < 5 * found.standard_error + 1e-3).all()


def test_counts_of_grey_levels(pixels):
    x = (pixels.x + torch.arange(B)[:, None, None, None] % 4).clamp(max=4) / 4
    pair = ab.vae(
        pixels.encoder, pixels.decoder, "binomial", 1, encoder_gives="log_scale", decoder_gives="logits", levels=4
    )
    exact = by_quadrature(pixels.decoder, x, lambda o, x: dist.Binomial(4, logits=o).log_prob(4 * x))
    found = ab.iwae(*pair, x, num_particles=2000)
    assert ((found.value - exact).abs() < 5 * found.standard_error + 1e-3).all()


def test_a_likelihood_of_ones_own(pixels):
    pair = ab.vae(
        pixels.encoder,
        pixels.decoder,
        lambda out: dist.Laplace(out.reshape(-1, 1, 2, 3), 0.5),
        1,
        encoder_gives="log_scale",
    )
    exact = by_quadrature(pixels.decoder, pixels.x, lambda o, x: dist.Laplace(o, 0.5).log_prob(x))
    found = ab.iwae(*pair, pixels.x, num_particles=2000)
    assert ((found.value - exact).abs() < 5 * found.standard_error + 1e-3).all()


# Training, capture, other programs ------------------------------------------------------------------------------------


def test_a_plain_vae_is_fitted_captured_or_not(pca):
    ends = []
    for capture in ("off", "replay"):
        torch.manual_seed(0)
        encoder, decoder = nn.Linear(P, 2 * D), nn.Linear(D, P)
        pair = ab.vae(encoder, decoder, "gaussian", D, scale=1.0, encoder_gives="log_variance")
        options = ab.FitOptions(batch_size=B, capture=capture, average=None)
        ab.fit(*pair, pca.x, 5, options)
        ends.append([*encoder.parameters(), *decoder.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*ends, strict=True))


# What is refused ------------------------------------------------------------------------------------------------------


def made(x, encoder=None, decoder=None, likelihood="gaussian", **options):
    options = {"encoder_gives": "log_variance"} | ({"scale": 1.0} if likelihood == "gaussian" else {}) | options
    pair = ab.vae(encoder or nn.Linear(P, 2 * D), decoder or nn.Linear(D, P), likelihood, D, **options)
    return ab.elbo(*pair, x)


X = torch.linspace(0, 1, B * P).reshape(B, P).round()
NORM, NORM_WITHOUT = nn.BatchNorm1d(P), nn.BatchNorm1d(P, track_running_stats=False).eval()
REFUSED = {
    "no likelihood of that name": ({"likelihood": "poisson"}, "expected a likelihood among bernoulli"),
    "a learned scale": ({"likelihood": "gaussian-learned"}, "and scale= its value"),
    "no scale": ({"scale": None}, r"expected scale= with a Gaussian likelihood: 1.0 where the loss was ½"),
    "a scale of 0": ({"scale": 0.0}, "expected scale above 0"),
    "a scale of Bernoulli": ({"likelihood": "bernoulli", "scale": 1.0}, "Gaussian likelihood alone"),
    "levels of a Gaussian": ({"levels": 4}, "binomial likelihood alone"),
    "logits of a Gaussian": ({"decoder_gives": "logits"}, "expected decoder_gives='mean'"),
    "neither logits nor probs": ({"likelihood": "bernoulli"}, "expected decoder_gives='logits' or 'probs'"),
    "an unknown spread": ({"encoder_gives": "precision"}, "expected encoder_gives among 'log_variance'"),
    "a spread without a name": ({"encoder_gives": None}, "second output has no name: say what it is"),
    "a spread of another name": (
        {"encoder": lambda x: {"mu": x[:, :D], "scale": x[:, :D] + 1}},
        "'log_variance', as encoder_gives says, got .*'scale'",
    ),
    "a negative scale": (
        {"encoder": lambda x: (x[:, :D], x[:, :D] - 1), "encoder_gives": "scale"},
        "a scale above 0, got -1; say encoder_gives='log_scale'",
    ),
    "nan": ({"encoder": lambda x: (x[:, :D] * math.nan, x[:, :D])}, "finite outputs"),
    "another latent size": ({"encoder": nn.Linear(P, 2 * D + 2)}, r"of shape \(B, 2\) each.* got \(6, 3\)"),
    "an odd size": ({"encoder": nn.Linear(P, 3)}, r"one tensor \(B, 2 D\), got a tensor \(6, 3\)"),
    "three outputs": ({"encoder": lambda x: (x, x, x)}, "got a tuple of 3"),
    "fewer answers than points": ({"encoder": lambda x: (x[:2, :D], x[:2, :D])}, "for each of 6 points, got 2"),
    "another data size": ({"decoder": nn.Linear(D, P + 1)}, r"the shape of the data, \(6, 5\).* got \(6, 6\)"),
    "pairs of decoders": ({"decoder": lambda z: (z, z)}, "expected a decoder that gives a tensor"),
    "probs above 1": (
        {"decoder": lambda z: z.new_full((len(z), P), 1.5), "likelihood": "bernoulli", "decoder_gives": "probs"},
        r"in \[0, 1\], got values from 1.5",
    ),
    "probs for logits": (
        {"decoder": nn.Sequential(nn.Linear(D, P), nn.Sigmoid()), "likelihood": "bernoulli", "decoder_gives": "logits"},
        "say decoder_gives='probs'",
    ),
    "dropout": ({"encoder": nn.Sequential(nn.Dropout(), nn.Linear(P, 2 * D))}, "Dropout in training mode"),
    "batch norm": ({"decoder": nn.Sequential(nn.Linear(D, P), NORM)}, "BatchNorm1d in training mode: call .eval"),
    "statistics of the batch": (
        {"decoder": nn.Sequential(nn.Linear(D, P), NORM_WITHOUT)},
        "BatchNorm1d without running statistics",
    ),
    "hidden dropout": (
        {"encoder": lambda x: F.dropout(torch.cat([x[:, :D]] * 2, -1) + 1)},
        "a guide in evaluation mode, got dropout in training mode",
    ),
    "noise": (
        {"encoder": lambda x: torch.cat([x[:, :D]] * 2, -1) + torch.rand(len(x), 1)},
        "the encoder gives a point another answer",
    ),
    "hidden batch norm": (
        {"decoder": lambda z: (z - z.mean(0)).repeat(1, 3)[:, :P]},
        "the decoder gives a point another",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_in_one_line(case):
    options, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as caught:
        made(X, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "case", ["a negative scale", "a spread without a name", "probs for logits", "hidden batch norm"]
)
def test_diagnose_says_the_same(case):
    options, words = REFUSED[case]
    options = {"encoder_gives": "log_variance"} | ({} if "likelihood" in options else {"scale": 1.0}) | options
    parts = [
        options.pop(n, d)
        for n, d in (("encoder", nn.Linear(P, 2 * D)), ("decoder", nn.Linear(D, P)), ("likelihood", "gaussian"))
    ]
    with pytest.raises(ValueError, match=words):
        ab.diagnose(*ab.vae(*parts, D, **options), X, settings=QUICK)


def test_data_that_a_bernoulli_cannot_have():
    with pytest.raises(ValueError, match=r"expected data in \[0, 1\] with this likelihood, got values from -1"):
        made(2 * X - 1, likelihood="bernoulli", decoder_gives="logits")


def test_a_likelihood_of_ones_own_of_another_shape():
    with pytest.raises(ValueError, match=r"likelihood of the shape of the data, \(6, 5\), got \(6, 2\)"):
        made(X, likelihood=lambda out: dist.Normal(out[:, :2], 1.0))
    with pytest.raises(
        ValueError, match=r"a distribution of pyro.distributions.* got torch.distributions.normal.Normal"
    ):
        made(X, likelihood=lambda out: torch.distributions.Normal(out, 1.0))


def test_no_network():
    with pytest.raises(TypeError, match="expected encoder as a function, got 3"):
        ab.vae(3, nn.Linear(D, P), "gaussian", D, scale=1.0)


WARNED = {
    "grey": ({}, "grey values under a Bernoulli likelihood"),
    "rounded": (
        {"decoder": lambda z: z.new_zeros(len(z), P), "decoder_gives": "probs"},
        "each such entry counts -15.9 nats",
    ),
    "wide": ({"encoder": lambda x: (x[:, :D], x[:, :D] + 1)}, "every log_variance .* is above 0"),
}


@pytest.mark.parametrize("case", WARNED)
def test_what_looks_wrong_is_said_once(case, caplog):
    options, words = WARNED[case]
    options = {"likelihood": "bernoulli", "decoder_gives": "logits"} | options
    encoder = options.pop("encoder", nn.Linear(P, 2 * D))
    decoder = options.pop("decoder", nn.Linear(D, P))
    likelihood = options.pop("likelihood")
    pair = ab.vae(encoder, decoder, likelihood, D, encoder_gives="log_variance", **options)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            ab.elbo(*pair, 0.5 * X if case == "grey" else X)
    assert len([r for r in caplog.records if re.search(words, r.getMessage())]) == 1
