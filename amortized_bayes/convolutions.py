"""Three convolutions with batch norm, after the VAE that Cremer, Li & Duvenaud (ICML 2018) fit to CIFAR-10.

Kernels are 4x4, of stride 2, without padding: 3x32x32 becomes 64x15x15, 128x6x6 and 256x2x2, and the decoder walks the
same sizes back, where the row and column that a convolution leaves out at the far edge (14 of 15) repeat the last. In
training batch norm takes mean and variance from the batch, so that an answer for a point depends on the other points;
in evaluation mode from running averages, and each point stands alone. What is measured is measured there: no ELBO of a
point, and no gap, is defined otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from amortized_bayes.networks import ACTIVATIONS, MLP, Activation

__all__ = ["DeepConvolutionalDecoder", "DeepConvolutionalEncoder"]

KERNEL, STRIDE = 4, 2
SMALLEST = 22
"""Images of fewer pixels on a side have none left after three convolutions."""


class DeepConvolutionalEncoder(nn.Module):
    """Images, flat, ``(B, C H W) -> (B, outputs)``: three convolutions with batch norm, and a dense layer.

    Args:
        image_shape: (C, H, W), the last two of 22 or more.
        channels: channels of the three convolutions.
        outputs: size of the answer.
        activation: after each batch norm: elu, tanh, relu or leaky-relu.

    Raises:
        ValueError: images that are too small, or not three numbers of channels.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], channels: Sequence[int], outputs: int, activation: Activation = "elu"
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.activation = activation
        height, width = _sizes(image_shape, channels)[-1]
        steps = list(pairwise([image_shape[0], *channels]))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, KERNEL, STRIDE, bias=False) for a, b in steps)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in steps)
        self.dense = MLP([channels[-1] * height * width, outputs], None, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Answers for a batch of images."""
        activation = ACTIVATIONS[self.activation]
        features = x.reshape(-1, *self.image_shape)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            features = activation(norm(convolution(features)))
        return self.dense(features.flatten(1))


class DeepConvolutionalDecoder(nn.Module):
    """Latents to flat images, ``(..., D) -> (..., C H W)``: a dense layer, and three transposed convolutions.

    Args:
        latent_dim: D.
        channels: channels of the images that the transposed convolutions read, those of the encoder in reverse.
        image_shape: (C, H, W), the last two of 22 or more.
        activation: after each batch norm: elu, tanh, relu or leaky-relu.

    Raises:
        ValueError: images that are too small, or not three numbers of channels.
    """

    def __init__(
        self,
        latent_dim: int,
        channels: Sequence[int],
        image_shape: tuple[int, int, int],
        activation: Activation = "elu",
    ) -> None:
        super().__init__()
        self.activation = activation
        sizes = [*reversed(_sizes(image_shape, channels)), image_shape[1:]]
        self.small = (channels[0], *sizes[0])
        self.dense = nn.Linear(latent_dim, channels[0] * sizes[0][0] * sizes[0][1], bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in channels)
        self.missing = [_missing(small, large) for small, large in pairwise(sizes)]
        steps = zip(pairwise([*channels, image_shape[0]]), (False, False, True), strict=True)
        self.convolutions = nn.ModuleList(nn.ConvTranspose2d(a, b, KERNEL, STRIDE, bias=last) for (a, b), last in steps)

    def forward(self, z: Tensor) -> Tensor:
        """Logits or means of the pixels."""
        activation = ACTIVATIONS[self.activation]
        features = self.dense(z).reshape(-1, *self.small)
        for norm, convolution, (rows, columns) in zip(self.norms, self.convolutions, self.missing, strict=True):
            features = convolution(activation(norm(features)))
            if rows or columns:  # copies, since rows of zeros end in pixels that no latent moves
                features = F.pad(features, (0, columns, 0, rows), mode="replicate")
        return features.reshape(*z.shape[:-1], -1)


def _sizes(image_shape: tuple[int, int, int], channels: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width after each convolution."""
    _, *sides = image_shape
    if len(channels) != 3:
        raise ValueError(f"expected channels of three convolutions, got {list(channels)}")
    if min(sides) < SMALLEST:
        raise ValueError(
            f"expected images of {SMALLEST} or more pixels on each side for three convolutions, got {sides[0]} by "
            f"{sides[1]}"
        )
    found = []
    for _ in channels:
        sides = [(side - KERNEL) // STRIDE + 1 for side in sides]
        found.append((sides[0], sides[1]))
    return found


def _missing(small: tuple[int, int], large: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that a convolution left out at the far edge, which its reverse adds again: none or one each."""
    height, width = (b - ((a - 1) * STRIDE + KERNEL) for a, b in zip(small, large, strict=True))
    return height, width
