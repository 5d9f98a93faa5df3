"""Coordinates in which a Gaussian of full covariance is standard, for chains that start there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from amortized_bayes.joint.factors import Factor

__all__ = ["Whitening"]


class Whitening(NamedTuple):
    """Coordinates u of each point, z = loc + matrix @ u, in which q is N(0, I).

    Args:
        loc: ``(B, D)``.
        matrix: ``(B, D, D)``; its rows at ``places`` are lower triangular.
        log_volume: log of its determinant, ``(B,)``.
        places: ``(D,)``.
    """

    loc: Tensor
    matrix: Tensor
    log_volume: Tensor
    places: Tensor

    @classmethod
    def of(cls, factors: Sequence[Factor]) -> Whitening | None:
        """Those of a product of Gaussians; ``None`` where each latent is independent of the others."""
        if all(factor.parameters["scale_tril"].shape[-1] == 1 for factor in factors):
            return None
        blocks = [block for f in factors for block in f.parameters["scale_tril"].unbind(1)]
        places = torch.cat([factor.places for factor in factors])
        loc = torch.cat([factor.parameters["loc"].flatten(1) for factor in factors], -1)
        tril = loc.new_zeros(*loc.shape, loc.shape[-1])
        end = 0
        for block in blocks:
            start, end = end, end + block.shape[-1]
            tril[:, start:end, start:end] = block
        order = places.argsort()
        return cls(loc[:, order], tril[:, order], tril.diagonal(dim1=-2, dim2=-1).log().sum(-1), places)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that :meth:`leave` needs, a row for each point."""
        return self.loc, self.matrix, self.log_volume

    def enter(self, z: Tensor) -> Tensor:
        """From z to u, ``(C, B, D)``."""
        away = (z - self.loc)[..., self.places].permute(1, 2, 0)
        return torch.linalg.solve_triangular(self.matrix[:, self.places], away, upper=False).permute(2, 0, 1)

    @staticmethod
    def leave(u: Tensor, loc: Tensor, matrix: Tensor, log_volume: Tensor) -> tuple[Tensor, Tensor]:
        """Z of u, ``(C, B, D)``, and what a log density gains on the way, ``(B,)``; by :attr:`tensors`."""
        return loc + (matrix @ u.permute(1, 2, 0)).permute(2, 0, 1), log_volume
