"""What searches for the q of single points share: where they start, and how the members of a family are scored."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from amortized_bayes.inference.families import Family
from amortized_bayes.joint import Gaussian, LogJoint, check_start, gaussian_start
from amortized_bayes.types import Guide

__all__ = ["score", "start_of"]

DRAWS = 50
"""Draws of a point that are scored at once."""


def start_of(joint: LogJoint, guide: Guide | Gaussian | None, num_fit: int, size: int) -> Gaussian:
    """Where each point starts, ``(B, D)``: at the guide's q, at Gaussians that are given, or at the prior's moments.

    Args:
        joint: density of the B points.
        guide: where to start.
        num_fit: draws of a guide, or of the prior, that a Gaussian is fitted to where it has none.
        size: points of a chunk.

    Raises:
        ValueError: Gaussians of another shape, or a guide that does not fit.
    """
    if isinstance(guide, Gaussian):
        check_start(joint, guide)
        return guide
    parts = []
    for part in torch.arange(joint.num_points).split(size):
        some = joint.select(part)
        if guide is None:
            draws = some.sample_prior(num_fit)
            parts.append(Gaussian(draws.mean(0), draws.std(0)))
        else:
            parts.append(gaussian_start(some, guide, num_fit))
    return Gaussian(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.no_grad()
def score(
    joint: LogJoint,
    family: Family,
    points: Tensor,
    members: Tensor,
    num_draws: int,
    max_rows: int,
    generator: Generator,
) -> Tensor:
    """Log p(x, z) - log q(z) of fresh draws, ``(S, R)``, of whose mean the ELBO is.

    Args:
        joint: density of all points.
        family: family of the members.
        points: the point of each member, ``(R,)``.
        members: ``(R, W)``.
        num_draws: S.
        max_rows: draws of points that are scored at once, about.
        generator: random generator for the draws.
    """
    values = []
    for run in torch.arange(len(points), device=points.device).split(max(1, max_rows // DRAWS)):
        some, rows = joint.select(points[run]), members[run]
        weights = []
        for draws in torch.arange(num_draws).split(DRAWS):
            noise = rows.new_empty(len(draws), len(run), joint.dim).normal_(generator=generator)
            drawn = family.draw(rows, noise)
            weights.append((some(drawn.z) - drawn.log_q).double())
        values.append(torch.cat(weights))
    return torch.cat(values, -1)
