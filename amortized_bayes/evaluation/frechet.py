r"""Fréchet distance of two sets of features, as if both were Gaussian (Heusel et al., 2017):

.. math:: |\mu_1 - \mu_2|^2 + \operatorname{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})

computed by torchmetrics, with any features. It is named FID only where they are Inception's. From finite sets it comes
out too large, the more so the fewer images; so sets of one size are compared, and a second set of true images says what
a distance of 0 comes out as.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from amortized_bayes.data.torchvision_bridge import import_torchvision_datasets

__all__ = ["check_frechet", "features_of", "frechet_distance"]

BLOCKS = 10
"""Of the jackknife."""


class _AsGiven(nn.Module):
    """Features that are known already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def check_frechet(num_images: int, num_features: int) -> None:
    """Refuse what no distance can be computed of.

    Raises:
        ValueError: without torchmetrics, or with fewer images than features and one.
    """
    if find_spec("torchmetrics") is None:
        raise ValueError(
            "expected torchmetrics, which computes Fréchet distances, got none: pip install 'amortized_bayes[celeba]'"
        )
    least = math.ceil((num_features + 1) * BLOCKS / (BLOCKS - 1))
    if num_images < least:
        raise ValueError(
            f"expected {least:,} or more images for a Fréchet distance of {num_features:,} features, so that "
            f"covariances have full rank without a tenth of them, got {num_images:,}"
        )


def features_of(extract: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Tensor:
    """Features of all images in float64 and on the CPU, ``(N, F)``.

    Raises:
        ValueError: not one row of features for each image.
        ArithmeticError: features that are not finite.
    """
    found = []
    with torch.no_grad():
        for batch in batches:
            features = extract(batch)
            if features.dim() != 2 or len(features) != len(batch):
                raise ValueError(f"expected features ({len(batch)}, F), got {tuple(features.shape)}")
            found.append(features.double().cpu())
    whole = torch.cat(found)
    if not whole.isfinite().all():
        raise ArithmeticError("expected finite features of images, got others")
    return whole


def frechet_distance(real: Tensor, other: Tensor) -> tuple[float, float]:
    """Fréchet distance of two sets of features ``(N, F)``, and its standard error by the jackknife over ten blocks.

    Raises:
        ValueError: as :func:`check_frechet`, or sets of different sizes.

    Example:
        >>> features = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> value, error = frechet_distance(features, features + 1)
        >>> round(value, 3)
        3.0
    """
    if real.shape != other.shape or real.dim() != 2:
        raise ValueError(f"expected two sets of one size (N, F), got {tuple(real.shape)} and {tuple(other.shape)}")
    check_frechet(*real.shape)
    real, other = real.cpu(), other.cpu()
    block = torch.arange(len(real)) * BLOCKS // len(real)
    without = torch.tensor([_distance(real[block != b], other[block != b]) for b in range(BLOCKS)])
    error = math.sqrt((BLOCKS - 1) * float(without.var(correction=0)))
    return _distance(real, other), error


def _distance(real: Tensor, other: Tensor) -> float:
    with suppress(ImportError):
        import_torchvision_datasets()  # which torchmetrics imports where it is installed
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_AsGiven(real.shape[1]))
    metric.update(real.double(), real=True)
    metric.update(other.double(), real=False)
    return float(metric.compute())
