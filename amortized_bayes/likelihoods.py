"""What pixels are given the decoder's output: one entry per likelihood, read by models, loading and flags. No torch.

Flags name a likelihood and how its scale is set; ``with_scale`` makes the name of an entry of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pyro.distributions import TorchDistribution
    from torch import Tensor

__all__ = ["CHOICES", "LIKELIHOODS", "Likelihood", "with_scale"]

LEARNED = "-learned"
"""How the names of likelihoods with a learned scale end."""


class Likelihood(NamedTuple):
    """The distribution of the pixels given the decoder's output.

    Args:
        binary: pixels are 0 or 1, so that grey values are binarized; else they are used as they are.
        distribution: of the pixels, given the output ``(..., P)`` and a scale, the same for all pixels.
        learned: the scale is a parameter of the model, starting at 1; else it is 1.
    """

    binary: bool
    distribution: Callable[[Tensor, Tensor], TorchDistribution]
    learned: bool = False


def _bernoulli(output: Tensor, scale: Tensor) -> TorchDistribution:
    import pyro.distributions as dist

    return dist.Bernoulli(logits=output, validate_args=False)  # grey pixels have a score too


def _gaussian(output: Tensor, scale: Tensor) -> TorchDistribution:
    import pyro.distributions as dist

    return dist.Normal(output, scale.expand_as(output))


LIKELIHOODS: dict[str, Likelihood] = {
    "bernoulli": Likelihood(True, _bernoulli),
    "gaussian": Likelihood(False, _gaussian),
    f"gaussian{LEARNED}": Likelihood(False, _gaussian, learned=True),
}
"""Likelihoods by name."""

CHOICES = tuple(name for name in LIKELIHOODS if not name.endswith(LEARNED))
"""What ``--likelihood`` may be; ``--gaussian-scale learned`` makes the scale a parameter."""


def with_scale(likelihood: str, scale: str) -> str:
    """The entry of ``LIKELIHOODS`` that two flags choose: ``gaussian`` and ``learned`` are ``gaussian-learned``.

    A likelihood without a learned form, such as ``bernoulli``, stays what it is.

    Example:
        >>> with_scale("gaussian", "learned"), with_scale("bernoulli", "learned")
        ('gaussian-learned', 'bernoulli')
    """
    learned = f"{likelihood}{LEARNED}"
    return learned if scale == "learned" and learned in LIKELIHOODS else likelihood
