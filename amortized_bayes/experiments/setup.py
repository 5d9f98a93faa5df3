"""Data, model and guide from settings: where experiments choose concrete classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from amortized_bayes.convolutions import DeepConvolutionalDecoder, DeepConvolutionalEncoder
from amortized_bayes.data import DATASETS, DataUnavailable, binarize
from amortized_bayes.data.labels import labels_of_binarized
from amortized_bayes.evaluation.bounds import MAX_ROWS
from amortized_bayes.experiments.fit_settings import FitSettings
from amortized_bayes.experiments.settings import BERNOULLI, CHANNELS, DEEP_CHANNELS, ENCODERS, VAEConfig
from amortized_bayes.flows import FlowSettings
from amortized_bayes.guides import Amortized, AmortizedBits, FlowGuide, MeanField
from amortized_bayes.guides.local import initial_parameters
from amortized_bayes.inference.options import FitOptions, burda, cosine
from amortized_bayes.inference.semi_amortized import OWN_STEPS, SemiAmortized
from amortized_bayes.likelihoods import LIKELIHOODS, with_levels, with_scale
from amortized_bayes.models import DeepGenerative, DeepGenerativeBits
from amortized_bayes.networks import MLP, ConvolutionalDecoder, ConvolutionalEncoder, start_at
from amortized_bayes.seeding import torch_seed
from amortized_bayes.sites import LatentSites, latent_sites
from amortized_bayes.types import Dataset, LatentSite

__all__ = [
    "ImageData",
    "averaging",
    "build_decoder",
    "build_encoder",
    "build_model",
    "build_vae",
    "check_pixels",
    "find_labels",
    "flow_settings",
    "in_training",
    "load_images",
    "load_vae_images",
    "rows_at_once",
    "taken_in_training",
    "vae_options",
]

T = TypeVar("T")
DENSE_WIDTH = 256
"""Of the dense layers beside the convolutions."""
SCHEDULES: dict[str, Callable[[float], float] | None] = {"burda": burda, "cosine": cosine, "constant": None}


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set as a model sees it; tensors are ``(N, P)`` each, on the device.

    Args:
        name: name of the data set.
        train: what the model is fitted to: bits (``uint8``) for a binary likelihood, else grey values in [0, 1] or
            reals (``float32``); drawn once by seed where the fit itself draws bits anew.
        test: held out.
        validation: held out from the training images, or ``None``.
        image_shape: (channels, height, width), or ``None`` for vectors.
        source: the data set as it was loaded, its labels and checksums among it.
        drawn_anew: the fit draws bits anew at each visit.
    """

    name: str
    train: Tensor
    test: Tensor
    validation: Tensor | None
    image_shape: tuple[int, int, int] | None
    source: Dataset
    drawn_anew: bool = False

    @cached_property
    def grey_train(self) -> Tensor:
        """Training images as they were: grey values in [0, 1], or reals."""
        return self._grey(self.source.train.pixels, self.train)

    @cached_property
    def grey_test(self) -> Tensor:
        """Test images, likewise."""
        return self._grey(self.source.test.pixels, self.test)

    @property
    def fitted(self) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
        """What a fit takes its batches from, and how it draws bits from them, if it does."""
        return (self.grey_train, torch.bernoulli) if self.drawn_anew else (self.train, None)

    def _grey(self, pixels: np.ndarray, seen: Tensor) -> Tensor:
        if seen.is_floating_point():
            return seen
        return torch.from_numpy(_grey_values(pixels[: len(seen)], self.source.grey_levels)).to(seen.device)


def load_images(
    source: Dataset,
    *,
    likelihood: str,
    seed: int,
    num_train: int,
    num_test: int,
    num_validation: int = 0,
    pixels: Literal["fixed", "dynamic", "threshold", "grey"] = "fixed",
    device: torch.device,
) -> ImageData:
    """Cut a shuffled data set to size and, for a binary likelihood, binarize it.

    Args:
        source: the data set, shuffled by ``seed``.
        likelihood: one of ``LIKELIHOODS``.
        seed: random seed for the bits.
        num_train: training images; all that are left by the validation images if there are fewer.
        num_test: test images; all if there are fewer.
        num_validation: images held out from the training images, which follow them; a tenth of all at most.
        pixels: how grey values become bits where the likelihood is binary.
        device: device of the tensors.

    Raises:
        ValueError: values outside [0, 1] for a binary likelihood, or between grey levels for one of counts.
    """
    check_pixels(source, likelihood)
    held_out = min(num_validation, len(source.train.pixels) // 10)
    count = min(num_train, len(source.train.pixels) - held_out)
    method = "threshold" if pixels == "threshold" else "sampled"
    binary = LIKELIHOODS[likelihood].binary

    def seen(split: str, rows: np.ndarray) -> Tensor:
        levels = source.grey_levels
        found = binarize(rows, levels, seed, split, method) if binary else _grey_values(rows, levels)
        return torch.from_numpy(found).to(device)

    train = seen("train", source.train.pixels[: count + held_out])
    return ImageData(
        name=source.name,
        train=train[:count],
        test=seen("test", source.test.pixels[:num_test]),
        validation=train[count:] if held_out else None,
        image_shape=source.image_shape,
        source=source,
        drawn_anew=binary and pixels == "dynamic",
    )


def load_vae_images(config: VAEConfig, source: Dataset, device: torch.device) -> ImageData:
    """Images of a VAE from its data set, shuffled by the configuration's seed.

    Raises:
        ValueError: as :func:`load_images`, or fewer images than a batch has.
    """
    data = load_images(
        source,
        likelihood=with_scale(config.likelihood, config.gaussian_scale),
        seed=config.seed,
        num_train=config.num_train,
        num_test=config.num_test,
        num_validation=config.num_validation if config.early_stopping else 0,
        pixels=config.pixels,
        device=device,
    )
    if len(data.train) < config.batch_size:
        raise ValueError(f"expected --batch-size of at most {len(data.train)} training images, got {config.batch_size}")
    return data


def check_pixels(source: Dataset, likelihood: str) -> None:
    """Refuse data that have no grey values where the likelihood is binary, and no grey levels where it is of counts.

    Raises:
        ValueError: values outside [0, 1], or between levels.
    """
    entry, splits = LIKELIHOODS[likelihood], (source.train.pixels, source.test.pixels)
    if entry.levels:
        _check_levels(source, splits, likelihood)
    if not entry.binary:
        return
    low, high = min(map(np.min, splits)) / source.grey_levels, max(map(np.max, splits)) / source.grey_levels
    if low < 0 or high > 1:
        raise ValueError(
            f"expected uint8 or values in [0, 1] for --likelihood {likelihood}, got {low:.3g} to {high:.3g} "
            f"in {source.source}; use --likelihood gaussian"
        )


def _check_levels(source: Dataset, splits: Sequence[np.ndarray], likelihood: str) -> None:
    levels = source.grey_levels
    for pixels in splits:
        bad = (pixels < 0) | (pixels > levels) | (pixels % 1 != 0)
        if bad.any():
            got = pixels[bad][0]
            raise ValueError(
                f"expected uint8 or whole grey levels from 0 to {levels} for --likelihood {likelihood}, got {got:.3g} "
                f"in {source.source}; use --likelihood gaussian"
            )


def find_labels(data: ImageData, split: str, places: np.ndarray, load: Callable[[str], Dataset]) -> np.ndarray | None:
    """Labels of the points at ``places`` of a split, ``(n,)``; ``None`` where there are none, or several of a point.

    Bits that were drawn from another data set's grey images, in another order, take their labels from there; ``load``
    loads that data set, and raises ``DataUnavailable`` where it would have to be downloaded.
    """
    images = getattr(data.source, split)
    if images.labels is not None:
        return images.labels[places] if images.labels.ndim == 1 else None
    known = DATASETS.get(data.name)
    if known is None or not known.labels_from:
        return None
    try:
        origin = getattr(load(known.labels_from), split)
    except DataUnavailable:
        return None
    return labels_of_binarized(images.pixels[places], origin.pixels, origin.labels)


def build_model(config: FitSettings, data: ImageData, seed: int) -> tuple[DeepGenerative, LatentSites]:
    """The sweep's model, and its latent sites with the start of q(theta), equal for all guides of a seed."""
    torch.manual_seed(torch_seed(seed, "start", data.name))
    model = _model(config, data, config.hidden, weight_prior=config.weight_prior)
    return model, latent_sites(model, data.train[:2].float())


def build_decoder(config: VAEConfig, data: ImageData) -> DeepGenerative:
    """The model of a VAE at its start, on the data's device.

    Raises:
        ValueError: images that the network cannot take.
    """
    torch.manual_seed(torch_seed(config.seed, "decoder"))
    hidden, size, activation = config.hidden, config.latent_dim, config.activation
    if config.architecture == "convolutional":
        first, second = CHANNELS["standard"]
        hidden = ConvolutionalDecoder(size, DENSE_WIDTH, (second, first), _image_shape(config, data), activation)
    elif config.architecture == "deep-convolutional":
        channels = DEEP_CHANNELS["standard"][::-1]
        hidden = DeepConvolutionalDecoder(size, channels, _image_shape(config, data), activation)
    return _model(config, data, hidden, activation=config.activation).eval()


def _model(
    config: FitSettings | VAEConfig, data: ImageData, hidden: Sequence[int] | nn.Module, **options: Any
) -> DeepGenerative:
    program = DeepGenerativeBits if getattr(config, "family", "") == BERNOULLI else DeepGenerative
    model = program(
        data.train.shape[1],
        config.latent_dim,
        hidden,
        len(data.train),
        likelihood=with_levels(with_scale(config.likelihood, config.gaussian_scale), data.source.grey_levels),
        bayesian=config.decoder == "bayesian",
        **options,
    )
    return model.to(data.train.device)


def build_vae(config: VAEConfig, data: ImageData) -> tuple[DeepGenerative, nn.Module]:
    """Model and guide of a VAE at their start, in evaluation mode, on the data's device.

    Raises:
        ValueError: images that the network cannot take.
    """
    model = build_decoder(config, data)
    if config.family == BERNOULLI:
        return model, build_encoder(config, data, model, ())
    sites = latent_sites(model, data.train[:2].float())
    shared = MeanField(sites.shared, locs=sites.shared_draw) if sites.shared else None
    return model, build_encoder(config, data, model, sites.local, shared)


def build_encoder(
    config: VAEConfig,
    data: ImageData,
    model: DeepGenerative,
    sites: Sequence[LatentSite],
    shared: nn.Module | None = None,
) -> nn.Module:
    """The guide alone, at its start, in evaluation mode: encoder and, for the richer families, flow.

    Per-image steps, where there are any, are on the ELBO of ``model``, which the guide does not own.
    """
    torch.manual_seed(torch_seed(config.seed, "encoder", config.encoder, config.family))
    device, observed, num_data = data.train.device, data.train.shape[1], len(data.train)
    if config.family == BERNOULLI:
        return AmortizedBits("z", _network(config, data, config.latent_dim)[0]).to(device).eval()
    if config.family != "gaussian":
        settings = flow_settings(config, config.family)
        encoder = _encoder(config, data, settings.context_dim)
        return FlowGuide(sites, num_data, observed, settings, encoder=encoder, shared=shared).to(device).eval()
    guide = Amortized(sites, num_data, observed, encoder=_encoder(config, data, 0), shared=shared)
    if config.semi_amortized_steps:
        guide = SemiAmortized(model, guide, config.semi_amortized_steps, seed=config.seed, **OWN_STEPS)
    return guide.to(device).eval()


@contextmanager
def in_training(*modules: nn.Module) -> Iterator[None]:
    """Put modules in training mode while inside the context, which batch norm alone of all layers here notices."""
    for module in modules:
        module.train()
    try:
        yield
    finally:
        for module in modules:
            module.eval()


def taken_in_training(records: Iterator[T], *modules: nn.Module) -> Iterator[T]:
    """What steps yield, the steps taken in training mode, and whoever looks at it in evaluation mode."""
    while True:
        with in_training(*modules):
            record = next(records, None)
        if record is None:
            return
        yield record


def flow_settings(config: VAEConfig, family: str) -> FlowSettings:
    """A flow family in the size of the model's own flow, for guides and for the best flow of each point alike."""
    return FlowSettings(family, num_flows=config.num_flows, hidden=(config.flow_hidden,) * 2)


def _encoder(config: VAEConfig, data: ImageData, context_dim: int) -> nn.Module:
    """Network to locations and log scales, which starts as a constant, and to a context, which does not."""
    network, last = _network(config, data, 2 * config.latent_dim + context_dim)
    start_at(last, initial_parameters(config.latent_dim))
    return network


def _network(config: VAEConfig, data: ImageData, outputs: int) -> tuple[nn.Module, nn.Linear]:
    """An encoder with so many outputs, and its last layer."""
    if config.architecture == "convolutional" and config.encoder != "linear":
        shape, channels = _image_shape(config, data), CHANNELS[config.encoder]
        network = ConvolutionalEncoder(shape, channels, DENSE_WIDTH, outputs, activation=config.activation)
        last = network.dense[-1]
    elif config.architecture == "deep-convolutional" and config.encoder != "linear":
        channels = DEEP_CHANNELS[config.encoder]
        network = DeepConvolutionalEncoder(_image_shape(config, data), channels, outputs, config.activation)
        last = network.dense[-1]
    else:
        network = MLP([data.train.shape[1], *ENCODERS[config.encoder], outputs], None, config.activation)
        last = network[-1]
    assert isinstance(last, nn.Linear)
    return network, last


def _image_shape(config: VAEConfig, data: ImageData) -> tuple[int, int, int]:
    if data.image_shape is None:
        raise ValueError(f"expected images for --network {config.architecture}, got the vectors of {config.dataset}")
    return data.image_shape


def _grey_values(pixels: np.ndarray, grey_levels: int) -> np.ndarray:
    return np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(grey_levels)


def vae_options(config: VAEConfig) -> FitOptions:
    """How a VAE is fitted."""

    def rising(epochs: int) -> Callable[[float], float] | None:
        return (lambda done: min(1.0, done * config.epochs / epochs)) if epochs else None

    return FitOptions(
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        shared_learning_rate=config.learning_rate,
        local_reparametrization=config.decoder == "bayesian" and config.architecture == "dense",
        schedule=SCHEDULES[config.schedule],
        entropy_weight=rising(config.entropy_annealing),
        kl_weight=rising(config.kl_warm_up),
        adam_eps=1e-4,
        average=averaging(config),
        objective="disarm" if config.family == BERNOULLI else config.objective,
        num_particles=1 if config.objective == "elbo" else config.num_particles,
    )


def rows_at_once(config: VAEConfig) -> int:
    """Images, or particles of them, that networks are run on at once: fewer where they keep many features of each."""
    return 2_000 if config.architecture == "deep-convolutional" else MAX_ROWS


def averaging(config: VAEConfig) -> float | None:
    """How iterates are averaged; ``None`` with batch norm, whose running statistics belong to the last iterate."""
    return None if config.architecture == "deep-convolutional" else FitOptions.average
