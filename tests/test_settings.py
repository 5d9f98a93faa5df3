"""Settings of VAEs and of bounds: what is refused, which models are the same, what tells models apart in rows."""

import subprocess
import sys
from dataclasses import fields, replace
from typing import get_args, get_type_hints

import pytest
import tyro

from amortized_bayes.configuration import SettingError, load_config, to_mapping
from amortized_bayes.data import DATASETS
from amortized_bayes.experiments.bounds_settings import PAPER_BOUNDS, BoundsConfig
from amortized_bayes.experiments.settings import CHANNELS, ENCODERS, VAE_PRESETS, VAEConfig, model_factors, same_model
from amortized_bayes.likelihoods import CHOICES, LIKELIHOODS, with_scale
from amortized_bayes.results.encoding import yaml_bytes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"latent_dim": 0}, "expected --latent-dim of 1 or more, got 0"),
        ({"hidden": (20, 0)}, r"expected --hidden of 1 or more, got \[20, 0\]"),
        ({"epochs": 0}, "expected --epochs of 1 or more, got 0"),
        ({"num_train": 1}, "expected --num-train of 2 or more, got 1"),
        ({"num_test": 1}, "expected --num-test of 2 or more, got 1"),
        ({"seed": -1}, "expected --seed of 0 or more, got -1"),
        ({"learning_rate": 0.0}, "expected --learning-rate above 0, got 0.0"),
        ({"learning_rate": float("nan")}, "expected --learning-rate above 0, got nan"),
        ({"entropy_annealing": 151}, "expected --entropy-annealing of at most 60 epochs, got 151"),
        ({"kl_warm_up": 151}, "expected --kl-warm-up of at most 60 epochs, got 151"),
        ({"binarization": "dynamic"}, "--binarization fixed for binarized-mnist, .*; --dataset mnist has grey values"),
        ({"binarization": "threshold"}, "which is binary already, got 'threshold'"),
        ({"likelihood": "poisson"}, "expected --likelihood among 'bernoulli', 'gaussian', 'binomial', got 'poisson'"),
        ({"objective": "vae"}, "expected --objective"),
        ({"objective": "iwae", "num_particles": 1}, "expected --num-particles of 2 or more, got 1"),
        ({"objective": "iwae", "decoder": "bayesian"}, "expected --decoder point with --objective iwae"),
        ({"objective": "iwae", "kl_warm_up": 1}, "expected --kl-warm-up 0 with --objective iwae, .* got 1"),
        ({"objective": "rws", "entropy_annealing": 2}, "expected --entropy-annealing 0 with --objective rws"),
        ({"objective": "rws", "family": "realnvp"}, "expected --family gaussian with --objective rws"),
        ({"semi_amortized_steps": -1}, "expected --semi-amortized-steps of 0 or more, got -1"),
        ({"semi_amortized_steps": 1, "family": "planar"}, "--family gaussian with --semi-amortized-steps.*'planar'"),
        ({"semi_amortized_steps": 1, "dataset": "cifar10"}, "--semi-amortized-steps 0 for deep-convolutional"),
        ({"family": "bernoulli", "objective": "iwae"}, "expected --objective elbo without .* with --family bernoulli"),
        ({"family": "bernoulli", "kl_warm_up": 1}, "expected --objective elbo without .* with --family bernoulli"),
        ({"family": "bernoulli", "decoder": "bayesian"}, "expected --decoder point with --family bernoulli"),
        ({"family": "bernoulli", "semi_amortized_steps": 1}, "--family gaussian with --semi-amortized-steps"),
        *[
            ({"likelihood": "gaussian", "binarization": binarization}, f"--binarization auto .*got '{binarization}'")
            for binarization in ("fixed", "dynamic", "threshold")
        ],
    ],
)
def test_settings_that_cannot_be_run_are_refused_in_one_line(options, says):
    with pytest.raises(SettingError, match=says) as caught:
        VAEConfig(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"best_families": ("auxiliary", "gaussian")}, "expected --best-families that start with gaussian, each once"),
        ({"best_families": ()}, "that start with gaussian"),
        ({"best_families": ("gaussian", "planar", "planar")}, "each once"),
        ({"particles": 1}, "expected --particles of 2 or more, got 1"),
        ({"local_steps": 9}, "expected --local-steps of 10 or more, got 9"),
    ],
)
def test_bounds_that_cannot_be_estimated_are_refused(options, says):
    with pytest.raises(SettingError, match=says):
        BoundsConfig(**options)


@pytest.mark.parametrize(
    ("options", "pixels"),
    [
        ({}, "fixed"),
        ({"dataset": "fashion-mnist"}, "threshold"),
        ({"dataset": "fashion-mnist", "binarization": "fixed"}, "fixed"),
        ({"dataset": "mnist", "binarization": "dynamic"}, "dynamic"),
        ({"dataset": "mine.npz"}, "fixed"),
        ({"dataset": "fashion-mnist", "likelihood": "gaussian"}, "grey"),
        ({"dataset": "mnist", "likelihood": "gaussian", "gaussian_scale": "learned"}, "grey"),
    ],
)
def test_how_grey_values_become_pixels(options, pixels):
    assert VAEConfig(**options).pixels == pixels


def test_factors_name_the_model_and_what_is_unusual_about_it():
    plain = {"dataset": "binarized-mnist", "family": "gaussian", "encoder": "standard", "annealed": False, "seed": 0}
    assert model_factors(VAEConfig()) == plain
    assert model_factors(VAE_PRESETS["paper"]) == plain | {"annealed": True}
    unusual = VAEConfig(
        dataset="/some where/mine.npz",
        network="convolutional",
        decoder="bayesian",
        likelihood="gaussian",
        gaussian_scale="learned",
        kl_warm_up=3,
        seed=2,
    )
    assert model_factors(unusual) == plain | {
        "dataset": "mine.npz",
        "seed": 2,
        "network": "convolutional",
        "decoder": "bayesian",
        "likelihood": "gaussian-learned",
        "kl_warm_up": True,
    }
    assert "likelihood" not in model_factors(VAEConfig(gaussian_scale="learned"))
    climbs = VAEConfig(objective="iwae", num_particles=5, semi_amortized_steps=3)
    assert model_factors(climbs) == plain | {"objective": "iwae", "num_particles": 5, "semi_amortized_steps": 3}


IDLE = {
    "num_flows": 5,
    "gaussian_scale": "learned",
    "binarization": "fixed",
    "flow_hidden": 7,
    "num_particles": 9,
}
"""Settings without effect in the default configuration."""
OTHER = {
    **{"dataset": "digits", "network": "convolutional", "encoder": "wide", "family": "planar", "decoder": "bayesian"},
    **{"likelihood": "gaussian", "activation": "tanh", "schedule": "burda", "early_stopping": False, "hidden": (3,)},
    **{"learning_rate": 1.0, "objective": "iwae"},
}


@pytest.mark.parametrize("name", [field.name for field in fields(VAEConfig) if field.name != "keep_epochs"])
def test_models_are_the_same_where_all_that_has_an_effect_is(name):
    config, changes = VAEConfig(), IDLE | OTHER
    other = replace(config, **{name: changes[name] if name in changes else getattr(config, name) + 1})
    assert other != config
    assert same_model(config, other) == (name in IDLE)
    assert same_model(other, other)


@pytest.mark.parametrize(
    ("base", "change", "same"),
    [
        ({"family": "planar"}, {"num_flows": 5}, False),
        ({"family": "realnvp"}, {"flow_hidden": 7}, False),
        ({"likelihood": "gaussian"}, {"gaussian_scale": "learned"}, False),
        ({"early_stopping": False}, {"num_validation": 7}, True),
        ({"early_stopping": False}, {"keep_epochs": (1,)}, True),
        ({"early_stopping": False}, {"patience": 3}, True),
        ({"network": "convolutional"}, {"hidden": (3,)}, True),
        ({"objective": "rws"}, {"num_particles": 9}, False),
        ({"dataset": "fashion-mnist"}, {"binarization": "fixed"}, False),
        ({"dataset": "fashion-mnist"}, {"binarization": "threshold"}, True),
        ({"dataset": "mnist", "binarization": "fixed"}, {"binarization": "dynamic"}, False),
    ],
)
def test_settings_have_their_effect_where_they_have_one(base, change, same):
    config = VAEConfig(**base)
    assert same_model(config, replace(config, **change)) == same


@pytest.mark.parametrize(
    ("likelihood", "scale", "name"),
    [
        ("bernoulli", "fixed", "bernoulli"),
        ("bernoulli", "learned", "bernoulli"),
        ("gaussian", "fixed", "gaussian"),
        ("gaussian", "learned", "gaussian-learned"),
    ],
)
def test_two_flags_choose_a_likelihood(likelihood, scale, name):
    assert with_scale(likelihood, scale) == name
    assert name in LIKELIHOODS


def test_choices_of_flags_are_the_dictionaries():
    hints = get_type_hints(VAEConfig)
    assert get_args(hints["encoder"]) == tuple(ENCODERS)
    assert get_args(hints["likelihood"]) == CHOICES == ("bernoulli", "gaussian", "binomial")
    assert set(CHANNELS) < set(ENCODERS)


def test_flags_and_files_make_the_same_settings(tmp_path, capsys):
    flags = ["--hidden", "--encoder", "linear", "--likelihood", "gaussian", "--activation", "tanh"]
    config = tyro.cli(VAEConfig, args=flags)
    assert config == VAEConfig(hidden=(), encoder="linear", likelihood="gaussian", activation="tanh")
    (tmp_path / "config.yaml").write_bytes(yaml_bytes(to_mapping(config)))
    assert load_config(VAEConfig, tmp_path / "config.yaml") == config
    (tmp_path / "bounds.yaml").write_bytes(yaml_bytes(to_mapping(PAPER_BOUNDS)))
    assert load_config(BoundsConfig, tmp_path / "bounds.yaml") == PAPER_BOUNDS != BoundsConfig()
    with pytest.raises(SystemExit):
        tyro.cli(VAEConfig, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"{', '.join(DATASETS)}, or the path of an .npz or .npy file." in shown
    for field in fields(VAEConfig):  # each flag says what it is
        assert f"--{field.name.replace('_', '-')}" in shown
        assert f"{field.name}: " in (VAEConfig.__doc__ or "")


def test_settings_load_no_torch():
    code = "import sys, amortized_bayes.experiments.settings; sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
