"""Images, models and guides as experiments build them from settings."""

from dataclasses import replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import pytest
import torch

from amortized_bayes.data import DATASETS, DataUnavailable, binarize, load_dataset
from amortized_bayes.diagnosis.run import DiagnosisSettings, diagnose
from amortized_bayes.evaluation.settings import AISSettings
from amortized_bayes.experiments.settings import ENCODERS, VAEConfig
from amortized_bayes.experiments.setup import (
    build_decoder,
    build_model,
    build_vae,
    find_labels,
    load_images,
    load_vae_images,
    vae_options,
)
from amortized_bayes.inference.optimize import LocalSettings
from amortized_bayes.inference.svi import Training
from amortized_bayes.likelihoods import with_levels
from amortized_bayes.types import Dataset, Images

CPU = torch.device("cpu")
TINY = VAEConfig(
    dataset="digits",
    encoder="small",
    latent_dim=3,
    hidden=(16,),
    epochs=2,
    batch_size=50,
    early_stopping=False,
    num_train=200,
    num_test=50,
)


class SweepLike(NamedTuple):
    """What the sweep's model is built from."""

    likelihood: str = "bernoulli"
    gaussian_scale: str = "fixed"
    latent_dim: int = 3
    hidden: tuple[int, ...] = (16,)
    decoder: Literal["point", "bayesian"] = "bayesian"
    weight_prior: Literal["fan-in", "standard"] = "fan-in"


def digits(seed=0):
    return load_dataset("digits", seed=seed)


def vae_images(config):
    return load_vae_images(config, load_dataset(config.dataset, seed=config.seed), CPU)


def sweep_images(likelihood="bernoulli", seed=0, source=None, **options):
    sizes = {"num_train": 200, "num_test": 50} | options
    return load_images(source or digits(seed), likelihood=likelihood, seed=seed, device=CPU, **sizes)


def equal(tensor, array):
    return tensor.numpy().dtype == array.dtype and np.array_equal(tensor.numpy(), array)


def colour_file(folder, dtype=np.uint8, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (120, 8, 8, channels)).astype(dtype)
    path = folder / "colour.npz"
    np.savez(path, train=pixels[:100], test=pixels[100:])
    return str(path)


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 4])
def test_each_split_is_drawn_from_its_own_rows_by_its_own_stream(seed):
    source, data = digits(seed), sweep_images(seed=seed)
    assert equal(data.train, binarize(source.train.pixels[:200], 16, seed, "train"))
    assert equal(data.test, binarize(source.test.pixels[:50], 16, seed, "test"))
    assert equal(data.grey_train, source.train.pixels[:200].astype(np.float32) / 16)
    assert equal(data.grey_test, source.test.pixels[:50].astype(np.float32) / 16)
    assert (data.name, data.image_shape, data.validation) == ("digits", (1, 8, 8), None)
    assert data.fitted[0] is data.train
    assert data.fitted[1] is None


@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian-learned", "binomial"])
def test_other_likelihoods_take_grey_values_as_they_are(likelihood):
    source, data = digits(), sweep_images(likelihood)
    assert equal(data.train, source.train.pixels[:200].astype(np.float32) / 16)
    assert equal(data.test, source.test.pixels[:50].astype(np.float32) / 16)
    assert ((data.train > 0) & (data.train < 1)).any()  # no bits
    assert data.grey_train is data.train
    assert data.grey_test is data.test
    config = replace(TINY, likelihood="gaussian", gaussian_scale="learned", early_stopping=True)
    vae = vae_images(config)
    assert torch.equal(vae.train, data.train)
    assert vae.validation is not None
    assert equal(vae.validation, source.train.pixels[200:350].astype(np.float32) / 16)
    assert vae.fitted[0] is vae.train
    assert vae.fitted[1] is None


def test_sweep_and_vae_see_the_same_bits():
    assert torch.equal(vae_images(TINY).train, sweep_images().train)
    assert torch.equal(vae_images(TINY).test, sweep_images().test)
    assert torch.equal(vae_images(replace(TINY, seed=4)).train, sweep_images(seed=4).train)


def test_validation_images_are_held_out_of_training():
    whole = vae_images(replace(TINY, num_train=1_500))
    data = vae_images(replace(TINY, num_train=1_500, early_stopping=True))
    assert data.validation is not None
    assert (len(data.train), len(data.validation)) == (1_350, 150)  # a tenth at most
    assert torch.equal(torch.cat([data.train, data.validation]), whole.train)
    assert torch.equal(data.test, whole.test)
    few = vae_images(replace(TINY, early_stopping=True, num_validation=7))
    assert few.validation is not None
    assert torch.equal(few.validation, whole.train[200:207])
    assert len(few.grey_train) == 200


@pytest.mark.parametrize("binarization", ["fixed", "dynamic", "threshold"])
def test_how_bits_are_drawn(binarization):
    data = vae_images(replace(TINY, binarization=binarization))
    source = digits().train.pixels[:200]
    if binarization == "threshold":
        assert equal(data.train, (source > 8).astype(np.uint8))
    else:
        assert torch.equal(data.train, vae_images(TINY).train)
    assert data.drawn_anew == (binarization == "dynamic")
    fitted, draw = data.fitted
    if binarization != "dynamic":
        assert draw is None
        assert fitted is data.train
        return
    assert draw is not None
    assert fitted is data.grey_train
    draws = torch.stack([draw(fitted) for _ in range(200)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert (draws.mean(0) - fitted).abs().max() < 0.2  # 5.6 standard errors


def test_only_as_many_images_as_there_are():
    data = sweep_images(num_train=10**6, num_test=10**6)
    assert (len(data.train), len(data.test)) == (1500, 297)
    with pytest.raises(ValueError, match="expected --batch-size of at most 200 training images, got 201"):
        vae_images(replace(TINY, batch_size=201))


@pytest.mark.parametrize("place", ["train", "test"])
def test_values_that_are_not_grey_need_a_likelihood_that_takes_them(tmp_path, place):
    rows = {"train": np.zeros((60, 4), np.float32), "test": np.zeros((9, 4), np.float32)}
    rows[place][5] = [-0.5, 0.5, 1.5, 2.5]
    np.savez(tmp_path / "real.npz", **rows)
    source = load_dataset(str(tmp_path / "real.npz"))
    says = (
        r"expected uint8 or values in \[0, 1\] for --likelihood bernoulli, got -0.5 to 2.5 .*use --likelihood gaussian"
    )
    with pytest.raises(ValueError, match=says):
        sweep_images(source=source)
    data = sweep_images("gaussian", source=source)
    found = data.train if place == "train" else data.test
    assert (found.min().item(), found.max().item()) == (-0.5, 2.5)


@pytest.mark.parametrize("place", ["train", "test"])
@pytest.mark.parametrize(("value", "said"), [(0.3, "0.3"), (-1, "-1"), (2, "2")])
def test_values_between_grey_levels_are_no_counts(tmp_path, place, value, said):
    rows = {"train": np.ones((60, 4), np.float32), "test": np.zeros((9, 4), np.float32)}
    np.savez(tmp_path / "bits.npz", **rows)
    bits = sweep_images("binomial", source=load_dataset(str(tmp_path / "bits.npz")))
    assert (bits.train.unique().tolist(), bits.test.unique().tolist(), bits.source.grey_levels) == ([1.0], [0.0], 1)
    rows[place][5, 2] = value
    np.savez(tmp_path / "real.npz", **rows)
    source = load_dataset(str(tmp_path / "real.npz"))
    says = f"expected uint8 or whole grey levels from 0 to 1 for --likelihood binomial, got {said} in .*gaussian$"
    with pytest.raises(ValueError, match=says):
        sweep_images("binomial", source=source)


# Labels ---------------------------------------------------------------------------------------------------------------


def test_labels_are_those_of_the_points_asked_for():
    data, places = vae_images(TINY), np.array([7, 0, 31])
    for split in ("train", "test"):
        labels = find_labels(data, split, places, lambda name: pytest.fail(f"{name} is not needed"))
        np.testing.assert_array_equal(labels, getattr(data.source, split).labels[places])


def test_drawn_images_take_the_labels_of_their_origins(monkeypatch):
    origin, places = digits(seed=3), np.arange(20)
    bits = [binarize(images.pixels, 16, 0, "drawn")[::-1] for images in (origin.train, origin.test)]
    train, test = (Images(np.ascontiguousarray(b), None) for b in bits)
    drawn = Dataset("drawn", train, test, (1, 8, 8), 1, {}, "")
    monkeypatch.setitem(DATASETS, "drawn", DATASETS["binarized-mnist"]._replace(labels_from="grey"))
    grey = origin._replace(train=_bright(origin.train), test=_bright(origin.test))
    data = sweep_images(source=drawn)
    found = find_labels(data, "train", places, {"grey": grey}.__getitem__)
    assert origin.train.labels is not None
    assert (found == origin.train.labels[::-1][places]).mean() > 0.8  # 64 pixels are few

    def refuse(name):
        raise DataUnavailable(name)

    assert find_labels(data, "train", places, refuse) is None
    monkeypatch.delitem(DATASETS, "drawn")
    assert find_labels(data, "train", places, refuse) is None


def _bright(images):
    return Images((images.pixels.astype(int) * 255 // 16).astype(np.uint8), images.labels)


# Models ---------------------------------------------------------------------------------------------------------------


def names(module):
    return [name for name, _ in module.named_parameters()]


def test_parameters_keep_their_names():
    """Checkpoints of earlier runs hold these."""
    layers = ["0.weight", "0.bias", "1.weight", "1.bias"]
    model, guide = build_vae(TINY, vae_images(TINY))
    assert names(model) == [f"network.{name}" for name in layers]
    assert names(guide) == [f"encoder.{name}" for name in layers]
    config = replace(TINY, network="convolutional")
    model, guide = build_vae(config, vae_images(config))
    convolutions = [f"{name}.{kind}" for name in ("first", "second") for kind in ("weight", "bias")]
    assert sorted(names(model)) == sorted(f"network.{n}" for n in [*(f"dense.{x}" for x in layers), *convolutions])
    assert sorted(names(guide)) == sorted(f"encoder.{n}" for n in [*(f"dense.{x}" for x in layers), *convolutions])


@pytest.mark.parametrize(
    ("options", "model_sum", "guide_sum"),
    [
        ({}, 152.93391050584614, 409.30978928506374),
        ({"network": "convolutional"}, 3137.2939913712835, 1755.307935511626),
        ({"family": "realnvp-contextual", "seed": 3}, 153.5105963649694, 2177.859439223273),
        ({"decoder": "bayesian"}, 0.0, 5883.93378938036),
    ],
)
def test_starts_are_as_ever(options, model_sum, guide_sum):
    """Frozen sums: results of a seed stay the same."""
    config = replace(TINY, **options)
    built = build_vae(config, vae_images(config))
    sums = [sum(p.double().abs().sum().item() for p in module.parameters()) for module in built]
    assert sums == pytest.approx([model_sum, guide_sum], rel=1e-6)


def test_the_start_depends_on_no_activation_and_no_likelihood():
    plain = [m.state_dict() for m in build_vae(TINY, vae_images(TINY))]
    for options in ({"activation": "tanh"}, {"likelihood": "gaussian"}):
        config = replace(TINY, **options)
        data = vae_images(config)
        model, guide = build_vae(config, data)
        for before, after in zip(plain, (model.state_dict(), guide.state_dict()), strict=True):
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before)
    config = replace(TINY, activation="tanh")
    model, z = build_decoder(config, vae_images(config)), torch.randn(4, 3)
    w0, b0, w1, b1 = (model.weights()[name] for name in ("0.weight", "0.bias", "1.weight", "1.bias"))
    torch.testing.assert_close(model.decode(z, model.weights()), torch.tanh(z @ w0.T + b0) @ w1.T + b1)


@pytest.mark.parametrize("network", ["dense", "convolutional"])
def test_the_activation_is_that_of_all_networks(network):
    config = replace(TINY, network=network)
    data = vae_images(config)
    latents, x = torch.randn(4, 3), data.train[:4].float()
    answers = []
    for activation in ("elu", "tanh"):
        model, guide = build_vae(replace(config, activation=activation), data)
        networks = [module for module in (*model.modules(), *guide.modules()) if hasattr(module, "activation")]
        assert len(networks) == (2 if network == "dense" else 4)  # convolutional ones have dense layers in them
        assert {module.activation for module in networks} == {activation}
        with torch.no_grad():
            guide.encoder[-1].weight.normal_() if network == "dense" else guide.encoder.dense[-1].weight.normal_()
        answers.append((model.decode(latents, model.weights()), guide.locate(x, torch.arange(4))))
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(*answers, strict=True))


@pytest.mark.parametrize("hidden", [(), (8,), (8, 7, 6, 5)])
def test_decoders_of_any_depth(hidden):
    config = replace(TINY, hidden=hidden)
    model = build_decoder(config, vae_images(config))
    sizes = [3, *hidden, 64]
    expected = [(b, a) for a, b in pairwise(sizes)]
    assert [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")] == expected


def test_encoders_have_the_layers_of_their_names():
    for encoder, widths in ENCODERS.items():
        _, guide = build_vae(replace(TINY, encoder=encoder), vae_images(TINY))
        shapes = [p.shape[0] for name, p in guide.named_parameters() if name.endswith("weight")]
        assert shapes == [*widths, 2 * 3]


@pytest.mark.parametrize("decoder", ["point", "bayesian"])
def test_the_sweeps_model_is_the_same_for_all_guides_of_a_seed(decoder):
    config, data = SweepLike(decoder=decoder), sweep_images()
    (first, sites), (second, others) = build_model(config, data, 5), build_model(config, data, 5)
    other, far = build_model(config, data, 6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(sites.shared_draw[name], others.shared_draw[name]) for name in sites.shared_draw)
    if decoder == "point":
        assert not torch.equal(next(first.parameters()), next(other.parameters()))
    else:
        assert not torch.equal(sites.shared_draw["decoder.0.weight"], far.shared_draw["decoder.0.weight"])
    assert first.num_data == 200


@pytest.mark.parametrize(
    ("likelihood", "scale", "name"),
    [
        ("gaussian", "learned", "gaussian-learned"),
        ("bernoulli", "learned", "bernoulli"),
        ("binomial", "learned", "binomial"),
    ],
)
def test_models_have_the_likelihood_that_two_flags_choose(likelihood, scale, name):
    model, _ = build_model(SweepLike(likelihood, scale, weight_prior="standard"), sweep_images(likelihood), 0)
    assert model.likelihood == with_levels(name, 16)
    assert {scale for _, scale in model.priors.values()} == {1.0}
    config = replace(TINY, likelihood=likelihood, gaussian_scale=scale)
    assert build_decoder(config, vae_images(config)).likelihood == model.likelihood


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "binomial"])
@pytest.mark.parametrize("network", ["dense", "convolutional"])
def test_colour_images_train(tmp_path, network, likelihood):
    config = replace(TINY, dataset=colour_file(tmp_path), network=network, likelihood=likelihood)
    data = vae_images(config)
    assert data.image_shape == (3, 8, 8)
    with np.load(config.dataset) as arrays:
        test = arrays["test"].transpose(0, 3, 1, 2).reshape(20, -1).astype(np.float32) / 255
    assert {row.tobytes() for row in data.grey_test.numpy()} == {row.tobytes() for row in test}
    training = Training(*build_vae(config, data), data.fitted[0], vae_options(config), 0)
    losses = [record.elbo for record in training.run(60, range(61))]
    assert np.mean(losses[-10:]) > np.mean(losses[:10])


def test_vectors_have_no_convolutions(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((60, 64), np.float32))
    config = replace(TINY, dataset=str(tmp_path / "rows.npy"), network="convolutional")
    with pytest.raises(
        ValueError, match=r"expected images for --network convolutional, got the vectors of .*rows\.npy"
    ):
        build_vae(config, vae_images(config))


@pytest.mark.parametrize(
    ("likelihood", "scale"), [("gaussian", "fixed"), ("gaussian", "learned"), ("binomial", "fixed")]
)
@pytest.mark.slow
def test_a_vae_of_grey_values_is_diagnosed(likelihood, scale):
    """ELBO, q*, AIS and the certificate, whose points are drawn from the model, of a model of grey values."""
    config = replace(TINY, likelihood=likelihood, gaussian_scale=scale, epochs=200, learning_rate=1e-2)
    data = vae_images(config)
    model, guide = build_vae(config, data)
    training = Training(model, guide, data.fitted[0], vae_options(config), 0)
    list(training.run(config.epochs * training.batches.per_epoch))
    training.settle()
    if scale == "learned":
        assert model.log_scale is not None
        residual = (
            data.train - model.decode(guide.locate(data.train, torch.arange(200))[:, :3], model.weights())
        ).std()
        assert model.log_scale.exp().item() == pytest.approx(residual.item(), rel=0.2)
    for module in (model, guide):
        module.requires_grad_(False)
    ais = AISSettings(num_chains=16, num_temperatures=100, num_leapfrog=3)
    search = LocalSettings(max_steps=200)
    report = diagnose(model, guide, data.train[:20], settings=DiagnosisSettings(ais=ais, local=search))
    means = report.summary()["mean"]
    assert means["elbo"] <= means["elbo_star"] + 0.05
    assert means["elbo_star"] <= means["log_p_lower"] + 0.1
    assert means["iwae"] == pytest.approx(means["log_p_lower"], abs=0.3)
    assert report.certificate is not None
    assert abs(report.certificate.mean_gap) < 0.2
