r"""One small network a data point, and affine couplings made of them.

The weights of B networks lie in tensors ``(B, in, out)``, so that one batched product serves all points, and no point
has a part in the network of another. A coupling moves what is last in its vector by what is first (Dinh, Sohl-Dickstein
& Bengio, *Density Estimation Using Real NVP*, ICLR 2017), with Pyro's transform,

.. math:: y_1 = x_1, \qquad y_2 = x_2 \circ e^{s(x_1)} + t(x_1), \qquad \log |\det J| = \textstyle\sum s(x_1) .
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions.transforms.affine_coupling import AffineCoupling
from torch import Tensor

__all__ = [
    "Parameters",
    "affine",
    "couple",
    "init_couplings",
    "init_network",
    "log_affine",
    "log_normal",
    "make_couplings",
    "uncouple",
]

Parameters = Mapping[str, Tensor]
"""Parameters of all points by name, ``(B, ...)`` each."""

LOG_SCALE_BOUND = 2.0
"""Scales inside a flow lie between exp(-2) and exp(2): no step can blow one up, and Pyro's own clip is never met."""


def log_normal(x: Tensor) -> Tensor:
    """Log density of independent standard normals, ``(..., W) -> (...)``."""
    return -0.5 * x.square().sum(-1) - 0.5 * math.log(2 * math.pi) * x.shape[-1]


def make_couplings(parameters: Parameters, num_flows: int, sizes: tuple[int, int]) -> list[AffineCoupling]:
    """For each flow, the second part moved by the first and then the first by the second, ``sizes`` their sizes."""
    return [
        AffineCoupling(sizes[side], partial(affine, parameters, f"{t}.{side}"))
        for t in range(num_flows)
        for side in (0, 1)
    ]


def couple(couplings: Sequence[Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """Apply couplings in turn, the moved part put first for the next; the vector and log |det| ``(B, S)``."""
    log_det = x.new_zeros(())
    for coupling in couplings:
        y = coupling(x)
        log_det = log_det + coupling.log_abs_det_jacobian(x, y)
        x = y.roll(-coupling.split_dim, -1)
    return x, log_det


def uncouple(couplings: Sequence[Any], y: Tensor) -> tuple[Tensor, Tensor]:
    """The way back of :func:`couple`; the vector and log |det| of the way there."""
    log_det = y.new_zeros(())
    for coupling in reversed(couplings):
        y = y.roll(coupling.split_dim, -1)
        x = coupling.inv(y)
        log_det = log_det + coupling.log_abs_det_jacobian(x, y)
        y = x
    return y, log_det


def init_couplings(
    num_flows: int, sizes: tuple[int, int], hidden: int, normal: Callable[..., Tensor]
) -> dict[str, Tensor]:
    """Networks of couplings that move nothing."""
    found = {}
    for t in range(num_flows):
        for side in (0, 1):
            name, (size_in, size_out) = f"{t}.{side}", (sizes[side], sizes[1 - side])
            found |= init_network(name, [size_in, hidden, 2 * size_out], normal)
            # A linear path beside the network: most of what a Gaussian lacks is correlation, and so it is found sooner.
            found[f"{name}.linear"] = torch.zeros_like(normal(size_in, size_out))
    return found


def init_network(name: str, sizes: Sequence[int], normal: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Weights ``(B, in, out)`` and biases ``(B, 1, out)`` of a network of which the last layer is zero."""
    found = {}
    for layer, (size_in, size_out) in enumerate(pairwise(sizes)):
        last = layer == len(sizes) - 2
        weight, bias = normal(size_in, size_out) / math.sqrt(size_in), 0.5 * normal(1, size_out)
        found[f"{name}.{layer}.weight"] = torch.zeros_like(weight) if last else weight
        found[f"{name}.{layer}.bias"] = torch.zeros_like(bias) if last else bias
    return found


def affine(parameters: Parameters, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and log scale by each point's own ELU network, ``(B, S, in)`` to ``(B, S, out)`` twice."""
    layer, hidden = 0, x
    while f"{name}.{layer}.weight" in parameters:
        hidden = F.elu(hidden) if layer else hidden
        hidden = torch.baddbmm(parameters[f"{name}.{layer}.bias"], hidden, parameters[f"{name}.{layer}.weight"])
        layer += 1
    shift, log_scale = hidden.chunk(2, -1)
    if f"{name}.linear" in parameters:
        shift = torch.baddbmm(shift, x, parameters[f"{name}.linear"])
    return shift, LOG_SCALE_BOUND * torch.tanh(log_scale / LOG_SCALE_BOUND)


def log_affine(parameters: Parameters, name: str, condition: Tensor, x: Tensor) -> Tensor:
    """Log density of x under the Gaussian that a network makes of ``condition``, ``(B, S)``."""
    loc, log_scale = affine(parameters, name, condition)
    return log_normal((x - loc) * (-log_scale).exp()) - log_scale.sum(-1)
