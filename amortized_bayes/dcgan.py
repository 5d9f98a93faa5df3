"""The networks of DCGAN (Radford, Metz & Chintala, 2016), for square images of 8, 16, 32, 64, ... pixels on a side.

Kernels are 4x4. The generator makes 4x4 values of each channel of its latents, and doubles the sides until it has an
image; each time the channels are halved, down to ``channels`` before the last step. The critic walks the same way back:
it is the discriminator, the encoder, or the body of a classifier. In training batch norm takes mean and variance from
the batch; in evaluation mode from running averages, and each image stands alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

from amortized_bayes.memory import TRAINED, check_memory

__all__ = ["Classifier", "Critic", "ImageGenerator", "evaluating", "settle_norms", "start_dcgan"]

SMALLEST = 4
"""Pixels on a side that both networks begin or end with."""
SLOPE = 0.2
START_SCALE = 0.02
"""Of the weights at the start."""


class ImageGenerator(nn.Module):
    """Latents to flat images in [-1, 1], ``(..., D) -> (..., C H W)``.

    Args:
        latent_dim: D.
        channels: before the last step.
        image_shape: (C, H, W), H = W a power of two from 8 on.

    Raises:
        ValueError: another shape, or a network that does not fit into memory.
    """

    def __init__(self, latent_dim: int, channels: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        widths = _widths(channels, image_shape, latent_dim)[::-1]
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent_dim, widths[0], SMALLEST, bias=False)]
        for a, b in pairwise(widths):
            layers += [nn.BatchNorm2d(a), nn.ReLU(), nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False)]
        last = nn.ConvTranspose2d(widths[-1], image_shape[0], 4, 2, 1)
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(widths[-1]), nn.ReLU(), last, nn.Tanh())
        self.latent_dim = latent_dim

    def forward(self, z: Tensor) -> Tensor:
        """Images of latents."""
        return self.layers(z.reshape(-1, self.latent_dim, 1, 1)).reshape(*z.shape[:-1], -1)


class Critic(nn.Module):
    """Flat images to answers, ``(B, C H W) -> (B, outputs)``.

    ``features`` gives the means over places of its last 4x4 values, ``num_features`` of them.

    Args:
        image_shape: (C, H, W), H = W a power of two from 8 on.
        channels: after the first step; doubled by each further one.
        outputs: size of the answer.

    Raises:
        ValueError: another shape, or a network that does not fit into memory.
    """

    def __init__(self, image_shape: tuple[int, int, int], channels: int, outputs: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        widths = _widths(channels, image_shape, outputs)
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], widths[0], 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(SLOPE)]
        self.body = nn.Sequential(*layers)
        self.head: nn.Module = nn.Conv2d(widths[-1], outputs, SMALLEST)
        self.num_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Answers for a batch of images."""
        return self.head(self._body(x)).flatten(1)

    def features(self, x: Tensor) -> Tensor:
        """Features of a batch of images, ``(B, num_features)``."""
        return self._body(x).mean((-2, -1))

    def _body(self, x: Tensor) -> Tensor:
        return self.body(x.reshape(-1, *self.image_shape))


class Classifier(nn.Module):
    """Logits of classes or of attributes from the features of a critic's body, ``(B, C H W) -> (B, outputs)``.

    Args:
        image_shape: as of :class:`Critic`.
        channels: as of :class:`Critic`.
        outputs: number of logits.
    """

    def __init__(self, image_shape: tuple[int, int, int], channels: int, outputs: int) -> None:
        super().__init__()
        self.critic = Critic(image_shape, channels, 1)
        self.critic.head = nn.Identity()
        self.num_features = self.critic.num_features
        self.head = nn.Linear(self.num_features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for a batch of images."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Features of a batch of images, ``(B, num_features)``."""
        return self.critic.features(x)


def start_dcgan(network: nn.Module, generator: Generator) -> None:
    """Give a network DCGAN's start: weights from N(0, 0.02²), those of batch norm from N(1, 0.02²), biases 0."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)):
            mean = 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0
            nn.init.normal_(layer.weight, mean, START_SCALE, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def settle_norms(network: nn.Module, batches: Iterator[Tensor]) -> None:
    """Make the running averages of batch norm those of some batches, all with one weight; then evaluation mode."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    for batch in batches:
        network(batch)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    network.eval()


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode, and without gradients; afterwards in the modes that they were in."""
    modes = {layer: layer.training for network in networks for layer in network.modules()}
    for network in networks:
        network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


def _widths(channels: int, image_shape: tuple[int, int, int], ends: int) -> list[int]:
    """Channels after each step from an image on, down to 4x4."""
    count, height, width = image_shape
    steps = height.bit_length() - 3
    if height != width or steps < 1 or height != SMALLEST * 2**steps:
        raise ValueError(f"expected square images of 8, 16, 32, 64, ... pixels on a side, got {height} by {width}")
    widths = [channels * 2**step for step in range(steps)]
    weights = 16 * (count * widths[0] + sum(a * b for a, b in pairwise(widths)))
    weights += SMALLEST**2 * widths[-1] * ends
    check_memory(4.0 * TRAINED * weights, f"a network of {weights:,} weights to fit")
    return widths
