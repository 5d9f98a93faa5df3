"""The two Pyro programs of a plain PyTorch VAE. What networks give is looked at whenever values can be."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.util import is_validation_enabled
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from amortized_bayes.errors import ProgramError
from amortized_bayes.guides.amortized import Amortized
from amortized_bayes.likelihoods import Likelihood
from amortized_bayes.plain_vae.outputs import Network, check_evaluation_mode, check_steady, read_decoder, read_encoder
from amortized_bayes.registration import Registered
from amortized_bayes.types import LatentSite

__all__ = ["DecoderModel", "EncoderGuide", "allowed_outputs"]

logger = logging.getLogger(__name__)


class DecoderModel(Registered):
    """The decoder under the prior and a likelihood."""

    def __init__(
        self,
        decoder: Network,
        latent_dim: int,
        likelihood: Likelihood | Callable[[Any], Any],
        gives: str | None,
        scale: float | Tensor | None,
    ) -> None:
        super().__init__()
        self.decoder, self.latent_dim, self.likelihood, self.gives = decoder, latent_dim, likelihood, gives
        self.scale: Tensor | None
        if isinstance(scale, nn.Parameter):
            self.scale = scale
        else:
            self.register_buffer("scale", None if scale is None else torch.as_tensor(scale), persistent=False)
        self._checked, self._told = False, set[str]()
        check_evaluation_mode(_owner(decoder), "a decoder")

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Sample (or score) the model on data ``(B, ...)``; the indices of the points do not matter."""
        zeros = _tensor_like(self.decoder, x).new_zeros(self.latent_dim)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            observed, values = self._observe(z, x)
            return pyro.sample("x", observed, obs=values)

    def _observe(self, z: Tensor, x: Tensor) -> tuple[dist.TorchDistribution, Tensor]:
        """Distribution of the data, and the data as it takes them."""
        looks = _may_look()
        if looks:
            check_evaluation_mode(_owner(self.decoder), "a decoder")
        if not isinstance(self.likelihood, Likelihood):
            return _as_points(self.likelihood(self.decoder(z)), x), x
        output = self._read(z, check=looks)
        if looks and not self._checked:
            check_steady(self._read, z, output, "the decoder")
            self._checked = True
        values = x.reshape(len(x), -1).to(output.dtype)
        output = _as_rows(output, x)
        if looks:
            self._check_data(values, output)
        if self.kind == "probs":
            eps = torch.finfo(output.dtype).eps
            output = torch.logit(output.clamp(eps, 1 - eps))
        scale = None if self.scale is None else self.scale.to(output).flatten()
        return self.likelihood.distribution(output, self.likelihood.levels or scale).to_event(1), values

    def _read(self, z: Tensor, *, check: bool = True) -> Tensor:
        output, self.kind = read_decoder(self.decoder(z), self.gives, check=check)
        assert isinstance(self.likelihood, Likelihood)
        allowed = allowed_outputs(self.likelihood)
        if self.kind is None:
            raise ProgramError(
                f"expected decoder_gives={' or '.join(map(repr, allowed))} with this likelihood, got none"
            )
        if self.kind not in allowed:
            raise ProgramError(f"expected a decoder that gives {' or '.join(allowed)}, got a field {self.kind!r}")
        return output

    def _check_data(self, values: Tensor, output: Tensor) -> None:
        """Refuse data that the likelihood cannot have, and say once what limits its numbers."""
        assert isinstance(self.likelihood, Likelihood)
        if "logits" not in allowed_outputs(self.likelihood):
            return
        if bool(((values < 0) | (values > 1)).any()):
            low, high = values.min().item(), values.max().item()
            raise ProgramError(f"expected data in [0, 1] with this likelihood, got values from {low:g} to {high:g}")
        if not self.likelihood.levels and bool(((values > 0) & (values < 1)).any()):
            self._say(
                "grey values under a Bernoulli likelihood: log p(x) is then the score of cross-entropy, and no log "
                "probability of the data, which the model itself draws as 0 and 1"
            )
        lost = ((output == 0) & (values > 0)) | ((output == 1) & (values < 1))
        if self.kind == "probs" and bool(lost.any()):
            each = math.log(torch.finfo(output.dtype).eps)
            self._say(
                f"some probabilities are rounded to 0 or 1 where the data are not: each such entry counts {each:.1f} "
                "nats; give logits to be exact"
            )

    def _say(self, words: str) -> None:
        if words not in self._told:
            self._told.add(words)
            logger.warning(words)


class _Encoder(nn.Module):
    """The encoder, its answer laid out as guides take it."""

    def __init__(self, network: Network, latent_dim: int, gives: str | None) -> None:
        super().__init__()
        self.network, self.latent_dim, self.gives = network, latent_dim, gives
        self._checked = self._told = False
        check_evaluation_mode(_owner(network), "an encoder")

    def forward(self, x: Tensor) -> Tensor:
        """Locations and log scales, ``(B, 2 D)``."""
        looks = _may_look()
        if looks:
            check_evaluation_mode(_owner(self.network), "an encoder")
        answer = self._read(x, check=looks)
        if looks and not self._checked:
            check_steady(self._read, x, answer, "the encoder")
            self._checked = True
        if looks and not self._told and self.kind.startswith("log") and bool((answer[:, self.latent_dim :] > 0).all()):
            self._told = True
            words = "every %s that the encoder gives is above 0, a posterior wider than the prior: is it a %s?"
            logger.warning(words, self.kind, self.kind.removeprefix("log_"))
        return answer

    def _read(self, x: Tensor, *, check: bool = True) -> Tensor:
        loc, log_scale, self.kind = read_encoder(self.network(x), self.gives, self.latent_dim, check=check)
        if len(loc) != len(x):
            raise ProgramError(f"expected an encoder with an answer for each of {len(x)} points, got {len(loc)}")
        return torch.cat([loc, log_scale], -1)


class EncoderGuide(Amortized):
    """The encoder as a guide of ``z``."""

    def __init__(self, encoder: Network, latent_dim: int, gives: str | None) -> None:
        site = LatentSite("z", Size([latent_dim]), constraints.real_vector)
        super().__init__([site], 1, 1, encoder=_Encoder(encoder, latent_dim, gives))

    def forward(self, x: Tensor, index: Tensor | None = None) -> None:
        """Sample ``z``; the indices of the points do not matter."""
        super().forward(x)


def allowed_outputs(likelihood: Likelihood) -> tuple[str, ...]:
    """What a decoder may give under a likelihood."""
    return ("logits", "probs") if likelihood.binary or likelihood.levels else ("mean",)


def _as_rows(output: Tensor, x: Tensor) -> Tensor:
    """The decoder's output, ``(B, P)``, where it has the shape of the data, or one of both is flat."""
    shapes = [tuple(size for size in t.shape[1:] if size != 1) for t in (output, x)]
    flat = any(len(shape) <= 1 for shape in shapes)
    if len(output) != len(x) or output[0].numel() != x[0].numel() or not (flat or shapes[0] == shapes[1]):
        raise ProgramError(
            f"expected a decoder that gives the shape of the data, {tuple(x.shape)}, or a row for each point, got "
            f"{tuple(output.shape)}"
        )
    return output.reshape(len(x), -1)


def _as_points(fn: Any, x: Tensor) -> dist.TorchDistribution:
    """A likelihood of the user's own with one event per point."""
    if not isinstance(fn, TorchDistributionMixin):
        raise TypeError(
            f"expected a likelihood that gives a distribution of pyro.distributions, which has those of "
            f"torch.distributions by the same names, got {type(fn).__module__}.{type(fn).__name__}"
        )
    if fn.shape() != x.shape:
        raise ProgramError(f"expected a likelihood of the shape of the data, {tuple(x.shape)}, got {tuple(fn.shape())}")
    return fn.to_event(len(fn.batch_shape) - 1)


def _owner(network: Any) -> nn.Module | None:
    """The module that a network is, or is a method of."""
    owner = network if isinstance(network, nn.Module) else getattr(network, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _tensor_like(network: Any, x: Tensor) -> Tensor:
    """A tensor of the type and on the device that a network works with."""
    owner = _owner(network)
    tensors = (*owner.parameters(), *owner.buffers()) if owner is not None else ()
    return next((t for t in (*tensors, x) if t.is_floating_point()), torch.zeros((), device=x.device))


def _may_look() -> bool:
    """Whether values can be looked at: not while a step is captured, nor where chains may diverge."""
    return is_validation_enabled() and get_proxy_mode() is None
