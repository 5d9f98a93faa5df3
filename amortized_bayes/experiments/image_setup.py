"""What ``celeba`` is built of: images, the truth as a model, an encoder, draws of both; and what a pass costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.distributions import constraints

from amortized_bayes.data import to_pictures
from amortized_bayes.dcgan import Critic, ImageGenerator, evaluating
from amortized_bayes.guides import Amortized
from amortized_bayes.models import DeepGenerative
from amortized_bayes.types import LatentSite

if TYPE_CHECKING:
    from amortized_bayes.experiments.image_settings import Config
    from amortized_bayes.experiments.lab import Lab

__all__ = [
    "Sample",
    "Source",
    "build_encoder",
    "build_truth",
    "bytes_of",
    "critic_of",
    "draws_of",
    "encode",
    "features_from",
    "image_source",
    "images_at",
    "load_network",
    "macs_of",
    "scale_of",
    "shown",
    "simulate",
    "tensors_of",
]


class Source(NamedTuple):
    """Images to train the ground truth on.

    Args:
        pixels: ``(N, P)``, from 0 to ``levels``.
        labels: classes ``(N,)``, attributes ``(N, A)``, or ``None``.
        held_out: pixels and labels of the test split.
        image_shape: (C, H, W), with sides that are a power of two: dark rows and columns are added around.
        levels: the value of white.
    """

    pixels: Tensor
    labels: Tensor | None
    held_out: tuple[Tensor, Tensor | None]
    image_shape: tuple[int, int, int]
    levels: int

    @property
    def num_outputs(self) -> int:
        """Logits that name the labels."""
        assert self.labels is not None
        return self.labels.shape[1] if self.labels.dim() == 2 else int(self.labels.max()) + 1

    def batch(self, places: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Images in [-1, 1], ``(n, P)``."""
        chosen = (self.pixels if pixels is None else pixels)[places]
        return chosen.float() * (2 / self.levels) - 1


class Sample(NamedTuple):
    """Points drawn from a generator: latents ``(n, D)``, means of the pixels and pixels ``(n, P)``."""

    z: Tensor
    mean: Tensor
    x: Tensor


def image_source(config: Config, lab: Lab, seed: int) -> Source:
    """The images of the settings, shuffled by seed.

    Raises:
        ValueError: they are unavailable, or no square images.
    """

    def load() -> Source:
        data = lab.dataset(config.read_from, seed)
        if data.image_shape is None or data.image_shape[1] != data.image_shape[2]:
            raise ValueError(f"expected square images, got {config.read_from} of shape {data.image_shape}")
        count, side, _ = data.image_shape
        wanted = max(8, 2 ** math.ceil(math.log2(side)))
        before, after = (wanted - side) // 2, (wanted - side + 1) // 2

        def tensors(split: Any) -> tuple[Tensor, Tensor | None]:
            images = split.pixels.reshape(-1, count, side, side)
            padded = np.pad(images, ((0, 0), (0, 0), (before, after), (before, after)))
            labels = None if split.labels is None else torch.from_numpy(split.labels.astype(np.int64)).to(lab.device)
            return torch.from_numpy(padded.reshape(len(padded), -1)).to(lab.device), labels

        pixels, labels = tensors(data.train)
        return Source(pixels, labels, tensors(data.test), (count, wanted, wanted), data.grey_levels)

    return lab.recent(("image source", config.read_from, seed), load)


def critic_of(config: Config, source: Source, outputs: int) -> Critic:
    """A discriminator or an encoder for these images."""
    return Critic(source.image_shape, config.channels, outputs)


def features_from(config: Config, source: Source) -> str:
    """Whose features the distance uses."""
    if config.features != "auto":
        return config.features
    return "discriminator" if source.labels is None else "classifier"


def build_truth(config: Config, source: Source) -> DeepGenerative:
    """Z ~ N(0, I), x ~ N(G(z), noise² I), with a scale that does not move."""
    network = ImageGenerator(config.latent_dim, config.channels, source.image_shape)
    observed = math.prod(source.image_shape)
    model = DeepGenerative(
        observed, config.latent_dim, network, config.batch_size, likelihood="gaussian-learned", bayesian=False
    )
    assert model.log_scale is not None
    with torch.no_grad():
        model.log_scale.fill_(math.log(config.noise))
    return model


def build_encoder(config: Config, source: Source) -> Amortized:
    """A factorized Gaussian from a critic, which starts near the prior."""
    encoder = critic_of(config, source, 2 * config.latent_dim)
    site = LatentSite("z", torch.Size([config.latent_dim]), constraints.real)
    return Amortized([site], config.batch_size, math.prod(source.image_shape), encoder=encoder)


def draws_of(shape: Sequence[int], generator: Generator) -> Tensor:
    """Standard normal draws, on the device of their generator."""
    return torch.randn(*shape, generator=generator, device=generator.device)


def simulate(truth: DeepGenerative, count: int, generator: Generator) -> Sample:
    """Points drawn from a model in evaluation mode."""
    return images_at(truth, draws_of((count, truth.latent_dim), generator), generator)


def scale_of(model: DeepGenerative) -> float:
    """Standard deviation of pixels."""
    assert model.log_scale is not None
    return float(model.log_scale.detach().exp())


def macs_of(config: Config, source: Source) -> float:
    """Multiplications and additions of one image's way through a network."""
    (count, side, _), width = source.image_shape, config.channels
    found = 4.0 * count * width * side**2
    while side > 8:
        side //= 2
        found += 16 * width * 2 * width * (side // 2) ** 2
        width *= 2
    return found + 16 * width * config.latent_dim


def bytes_of(config: Config, source: Source) -> float:
    """What a network and another leave on disk."""
    networks = (
        critic_of(config, source, config.latent_dim),
        ImageGenerator(config.latent_dim, config.channels, source.image_shape),
    )
    return 4.0 * sum(tensor.numel() for network in networks for tensor in network.state_dict().values())


def tensors_of(name: str, network: nn.Module) -> dict[str, np.ndarray]:
    """Tensors of a network, as checkpoints hold them, with a name before theirs."""
    return {f"{name}.{key}": tensor.detach().cpu().numpy() for key, tensor in network.state_dict().items()}


def load_network(network: nn.Module, name: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Put back what :func:`tensors_of` gave."""
    own = {key.removeprefix(f"{name}."): torch.tensor(t) for key, t in tensors.items() if key.startswith(f"{name}.")}
    network.load_state_dict(own)


def shown(source: Source, images: Tensor) -> np.ndarray:
    """Images in [-1, 1] ``(n, P)`` as pictures in [0, 1]."""
    grey = (0.5 * (images.detach() + 1)).clamp(0, 1).float()
    return np.ascontiguousarray(to_pictures(grey.cpu().numpy(), source.image_shape))


def encode(guide: Amortized, x: Tensor, generator: Generator) -> Tensor:
    """Draws of q(z|x), with batch norm in evaluation mode."""
    with evaluating(guide):
        loc, log_scale = guide.locate(x, torch.arange(len(x))).chunk(2, -1)
        return loc + log_scale.exp() * draws_of(loc.shape, generator)


def images_at(model: DeepGenerative, z: Tensor, generator: Generator) -> Sample:
    """Images of a model at latents, with batch norm in evaluation mode."""
    with evaluating(model):
        mean = model.decode(z, model.weights())
        return Sample(z, mean, mean + scale_of(model) * draws_of(mean.shape, generator))
