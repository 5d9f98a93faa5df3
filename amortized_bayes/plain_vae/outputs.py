"""What plain PyTorch encoders and decoders give, read by name or as told, and refused where it cannot be that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from amortized_bayes.errors import ProgramError

__all__ = ["ENCODER_GIVES", "Network", "check_evaluation_mode", "check_steady", "read_decoder", "read_encoder"]

Network = Callable[[Tensor], Any]
"""A module, or a function or method of one."""

ENCODER_GIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "log_variance": lambda value: value / 2,
    "log_scale": lambda value: value,
    "scale": torch.log,
    "variance": lambda value: value.log() / 2,
}
"""What an encoder may give beside the mean, and how that becomes a log scale."""

MEANS = ("embedding", "mean", "loc", "mu", "z_mean")
SPREADS = {
    "log_variance": ("log_covariance", "log_variance", "log_var", "logvar"),
    "log_scale": ("log_scale", "log_std", "logstd"),
    "scale": ("scale", "std", "stddev"),
    "variance": ("variance", "var"),
}
"""Names of fields by which an output with names tells what it is."""
OUTPUTS = {"logits": ("logits",), "probs": ("probs",), "mean": ("mean", "loc"), None: ("reconstruction", "recon_x")}
ENOUGH = 20
"""Values, all in [0, 1], that make logits look like probabilities."""


def read_encoder(output: Any, gives: str | None, latent_dim: int, *, check: bool = True) -> tuple[Tensor, Tensor, str]:
    """Location and log scale, ``(B, D)`` each, of what an encoder gave, and what that was.

    Args:
        output: ``(mean, spread)``, one tensor ``(B, 2 D)`` of both, a mapping or object with fields of known names, or
            a normal distribution.
        gives: what the spread is, one of ``ENCODER_GIVES``; ``None`` where names tell it.
        latent_dim: D.
        check: look at the values, which a captured program cannot.

    Raises:
        ValueError: an output of another form, shape or range, or one that names do not tell.

    Example:
        >>> loc, log_scale, _ = read_encoder((torch.zeros(3, 2), torch.ones(3, 2)), "scale", 2)
        >>> log_scale.sum().item()
        0.0
    """
    mean, spread, named = _split(output)
    if named and gives and named != gives:
        raise ProgramError(f"expected an encoder that gives {gives!r}, as encoder_gives says, got a field of {named!r}")
    kind = named or gives
    if kind is None:
        options = ", ".join(map(repr, ENCODER_GIVES))
        raise ProgramError(f"the encoder's second output has no name: say what it is by encoder_gives={options}")
    if mean.dim() != 2 or mean.shape[1] != latent_dim or spread.shape != mean.shape:
        raise ProgramError(
            f"expected an encoder that gives a mean and {kind.replace('_', ' ')} of shape (B, {latent_dim}) each, or "
            f"one tensor (B, {2 * latent_dim}), got {tuple(mean.shape)} and {tuple(spread.shape)}"
        )
    if check:
        if kind in ("scale", "variance") and not bool((spread > 0).all()):
            raise ProgramError(
                f"expected an encoder that gives a {kind} above 0, got {spread.min().item():g}; "
                f"say encoder_gives='log_{kind}' if it is the logarithm"
            )
        if not (bool(mean.isfinite().all()) and bool(spread.isfinite().all())):
            raise ProgramError("expected an encoder with finite outputs, got nan or inf")
    return mean, ENCODER_GIVES[kind](spread), kind


def read_decoder(output: Any, gives: str | None, *, check: bool = True) -> tuple[Tensor, str | None]:
    """The tensor ``(B, ...)`` that a decoder gave; ``logits``, ``probs`` or ``mean``, or ``None`` if that is not told.

    Args:
        output: a tensor, or a mapping or object with a field of a known name.
        gives: what it is, ``None`` where a name tells it.
        check: look at the values.

    Raises:
        ValueError: an output of another form, or out of its range.

    Example:
        >>> read_decoder({"probs": torch.full((1, 2), 0.5)}, None)
        (tensor([[0.5000, 0.5000]]), 'probs')
    """
    named = None
    if not isinstance(output, Tensor):
        found = [(kind, value) for kind, names in OUTPUTS.items() for value in _fields(output, names)]
        if len(found) != 1:
            names = ", ".join(name for names in OUTPUTS.values() for name in names)
            raise ProgramError(
                f"expected a decoder that gives a tensor, or one of the fields {names}; got {_form(output)}"
            )
        ((named, output),) = found
        if named and gives and named != gives:
            raise ProgramError(f"expected a decoder that gives {gives!r}, as decoder_gives says, got a field {named!r}")
    kind = named or gives
    if check and kind == "probs" and not bool(((output >= 0) & (output <= 1)).all()):
        low, high = output.min().item(), output.max().item()
        raise ProgramError(
            f"expected a decoder that gives probabilities in [0, 1], got values from {low:g} to {high:g}"
        )
    if check and kind == "logits" and output.numel() >= ENOUGH and bool(((output >= 0) & (output <= 1)).all()):
        raise ProgramError(
            "expected a decoder that gives logits, got values that all lie in [0, 1], as after a sigmoid; "
            "say decoder_gives='probs' if they are probabilities"
        )
    return output, kind


def check_evaluation_mode(network: nn.Module | None, what: str) -> None:
    """Refuse layers whose answer for a point is random, or depends on the other points of the batch.

    Raises:
        ValueError: dropout or batch norm in training mode, or batch norm without running statistics.
    """
    for layer in network.modules() if network is not None else ():
        moody = isinstance(layer, (_BatchNorm, _DropoutNd, nn.RReLU))
        if moody and layer.training:
            raise ProgramError(
                f"expected {what} in evaluation mode, got a {type(layer).__name__} in training mode: call .eval() on it"
            )
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            raise ProgramError(
                f"expected {what} whose answer for a point does not depend on the batch, got a {type(layer).__name__} "
                "without running statistics"
            )


def check_steady(read: Callable[[Tensor], Tensor], points: Tensor, whole: Tensor, what: str) -> None:
    """Ask a network once more for half of the points, and refuse other answers than it gave among all of them.

    Args:
        read: network and reading of its output.
        points: its input, ``(B, ...)``.
        whole: its answers for all of them, ``(B, ...)``.
        what: its name, for readers.

    Raises:
        ValueError: answers that are random or depend on the batch.
    """
    half = len(points) // 2
    if half and (read(points[:half]) - whole[:half]).abs().max() > 1e-3 * whole.abs().max().clamp(min=1):
        raise ProgramError(
            f"{what} gives a point another answer when it is asked again in another batch; expected a deterministic "
            "network in evaluation mode: call .eval() on it"
        )


def _split(output: Any) -> tuple[Tensor, Tensor, str | None]:
    """Mean, spread, and what the spread is where names tell."""
    if isinstance(output, Tensor):
        if output.dim() != 2 or output.shape[1] % 2:
            raise ProgramError(
                f"expected an encoder that gives (mean, spread) or one tensor (B, 2 D), got {_form(output)}"
            )
        first, second = output.chunk(2, -1)
        return first, second, None
    if isinstance(output, Distribution):
        while isinstance(output, Independent):
            output = output.base_dist
        if not isinstance(output, Normal):
            raise ProgramError(f"expected an encoder that gives a factorized normal, got {type(output).__name__}")
        return output.loc, output.scale, "scale"
    means = _fields(output, MEANS)
    spreads = [(kind, value) for kind, names in SPREADS.items() for value in _fields(output, names)]
    if len(means) == len(spreads) == 1:
        return means[0], spreads[0][1], spreads[0][0]
    if isinstance(output, (tuple, list)) and len(output) == 2 and all(isinstance(part, Tensor) for part in output):
        return output[0], output[1], None
    names = ", ".join(name for names in SPREADS.values() for name in names)
    raise ProgramError(
        f"expected an encoder that gives (mean, spread), one tensor (B, 2 D), or one field of {', '.join(MEANS)} and "
        f"one of {names}; got {_form(output)}"
    )


def _fields(output: Any, names: tuple[str, ...]) -> list[Tensor]:
    """Tensors of a mapping or an object under these names."""
    get = output.get if isinstance(output, Mapping) else lambda name: getattr(output, name, None)
    return [value for value in map(get, names) if isinstance(value, Tensor)]


def _form(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(str, output)) or 'nothing'}"
    return f"a {type(output).__name__}" + (f" of {len(output)}" if isinstance(output, (tuple, list)) else "")
