r"""The deep generative model: one latent vector a data point, decoded by a network.

.. math::
    \theta \sim \prod_l N(0, v_l), \qquad z_n \sim N(0, I_D), \qquad x_n \sim p(x \mid f_\theta(z_n)),

with decoder weights theta that are sample sites with priors (a Bayesian decoder, as in Margossian & Blei, UAI 2024) or,
on request, point estimates (the VAE of Kingma & Welling, 2014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DeepGenerative", "Likelihood"]

Likelihood = Literal["bernoulli", "gaussian", "gaussian-learned"]


class DeepGenerative(nn.Module):
    """Decoder D -> hidden -> P with LeakyReLU(0.2), as a Pyro program over the plate ``data``.

    Sites: ``z`` (D,) and ``x`` (P,) inside the plate; ``decoder.<l>.weight`` and ``decoder.<l>.bias`` outside it if
    ``bayesian``.

    Args:
        observed: P.
        latent_dim: D.
        hidden: widths of the hidden layers.
        num_data: N, the size of the plate when a batch is given by ``index``.
        likelihood: ``bernoulli``; ``gaussian`` with variance 1; or ``gaussian-learned``, one scale for all
            pixels, point-estimated.
        bayesian: decoder weights are latent, else point estimates.
        weight_prior: variance of the weights' priors: ``fan-in`` for 1 / inputs, or ``standard`` for 1.

    Raises:
        ValueError: a size below 1, or an unknown likelihood or prior.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.DeepGenerative(observed=9, latent_dim=2, hidden=[5], num_data=4)
        >>> [site.name for site in ab.latent_sites(model, torch.zeros(4, 9)).shared]
        ['decoder.0.weight', 'decoder.0.bias', 'decoder.1.weight', 'decoder.1.bias']
    """

    zero: Tensor

    def __init__(
        self,
        observed: int,
        latent_dim: int,
        hidden: Sequence[int],
        num_data: int,
        *,
        likelihood: Likelihood = "bernoulli",
        bayesian: bool = True,
        weight_prior: Literal["fan-in", "standard"] = "fan-in",
    ) -> None:
        super().__init__()
        sizes = [latent_dim, *hidden, observed]
        if min(sizes) < 1:
            raise ValueError(f"expected sizes of 1 or more, got {sizes}")
        if likelihood not in ("bernoulli", "gaussian", "gaussian-learned"):
            raise ValueError(f"expected likelihood bernoulli, gaussian or gaussian-learned, got {likelihood!r}")
        if weight_prior not in ("fan-in", "standard"):
            raise ValueError(f"expected weight_prior fan-in or standard, got {weight_prior!r}")
        self.latent_dim = latent_dim
        self.num_data = num_data
        self.likelihood = likelihood
        self.shapes = list(zip(sizes[1:], sizes, strict=False))
        self.weight_scales = [1 / math.sqrt(i) if weight_prior == "fan-in" else 1.0 for _, i in self.shapes]
        self.layers = None if bayesian else nn.ModuleList(nn.Linear(i, o) for o, i in self.shapes)
        self.log_scale = nn.Parameter(torch.zeros(())) if likelihood == "gaussian-learned" else None
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Sample (or score) the model on data ``x`` of shape (B, P), the points ``index`` (B,) of all N."""
        weights = self.weights()
        size = len(x) if index is None else self.num_data
        with pyro.plate("data", size, subsample=index):
            z = pyro.sample("z", self._normal((self.latent_dim,), 1.0).to_event(1))
            return pyro.sample("x", self.observation(self.decode(z, weights)).to_event(1), obs=x)

    def weights(self) -> list[tuple[Tensor, Tensor]]:
        """Weight (out, in) and bias (out,) of each layer: sampled if Bayesian, else the parameters."""
        if self.layers is not None:
            return [(layer.weight, layer.bias) for layer in self.layers]  # type: ignore[misc]
        return [
            (
                pyro.sample(f"decoder.{l}.weight", self._normal((size_out, size_in), scale).to_event(2)),
                pyro.sample(f"decoder.{l}.bias", self._normal((size_out,), 1.0).to_event(1)),
            )
            for l, ((size_out, size_in), scale) in enumerate(zip(self.shapes, self.weight_scales, strict=True))
        ]

    def decode(self, z: Tensor, weights: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Logits or means of the pixels, (..., P), of latents (..., D)."""
        for weight, bias in weights[:-1]:
            z = F.leaky_relu(F.linear(z, weight, bias), 0.2)
        return F.linear(z, *weights[-1])

    def observation(self, output: Tensor) -> dist.TorchDistribution:
        """Distribution of the pixels given the decoder's output, batch shape (..., P)."""
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=output, validate_args=False)
        scale = torch.ones_like(self.zero) if self.log_scale is None else self.log_scale.exp()
        return dist.Normal(output, scale.expand_as(output))

    def _normal(self, shape: tuple[int, ...], scale: float) -> dist.Normal:
        return dist.Normal(self.zero.expand(shape), self.zero.new_full((), scale).expand(shape))
