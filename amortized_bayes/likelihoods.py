"""What pixels are given the decoder's output: one entry per likelihood, read by models, loading and flags. No torch.

Flags name a likelihood and how its scale is set; ``with_scale`` makes the name of an entry of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pyro.distributions import TorchDistribution
    from torch import Tensor

__all__ = ["CHOICES", "LIKELIHOODS", "Likelihood", "with_levels", "with_scale"]

LEARNED = "-learned"
"""How the names of likelihoods with a learned scale end."""


class Likelihood(NamedTuple):
    """The distribution of the pixels given the decoder's output.

    Args:
        binary: pixels are 0 or 1, so that grey values are binarized; else they are used as they are.
        distribution: of the pixels, given the output ``(..., P)`` and a scale, the same for all pixels; or, of counts,
            their ``levels``.
        learned: the scale is a parameter of the model, starting at 1; else it is 1.
        levels: grey values are counts, divided by so many; 0 where they are none. Counts have no scale.
    """

    binary: bool
    distribution: Callable[[Tensor, Any], TorchDistribution]
    learned: bool = False
    levels: int = 0


def _bernoulli(output: Tensor, scale: Tensor) -> TorchDistribution:
    import pyro.distributions as dist

    return dist.Bernoulli(logits=output, validate_args=False)  # grey pixels have a score too


def _gaussian(output: Tensor, scale: Tensor) -> TorchDistribution:
    import pyro.distributions as dist

    return dist.Normal(output, scale.expand_as(output))


def _binomial(output: Tensor, levels: int) -> TorchDistribution:
    from amortized_bayes.binomial import BinomialProportion

    return BinomialProportion(levels, output)


LIKELIHOODS: dict[str, Likelihood] = {
    "bernoulli": Likelihood(True, _bernoulli),
    "gaussian": Likelihood(False, _gaussian),
    f"gaussian{LEARNED}": Likelihood(False, _gaussian, learned=True),
    "binomial": Likelihood(False, _binomial, levels=255),
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


def with_levels(likelihood: str, levels: int) -> Likelihood:
    """The entry of ``LIKELIHOODS``, for data of so many grey levels if it is of counts.

    Example:
        >>> with_levels("binomial", 16).levels, with_levels("gaussian", 16).levels
        (16, 0)
    """
    entry = LIKELIHOODS[likelihood]
    return entry._replace(levels=levels) if entry.levels else entry
