r"""A variational autoencoder in plain PyTorch as a model and a guide.

.. math::
    z \sim N(0, I_D), \qquad x \sim p(x \mid \text{decoder}(z)), \qquad
    q(z \mid x) = N(\mu(x), \operatorname{diag}\, \sigma(x)^2), \quad (\mu, \sigma) = \text{encoder}(x)

(Kingma & Welling, *Auto-Encoding Variational Bayes*, 2014). The networks are used as they are. What their outputs mean
is told by their names or by the caller, and checked: a log variance taken for a log scale gives numbers that are wrong
and look right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortized_bayes.guides.amortized import Amortized
from amortized_bayes.likelihoods import LIKELIHOODS, with_levels
from amortized_bayes.limits import Count, Positive, limited
from amortized_bayes.plain_vae.outputs import Network
from amortized_bayes.plain_vae.programs import DecoderModel, EncoderGuide, allowed_outputs
from amortized_bayes.refusals import did_you_mean

__all__ = ["VAE", "vae"]

NAMES = ("bernoulli", "gaussian", "binomial")
SCALES = "1.0 where the loss was ½ Σ(x - mean)² per point, 0.7071 (√½) where it was Σ(x - mean)²"


class VAE(NamedTuple):
    """A VAE as two Pyro programs: ``ab.diagnose(*pair, x)``.

    Args:
        model: ``model(x)``, with sites ``z`` (D,) and ``x`` in the plate ``data``.
        guide: ``guide(x)``.

    Example:
        >>> pair = vae(nn.Linear(3, 2), nn.Linear(1, 3), "gaussian", 1, scale=1.0, encoder_gives="log_variance")
        >>> pair.guide.locate(torch.zeros(4, 3), torch.arange(4)).shape
        torch.Size([4, 2])
    """

    model: nn.Module
    guide: Amortized


@limited
def vae(
    encoder: Network,
    decoder: Network,
    likelihood: str | Callable[[Any], dist.TorchDistribution],
    latent_dim: Count,
    *,
    encoder_gives: Literal["log_variance", "log_scale", "scale", "variance"] | None = None,
    decoder_gives: Literal["logits", "probs", "mean"] | None = None,
    scale: Positive | Tensor | None = None,
    levels: Count | None = None,
) -> VAE:
    """Take two plain PyTorch networks as the guide and the model of a VAE, with the prior N(0, I).

    The networks are not copied. To be sure that their outputs are what you say, compare ``ab.elbo(*pair, x).mean()``
    with the loss that they were trained on.

    Args:
        encoder: data ``(B, ...)`` to a mean and a spread ``(B, D)``: a pair, one tensor ``(B, 2 D)``, a normal
            distribution, or a mapping or object with a field of each, such as ``embedding`` and ``log_covariance``.
            A module, or a function or method of one.
        decoder: z ``(B, D)`` to as many numbers as a data point has: a tensor, or a field such as ``reconstruction``.
        likelihood: ``bernoulli``, ``gaussian`` (with ``scale``) or ``binomial`` (grey values in [0, 1] as counts out
            of ``levels``); or a function of the decoder's output that gives a ``pyro.distributions`` distribution of
            the shape of the data.
        latent_dim: D.
        encoder_gives: what the spread is; ``None`` if the name of its field says so.
        decoder_gives: whether a Bernoulli or binomial decoder gives logits or probabilities; likewise.
        scale: standard deviation of a Gaussian likelihood, a number above 0 or one for each entry of a point.
        levels: number of levels of a binomial likelihood; by default 255.

    Raises:
        ValueError: networks in training mode, an option that is missing or makes no sense, or (when it is called)
            outputs that cannot be what they are said to be.
        TypeError: networks that cannot be called.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> encoder, decoder = torch.nn.Linear(9, 2 * 2), torch.nn.Linear(2, 9)
        >>> pair = ab.vae(
        ...     encoder, decoder, "bernoulli", latent_dim=2, encoder_gives="log_variance", decoder_gives="logits"
        ... )
        >>> ab.elbo(*pair, torch.ones(4, 9)).value.shape
        torch.Size([4])
    """
    chosen = _likelihood(likelihood, decoder_gives, scale, levels)
    gives = "mean" if likelihood == "gaussian" else decoder_gives
    return VAE(
        DecoderModel(decoder, latent_dim, chosen, gives, scale), EncoderGuide(encoder, latent_dim, encoder_gives)
    )


def _likelihood(likelihood: Any, gives: str | None, scale: Any, levels: int | None) -> Any:
    """An entry of ``LIKELIHOODS``, or the function that was given; options that do not go with it are refused."""
    if isinstance(likelihood, str) and likelihood not in NAMES:
        known = " and scale= its value" if likelihood in LIKELIHOODS else ""
        raise ValueError(
            f"expected a likelihood among {', '.join(NAMES)}{known}, or a function of the decoder's output, "
            f"got {likelihood!r}{did_you_mean(likelihood, NAMES)}"
        )
    entry = LIKELIHOODS[likelihood] if isinstance(likelihood, str) else None
    allowed = allowed_outputs(entry) if entry else ()
    if gives is not None and gives not in allowed:
        options = f"decoder_gives={' or '.join(map(repr, allowed))}" if allowed else "no decoder_gives"
        raise ValueError(f"expected {options} with this likelihood, got {gives!r}")
    if likelihood == "gaussian" and scale is None:
        raise ValueError(f"expected scale= with a Gaussian likelihood: {SCALES}")
    if likelihood != "gaussian" and scale is not None:
        raise ValueError("expected scale= with a Gaussian likelihood alone, got it with another")
    if scale is not None and not bool(((values := torch.as_tensor(scale)) > 0).all() and values.isfinite().all()):
        raise ValueError(f"expected a scale above 0, got {torch.as_tensor(scale).min().item():g}")
    if likelihood != "binomial" and levels is not None:
        raise ValueError("expected levels= with a binomial likelihood alone, got it with another")
    return with_levels("binomial", levels) if levels is not None else entry or likelihood
