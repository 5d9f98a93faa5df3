"""Where the chains of a diagnosis start: at the guide's q, or where that belongs to the real points, at a search."""

from __future__ import annotations

from dataclasses import replace

import torch

from amortized_bayes.evaluation.bdmc import simulated_points
from amortized_bayes.guides.easyguides import forget_plates
from amortized_bayes.inference.bit_search import search_bits
from amortized_bayes.inference.optimize import optimize_local
from amortized_bayes.inference.settings import LocalSettings
from amortized_bayes.joint import Bernoullis, FreshStart, LogJoint, Product, follows_data
from amortized_bayes.types import Guide

__all__ = ["SEARCHED", "chain_start", "fresh_start"]

SEARCHED = (
    "the guide's parameters belong to the real points, so that its q says nothing of simulated ones: chains start at a "
    "search for each point of either kind"
)
POINTS = 8
"""Simulated points on which it is seen whether the guide follows the data."""


def chain_start(real: LogJoint, guide: Guide, num_fit: int, local: LocalSettings, seed: int) -> Guide | FreshStart:
    """The guide, or, where its q has per-point parameters, a search for q* of any points, from the prior.

    Factorized guides, tables of ``pyro.param`` and Pyro's autoguides have such rows. Chains that start there for the
    real points cannot be certified on others; those that start at a search are the same for both.
    """
    some = real.select(torch.arange(min(POINTS, real.num_points)))
    try:
        simulated, _ = simulated_points(real, some.num_points, seed, "follows")
    except ValueError:  # no data can be drawn, and there is nothing to certify on
        return guide
    try:
        if follows_data(some, simulated, guide, num_fit, seed):
            return guide
    except (RuntimeError, ValueError, IndexError):  # on all points it runs: it takes no others
        forget_plates(guide)

    return fresh_start(local, seed)


def fresh_start(local: LocalSettings, seed: int) -> FreshStart:
    """The search. Where chains start need not be the optimum, only found alike for all points: one round goes there."""
    rough = replace(local, max_rounds=1, num_restarts=1)

    def search(joint: LogJoint) -> Product:
        if joint.is_bits:
            return Bernoullis(search_bits(joint, None, rough, seed).logits)
        args, kwargs = joint.arguments
        options = {"settings": rough, "plate": joint.plate, "fixed": joint.fixed, "seed": seed}
        return optimize_local(joint.model, None, *args, **options, **kwargs).q

    return FreshStart(search)
