r"""The deep generative model: one latent vector per data point, decoded by a network.

.. math::
    \theta \sim \prod_l N(0, v_l), \qquad z_n \sim N(0, I_D), \qquad x_n \sim p(x \mid f_\theta(z_n)),

with decoder weights theta that are sample sites with priors (a Bayesian decoder, as in Margossian & Blei, UAI 2024) or,
on request, point estimates (the VAE of Kingma & Welling, 2014).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.func import functional_call

from amortized_bayes.likelihoods import LIKELIHOODS, Likelihood
from amortized_bayes.limits import AtLeast, Natural, limited
from amortized_bayes.networks import MLP, Activation, fan_in
from amortized_bayes.refusals import did_you_mean
from amortized_bayes.registration import Registered

__all__ = ["DeepGenerative", "DeepGenerativeBits"]


class DeepGenerative(Registered):
    """Decoder D -> hidden -> P, or another network, as a Pyro program over the plate ``data``.

    Sites: ``z`` (D,) and ``x`` (P,) inside the plate; ``decoder.<l>.weight`` and ``decoder.<l>.bias`` of each layer l
    outside it if ``bayesian``.

    Args:
        observed: P.
        latent_dim: D.
        hidden: widths of the decoder's hidden layers; or, to be used as it is, a decoder ``(..., D) -> (..., P)`` of
            dense and convolutional layers.
        num_data: N, the size of the plate when a batch is given by ``index``.
        likelihood: one of ``LIKELIHOODS``: ``bernoulli``; ``gaussian`` with variance 1; ``gaussian-learned``, with one
            scale for all pixels, point-estimated; or ``binomial``, of grey values in [0, 1] that are counts out of 255,
            divided by 255. Or an entry of its own, such as ``with_levels("binomial", 16)``.
        bayesian: decoder weights are latent, else point estimates.
        weight_prior: variance of the weights' priors: ``fan-in`` for 1 / inputs, or ``standard`` for 1.
        activation: between the layers of a dense decoder: leaky-relu, elu, tanh or relu.

    Raises:
        ValueError: a size below 1, or an unknown likelihood, prior or activation.
        TypeError: a Bayesian decoder with layers of other kinds.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.DeepGenerative(observed=9, latent_dim=2, hidden=[5], num_data=4)
        >>> [site.name for site in ab.latent_sites(model, torch.zeros(4, 9)).shared]
        ['decoder.0.weight', 'decoder.0.bias', 'decoder.1.weight', 'decoder.1.bias']
    """

    zero: Tensor

    @limited
    def __init__(
        self,
        observed: Natural,
        latent_dim: Natural,
        hidden: Annotated[Sequence[int], AtLeast(1, math.inf)] | nn.Module,
        num_data: Natural,
        *,
        likelihood: str | Likelihood = "bernoulli",
        bayesian: bool = True,
        weight_prior: Literal["fan-in", "standard"] = "fan-in",
        activation: Activation = "leaky-relu",
    ) -> None:
        super().__init__()
        sizes = [latent_dim, *(() if isinstance(hidden, nn.Module) else hidden), observed]
        if isinstance(likelihood, str) and likelihood not in LIKELIHOODS:
            near = did_you_mean(likelihood, LIKELIHOODS)
            raise ValueError(f"expected a likelihood among {', '.join(LIKELIHOODS)}, got {likelihood!r}{near}")
        self.latent_dim = latent_dim
        self.num_data = num_data
        self.likelihood = LIKELIHOODS[likelihood] if isinstance(likelihood, str) else likelihood
        # of a Bayesian decoder only the form is needed: its tensors are drawn
        with torch.device("meta" if bayesian else torch.get_default_device()):
            decoder = hidden if isinstance(hidden, nn.Module) else MLP(sizes, None, activation)
        self.priors = _priors(decoder, weight_prior) if bayesian else {}
        # in a tuple, a module is not registered: the weights of a Bayesian decoder are sites and no parameters
        self.network = None if bayesian else decoder
        self._form = (decoder,)
        self.log_scale = nn.Parameter(torch.zeros(())) if self.likelihood.learned else None
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Sample (or score) the model on data ``x`` of shape (B, P), the points ``index`` (B,) of all N."""
        weights = self.weights()
        size = len(x) if index is None else self.num_data
        with pyro.plate("data", size, subsample=index):
            z = pyro.sample("z", self.prior().to_event(1))
            return pyro.sample("x", self.observation(self.decode(z, weights)).to_event(1), obs=x)

    def prior(self) -> dist.TorchDistribution:
        """Distribution of the latents, batch shape (D,)."""
        return self._normal((self.latent_dim,), 1.0)

    def weights(self) -> dict[str, Tensor]:
        """Tensors of the decoder by name, such as ``0.weight``: sampled if Bayesian, else the parameters."""
        if self.network is not None:
            return dict(self.network.named_parameters())
        return {
            name: pyro.sample(f"decoder.{name}", self._normal(shape, scale).to_event(len(shape)))
            for name, (shape, scale) in self.priors.items()
        }

    def decode(self, z: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Logits or means of the pixels, (..., P), of latents (..., D)."""
        return functional_call(self._form[0], dict(weights), (z,))

    def observation(self, output: Tensor) -> dist.TorchDistribution:
        """Distribution of the pixels given the decoder's output, batch shape (..., P)."""
        scale = torch.ones_like(self.zero) if self.log_scale is None else self.log_scale.exp()
        return self.likelihood.distribution(output, self.likelihood.levels or scale)

    def _normal(self, shape: tuple[int, ...], scale: float) -> dist.Normal:
        return dist.Normal(self.zero.expand(shape), self.zero.new_full((), scale).expand(shape))


class DeepGenerativeBits(DeepGenerative):
    """The same model with fair bits as latents, z_nd ~ Bernoulli(1/2).

    Example:
        >>> import torch
        >>> model = DeepGenerativeBits(observed=9, latent_dim=2, hidden=[5], num_data=4, bayesian=False)
        >>> model.prior().mean
        tensor([0.5000, 0.5000])
    """

    def prior(self) -> dist.TorchDistribution:
        """Distribution of the latents, batch shape (D,)."""
        return dist.Bernoulli(self.zero.new_full((), 0.5).expand(self.latent_dim))


def _priors(decoder: nn.Module, weight_prior: str) -> dict[str, tuple[tuple[int, ...], float]]:
    """Shape of each tensor of a decoder, and the scale of its prior: biases have 1."""
    found = {}
    for path, layer in decoder.named_modules():
        for name, tensor in layer.named_parameters(recurse=False):
            scale = 1 / math.sqrt(fan_in(layer)) if name == "weight" and weight_prior == "fan-in" else 1.0
            found[f"{path}.{name}" if path else name] = (tuple(tensor.shape), scale)
    return found
