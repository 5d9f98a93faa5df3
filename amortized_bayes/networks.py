"""Networks and tables: maps from tensors to tensors, with no probability in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortized_bayes.memory import check_network

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Activation",
    "Center",
    "ConvolutionalDecoder",
    "ConvolutionalEncoder",
    "RowTable",
    "fan_in",
    "row_tables",
    "start_at",
]


MOST_LAYERS = 101
"""Hidden layers beyond 100 are a mistake: without normalization nothing that deep is fitted."""
Activation = Literal["leaky-relu", "elu", "tanh", "relu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky-relu": partial(F.leaky_relu, negative_slope=0.2),
    "elu": F.elu,
    "tanh": torch.tanh,
    "relu": F.relu,
}


class MLP(nn.ModuleList):
    """Fully connected network ``(..., sizes[0]) -> (..., sizes[-1])``; its layers are called ``0``, ``1``, ....

    Args:
        sizes: input size, widths of the hidden layers, output size.
        output_bias: where given, the last layer starts at zero weights and this bias, so that the network starts as
            a constant function.
        activation: between the layers: leaky-relu (of slope 0.2), elu, tanh or relu.

    Raises:
        ValueError: fewer than two sizes, one below 1, too many layers, more weights than fit into memory, or an unknown
            activation.
    """

    def __init__(
        self, sizes: Sequence[int], output_bias: Tensor | None = None, activation: Activation = "leaky-relu"
    ) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"expected at least two sizes of 1 or more, got {list(sizes)}")
        if len(sizes) > MOST_LAYERS + 1:
            raise ValueError(f"expected at most {MOST_LAYERS} layers, got {len(sizes) - 1}")
        check_network(sizes)
        if activation not in ACTIVATIONS:
            raise ValueError(f"expected activation {' or '.join(ACTIVATIONS)}, got {activation!r}")
        layers = [nn.Linear(size_in, size_out) for size_in, size_out in pairwise(sizes)]
        super().__init__(layers)
        self.activation = activation
        if output_bias is not None:
            start_at(layers[-1], output_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Values of the last layer, without an activation."""
        activation = ACTIVATIONS[self.activation]
        last = len(self) - 1
        for number, layer in enumerate(self):
            x = layer(x) if number == last else activation(layer(x))
        return x


class ConvolutionalEncoder(nn.Module):
    """Images, flat, ``(B, C H W) -> (B, outputs)``: two convolutions 4x4 of stride 2, and two dense layers.

    Args:
        image_shape: (C, H, W), the last two multiples of 4.
        channels: channels of the two convolutions.
        hidden: width of the dense layer.
        outputs: size of the answer.
        output_bias: as in :class:`MLP`.
        activation: as in :class:`MLP`.

    Raises:
        ValueError: an image shape of other numbers.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: tuple[int, int],
        hidden: int,
        outputs: int,
        output_bias: Tensor | None = None,
        activation: Activation = "elu",
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.activation = activation
        height, width = _quarter(image_shape)
        self.first = nn.Conv2d(image_shape[0], channels[0], 4, 2, 1)
        self.second = nn.Conv2d(channels[0], channels[1], 4, 2, 1)
        self.dense = MLP([channels[1] * height * width, hidden, outputs], output_bias, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Answers for a batch of images."""
        activation = ACTIVATIONS[self.activation]
        images = x.reshape(-1, *self.image_shape)
        features = activation(self.second(activation(self.first(images))))
        return self.dense(features.flatten(1))


class ConvolutionalDecoder(nn.Module):
    """Latents to flat images, ``(..., D) -> (..., C H W)``: two dense layers and two transposed convolutions.

    Args:
        latent_dim: D.
        hidden: width of the dense layer.
        channels: channels of the images that the two transposed convolutions read.
        image_shape: (C, H, W), the last two multiples of 4.
        activation: as in :class:`MLP`.

    Raises:
        ValueError: an image shape of other numbers.
    """

    def __init__(
        self,
        latent_dim: int,
        hidden: int,
        channels: tuple[int, int],
        image_shape: tuple[int, int, int],
        activation: Activation = "elu",
    ) -> None:
        super().__init__()
        self.activation = activation
        self.small = (channels[0], *_quarter(image_shape))
        self.dense = MLP([latent_dim, hidden, math.prod(self.small)], None, activation)
        self.first = nn.ConvTranspose2d(channels[0], channels[1], 4, 2, 1)
        self.second = nn.ConvTranspose2d(channels[1], image_shape[0], 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        """Logits or means of the pixels."""
        activation = ACTIVATIONS[self.activation]
        features = activation(self.dense(z)).reshape(-1, *self.small)
        return self.second(activation(self.first(features))).reshape(*z.shape[:-1], -1)


def fan_in(layer: nn.Module) -> float:
    """Inputs that each output of a layer adds up, for the scale of its weights.

    Raises:
        TypeError: a layer that is neither dense nor convolutional.
    """
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if isinstance(layer, nn.ConvTranspose2d):  # each output pixel meets one in stride² of the kernel's places
        return layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels * math.prod(layer.kernel_size)
    raise TypeError(f"expected a dense or convolutional layer, got {type(layer).__name__}")


@torch.no_grad()
def start_at(layer: nn.Linear, start: Tensor, spread: float = 0.0) -> None:
    """Let the first outputs of a layer start at ``start``, ``(M,)``, with shrunk weights; the others stay the same."""
    layer.weight[: len(start)] *= spread
    layer.bias[: len(start)] = start


def _quarter(image_shape: tuple[int, int, int]) -> tuple[int, int]:
    _, height, width = image_shape
    if height % 4 or width % 4 or min(height, width) < 4:
        raise ValueError(f"expected images of height and width that 4 divides, got {height} by {width}")
    return height // 4, width // 4


class FlatPoints(nn.Module):
    """Data of any shape as a vector for each point, one number a point too.

    Args:
        size: P, where no other is expected.
    """

    def __init__(self, size: int | None = None) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """``(B, ...) -> (B, P)``.

        Raises:
            ValueError: data points of another size.
        """
        flat = x.reshape(len(x), -1)
        if self.size is not None and flat.shape[1] != self.size:
            raise ValueError(
                f"expected data points of {self.size} numbers, as the guide was made for (observed={self.size}), got "
                f"{flat.shape[1]}; of several arguments it sees the first, unless encoder_input= says otherwise"
            )
        return flat


class Center(nn.Module):
    """Data minus their mean, which lets the layer after it learn faster and changes nothing that it can learn.

    The mean moves into that layer's bias (LeCun, Bottou, Orr & Müller, *Efficient BackProp*, 1998).

    Args:
        mean: mean of the data, ``(...)``.
    """

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Tensor:
        """Subtract the mean from data ``(B, ...)``."""
        return x - self.mean


class RowTable(nn.Module):
    """A table with a row for each of N data points, of which a batch touches only its own rows.

    Autograd through ``weight[index]`` makes a gradient as large as the table. So an optimiser step binds the gathered
    rows instead: inside :meth:`bind` a lookup returns those rows, in the order they were bound, and gradients stay
    ``(B, W)``.

    Args:
        weight: the table at the start, ``(N, W)``.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self._rows: Tensor | None = None

    @contextmanager
    def bind(self, rows: Tensor) -> Iterator[None]:
        """Let ``rows``, ``(B, W)``, stand for the rows of the current batch."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    def forward(self, index: Tensor) -> Tensor:
        """Rows of the points in ``index``, ``(B,)``, or of a batch tiled S times, ``(S·B,)``."""
        if self._rows is None:
            return self.weight[index]
        return self._rows.repeat(len(index) // len(self._rows), 1)


def row_tables(module: nn.Module) -> list[RowTable]:
    """All tables inside ``module``."""
    return [m for m in module.modules() if isinstance(m, RowTable)]
