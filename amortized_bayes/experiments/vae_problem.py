"""Data, model and guide of a VAE, from its configuration: where experiments on gaps choose concrete classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from amortized_bayes.data import DataUnavailable, binarize, load_dataset
from amortized_bayes.data.labels import labels_of_binarized
from amortized_bayes.experiments.vae import CHANNELS, ENCODERS, VAEConfig
from amortized_bayes.guides import Amortized, FlowGuide, FlowSettings, LocalGuide, MeanField
from amortized_bayes.guides.local import initial_parameters
from amortized_bayes.inference.options import FitOptions, burda, cosine
from amortized_bayes.models import DeepGenerative
from amortized_bayes.networks import MLP, ConvolutionalDecoder, ConvolutionalEncoder, start_at
from amortized_bayes.seeding import torch_seed
from amortized_bayes.sites import latent_sites
from amortized_bayes.types import Dataset, LatentSite

__all__ = ["VAEData", "build_encoder", "build_vae", "find_labels", "load_vae_data", "vae_options"]

DENSE_WIDTH = 256
"""Of the dense layers beside the convolutions."""
SCHEDULES: dict[str, Callable[[float], float] | None] = {"burda": burda, "cosine": cosine, "constant": None}


class VAEData(NamedTuple):
    """Binary images, ``(N, P)`` of ``uint8`` each, on the device.

    Args:
        name: of the data set.
        train: what the model is fitted to; drawn once by seed where the fit itself draws afresh.
        test: held out.
        validation: held out from the training images, or ``None``.
        grey: training images ``(N, P)`` of probabilities, where they are drawn afresh at each visit.
        image_shape: (height, width), or ``None``.
        source: the data set as it was loaded, its labels among it.
    """

    name: str
    train: Tensor
    test: Tensor
    validation: Tensor | None
    grey: Tensor | None
    image_shape: tuple[int, int] | None
    source: Dataset

    def draw_afresh(self, grey: Tensor) -> Tensor:
        """Pixels of a batch of probabilities, by torch's global generator."""
        return torch.bernoulli(grey)


def load_vae_data(config: VAEConfig, data_dir: Path | None, device: torch.device) -> VAEData:
    """Load and binarize a data set, and hold out validation images where they are asked for.

    Raises:
        ValueError: the data cannot be had, are no grey values, or are too few.
    """
    found = load_dataset(config.dataset, data_dir=data_dir, seed=config.seed)
    method = "threshold" if config.way_to_binarize == "threshold" else "sampled"
    held_out = min(config.num_validation, len(found.train.pixels) // 10) if config.early_stopping else 0
    count = min(config.num_train, len(found.train.pixels) - held_out)
    if count < config.batch_size:
        raise ValueError(f"expected --batch-size of at most {count} training images, got {config.batch_size}")
    pixels = found.train.pixels[: count + held_out]
    bits = binarize(pixels, found.grey_levels, config.seed, "train", method)
    test = binarize(found.test.pixels[: config.num_test], found.grey_levels, config.seed, "test", method)
    grey = None
    if config.way_to_binarize == "dynamic":
        grey = torch.from_numpy(pixels[:count].astype(np.float32) / np.float32(found.grey_levels)).to(device)
    return VAEData(
        name=found.name,
        train=torch.from_numpy(bits[:count]).to(device),
        test=torch.from_numpy(test).to(device),
        validation=torch.from_numpy(bits[count:]).to(device) if held_out else None,
        grey=grey,
        image_shape=found.image_shape,
        source=found,
    )


def find_labels(data: VAEData, split: str, points: np.ndarray, data_dir: Path | None) -> np.ndarray | None:
    """Labels of the points at places ``points`` of a split, ``(n,)``; ``None`` where there are none to be had."""
    images = getattr(data.source, split)
    if images.labels is not None:
        return images.labels[points]
    if data.name != "binarized-mnist":
        return None
    try:
        origin = getattr(load_dataset("mnist", data_dir=data_dir, download=False), split)
    except DataUnavailable:
        return None
    assert origin.labels is not None
    return labels_of_binarized(images.pixels[points], origin.pixels, origin.labels)


def build_vae(config: VAEConfig, data: VAEData) -> tuple[DeepGenerative, LocalGuide]:
    """Model and guide at their start, on the data's device.

    Raises:
        ValueError: images that the network cannot take.
    """
    device, observed, dim = data.train.device, data.train.shape[1], config.latent_dim
    torch.manual_seed(torch_seed(config.seed, "decoder"))
    network = None
    if config.network == "convolutional":
        first, second = CHANNELS["standard"]
        network = ConvolutionalDecoder(dim, DENSE_WIDTH, (second, first), _image_shape(config, data))
    model = DeepGenerative(
        observed,
        dim,
        config.hidden,
        len(data.train),
        bayesian=config.decoder == "bayesian",
        activation="elu",
        network=network,
    )
    model = model.to(device)
    sites = latent_sites(model, data.train[:2].float())
    shared = MeanField(sites.shared, locs=sites.shared_draw) if sites.shared else None
    return model, build_encoder(config, data, sites.local, shared).to(device)


def build_encoder(
    config: VAEConfig, data: VAEData, sites: Sequence[LatentSite], shared: nn.Module | None = None
) -> LocalGuide:
    """The guide alone, at its start: encoder and, for the richer families, flow."""
    torch.manual_seed(torch_seed(config.seed, "encoder", config.encoder, config.family))
    observed, num_data = data.train.shape[1], len(data.train)
    if config.family == "gaussian":
        return Amortized(sites, num_data, observed, encoder=_encoder(config, data, 0), shared=shared)
    settings = FlowSettings(config.family, num_flows=config.num_flows)
    encoder = _encoder(config, data, settings.context_dim)
    return FlowGuide(sites, num_data, observed, settings, encoder=encoder, shared=shared)


def _encoder(config: VAEConfig, data: VAEData, context_dim: int) -> nn.Module:
    """Network to locations and log scales, which starts as a constant, and to a context, which does not."""
    outputs = 2 * config.latent_dim + context_dim
    if config.network == "convolutional":
        shape = _image_shape(config, data)
        network = ConvolutionalEncoder(shape, CHANNELS[config.encoder], DENSE_WIDTH, outputs)
        last = network.dense[-1]
    else:
        network = MLP([data.train.shape[1], *ENCODERS[config.encoder], outputs], None, "elu")
        last = network[-1]
    assert isinstance(last, nn.Linear)
    start_at(last, initial_parameters(config.latent_dim))
    return network


def _image_shape(config: VAEConfig, data: VAEData) -> tuple[int, int]:
    if data.image_shape is None:
        raise ValueError(f"expected images for --network convolutional, got the vectors of {config.dataset}")
    return data.image_shape


def vae_options(config: VAEConfig) -> FitOptions:
    """How to fit it."""

    def rising(epochs: int) -> Callable[[float], float] | None:
        return (lambda done: min(1.0, done * config.epochs / epochs)) if epochs else None

    return FitOptions(
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        shared_learning_rate=config.learning_rate,
        local_reparametrization=config.decoder == "bayesian" and config.network == "dense",
        schedule=SCHEDULES[config.schedule],
        entropy_weight=rising(config.entropy_annealing),
        kl_weight=rising(config.kl_warm_up),
        adam_eps=1e-4,
    )
