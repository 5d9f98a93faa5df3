"""Three convolutions with batch norm: shapes, what a point's answer depends on, and the state that training moves."""

from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from torch import nn
from wing import CPU, TINY, QuickLab, cut, go, one, resume, stop_at, values

from amortized_bayes.configuration import SettingError
from amortized_bayes.convolutions import DeepConvolutionalDecoder, DeepConvolutionalEncoder
from amortized_bayes.data import DATASETS
from amortized_bayes.experiments.encoders import fit_encoder
from amortized_bayes.experiments.settings import DEEP_CHANNELS, VAEConfig, model_factors, same_model
from amortized_bayes.experiments.setup import build_vae, in_training, vae_options
from amortized_bayes.experiments.trained import load_trained
from amortized_bayes.inference.svi import Training
from amortized_bayes.results import RunFolder, find_run
from amortized_bayes.weights import log_weights

CONFIG = replace(TINY, network="deep-convolutional", hidden=(200, 200), num_train=60, num_test=20, batch_size=20)
CHANNELS = (2, 3, 4)


@pytest.fixture
def images(place, monkeypatch):
    """A model with few channels, of a file of images of 3 x 24 x 24 grey values."""
    for size in DEEP_CHANNELS:
        monkeypatch.setitem(DEEP_CHANNELS, size, CHANNELS)
    grey = np.random.default_rng(0).integers(0, 256, (80, 3, 24, 24), np.uint8)
    np.savez(place / "colours.npz", train=grey[:60], test=grey[60:])
    return replace(CONFIG, dataset=str(place / "colours.npz"))


def norms(module):
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def statistics(*modules):
    return [m.running_mean.clone() for module in modules for m in norms(module)]


@pytest.mark.parametrize("shape", [(c, h, w) for c in (1, 3) for h, w in ((28, 28), (32, 32), (22, 31))])
def test_shapes(shape):
    size = shape[0] * shape[1] * shape[2]
    encoder = DeepConvolutionalEncoder(shape, CHANNELS, 10).eval()
    decoder = DeepConvolutionalDecoder(5, CHANNELS[::-1], shape).eval()
    assert encoder(torch.zeros(6, size)).shape == (6, 10)
    assert decoder(torch.zeros(2, 6, 5)).shape == (2, 6, size)


@pytest.mark.parametrize("shape", [(c, h, w) for c in (1, 3) for h, w in ((28, 28), (32, 32), (22, 31))])
def test_every_pixel_follows_the_latents(shape):
    """Rows that a transposed convolution leaves out, filled with zeros, would end in a border of one grey."""
    decoder = DeepConvolutionalDecoder(5, CHANNELS[::-1], shape).eval()
    draws = decoder(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)))
    assert (draws.std(0) > 1e-4 * draws.std()).all()


def test_sizes_are_the_published_ones():
    encoder = DeepConvolutionalEncoder((3, 32, 32), (64, 128, 256), 100)
    decoder = DeepConvolutionalDecoder(50, (256, 128, 64), (3, 32, 32))
    assert decoder.small == (256, 2, 2)
    assert [m.out_channels for m in decoder.convolutions] == [128, 64, 3]
    assert [m.kernel_size for m in encoder.convolutions] == [(4, 4)] * 3
    assert encoder.dense[0].in_features == 1024


@pytest.mark.parametrize(
    ("shape", "channels", "says"),
    [
        ((1, 8, 8), CHANNELS, "22 or more pixels on each side for three convolutions, got 8 by 8"),
        ((1, 28, 21), CHANNELS, "got 28 by 21"),
        ((1, 28, 28), (2, 3), r"channels of three convolutions, got \[2, 3\]"),
    ],
)
def test_what_does_not_fit_is_refused(shape, channels, says):
    with pytest.raises(ValueError, match=says):
        DeepConvolutionalEncoder(shape, channels, 10)
    with pytest.raises(ValueError, match=says):
        DeepConvolutionalDecoder(5, channels, shape)


def test_the_encoder_sees_colours_and_places():
    """Each input moves the answer; exchanging two channels, or turning the image, changes it."""
    encoder = DeepConvolutionalEncoder((3, 24, 24), CHANNELS, 3).eval()
    x = torch.rand(1, 3 * 24 * 24, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoder(x).square().sum(), x)
    seen = gradient.reshape(3, 24, 24)[:, :22, :22]  # of 24 the last two are left out: 24 -> 11 -> 4 -> 1
    assert (seen != 0).all()
    image = x.reshape(3, 24, 24)
    for other in (image.flip(0), image.transpose(1, 2)):
        assert not torch.allclose(encoder(other.reshape(1, -1)), encoder(x), atol=1e-6)


def test_cifar_has_these_networks_and_others_do_not():
    assert VAEConfig(dataset="cifar10").architecture == "deep-convolutional"
    assert VAEConfig(dataset="cifar10").pixels == "threshold"
    assert VAEConfig(dataset="cifar10", network="dense").architecture == "dense"
    assert {name for name, known in DATASETS.items() if known.network != "dense"} == {"cifar10", "celeba"}
    assert same_model(VAEConfig(), VAEConfig(network="dense"))
    assert same_model(VAEConfig(dataset="cifar10", hidden=(3,)), VAEConfig(dataset="cifar10"))
    assert model_factors(VAEConfig(dataset="cifar10"))["network"] == "deep-convolutional"
    with pytest.raises(SettingError, match="--decoder point for deep-convolutional networks"):
        VAEConfig(dataset="cifar10", decoder="bayesian")


def test_a_point_stands_alone_where_it_is_measured_and_not_in_training(images):
    data = QuickLab(None, CPU).images(images)
    model, guide = build_vae(images, data)
    guide.encoder.dense[0].reset_parameters()  # encoders start as constants
    x = data.train[:8].float()

    def found(points):
        torch.manual_seed(1)
        z = torch.zeros(len(points), 3)
        with torch.no_grad():
            return guide.encoder(points)[:2], model.decode(z + points[:, :3], model.weights())[:2]

    for a, b in zip(found(x), found(x[:2]), strict=True):
        torch.testing.assert_close(a, b)
    with in_training(model, guide):
        assert not any(torch.allclose(a, b) for a, b in zip(found(x), found(x[:2]), strict=True))
    assert [model.training, guide.training] == [False, False]


def test_statistics_move_in_training_alone_and_captured_or_not(images):
    data = QuickLab(None, CPU).images(images)
    after = []
    for capture in ("off", "replay"):
        model, guide = build_vae(images, data)
        before = statistics(model, guide)
        options = replace(vae_options(images), capture=capture)
        assert options.average is None
        training = Training(model, guide, data.train, options)
        with pyro.validation_enabled(False):
            log_weights(model, guide, data.train[:8].float(), num_particles=2)
        assert all(map(torch.equal, statistics(model, guide), before))
        with in_training(model, guide):
            list(training.run(4))
        assert (training.captured is not None) == (capture == "replay")
        assert not any(map(torch.equal, statistics(model, guide), before))
        after.append(training.state())
    for name in after[0]:
        if name != "seconds":
            torch.testing.assert_close(after[0][name], after[1][name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_compiled_step_moves_statistics_too(images):
    data = QuickLab(None, CPU).images(images)
    after = []
    for capture in ("off", "inductor"):
        programs = build_vae(images, data)
        training = Training(*programs, data.train, replace(vae_options(images), capture=capture))
        with in_training(*programs):
            list(training.run(4))
        assert capture == "off" or training.captured.backend == "inductor"
        after.append(statistics(*programs))
    for a, b in zip(*after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)
        assert a.abs().max() > 1e-3


@pytest.mark.slow
def test_a_model_is_resumed_with_its_statistics(images, place):
    whole = go("train", images, place / "whole")
    cut("train", images, place / "cut", stop_at("training", 3))
    rest = resume("train", place / "cut")
    found, other = (values(folder.rows()) for folder in (whole, rest))
    assert {k for k in found if "seconds" not in k[0]} == {k for k in other if "seconds" not in k[0]}
    final = [one(folder.rows(), "final_elbo", split="test")["value"] for folder in (whole, rest)]
    assert final[0] == final[1]
    trained = load_trained(RunFolder.open(find_run(place / "cut", "latest", "train")), QuickLab(place, CPU).images)
    assert not trained.model.training
    assert all(m.num_batches_tracked == 6 for m in norms(trained.model))


def test_a_frozen_decoder_keeps_its_statistics(images, place):
    go("train", images, place)
    trained = load_trained(RunFolder.open(find_run(place, "latest", "train")), QuickLab(place, CPU).images)
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    for encoder in ("linear", "small"):
        guide = fit_encoder(trained, replace(images, encoder=encoder), QuickLab(place, CPU))
        assert len(norms(guide)) == (0 if encoder == "linear" else 3)
        assert all(m.num_batches_tracked == 6 for m in norms(guide))
        assert not guide.training
    assert all(torch.equal(value, before[name]) for name, value in trained.model.state_dict().items())
