"""Searches for q* of many points at once, from starts that are moved at random."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amortized_bayes.experiments.lab import Lab
from amortized_bayes.experiments.trained import Trained
from amortized_bayes.inference.optimize import LocalSettings, optimize_local
from amortized_bayes.joint import Gaussian, draw, draw_shared, gaussian_start, global_seed, joint_density
from amortized_bayes.seeding import torch_generator
from amortized_bayes.types import Factor

__all__ = ["Search", "search_points"]


class Search(NamedTuple):
    """One kind of search: its start, how far restarts are moved, steps, draws per step, restarts, scoring draws."""

    start: str
    spread: float
    budget: int
    samples: int
    restarts: int
    score: int

    @property
    def factors(self) -> dict[str, Factor]:
        """What tells its numbers from those of other searches; the reference is moved by nothing."""
        moved: dict[str, Factor] = {} if self.start == "reference" else {"spread": self.spread}
        return {"start": self.start, **moved, "budget": self.budget}


def search_points(trained: Trained, x: Tensor, search: Search, seed: int, lab: Lab) -> dict[str, np.ndarray]:
    """All restarts at once, as so many points: what was found, ``(R, B)`` each.

    Raises:
        ValueError: as :func:`~amortized_bayes.inference.optimize.optimize_local`.
    """
    with global_seed(seed, "shared"):
        fixed = draw_shared(trained.guide, x)[0]
    settings = LocalSettings(
        num_samples=search.samples,
        max_steps=search.budget,
        max_rounds=1,
        tolerance=0.0,  # a search uses up its budget
        num_score=search.score,
    )
    found = optimize_local(
        trained.model,
        _start(trained, x, fixed, search, seed),
        x.repeat(search.restarts, 1),
        settings=settings,
        fixed=fixed,
        seed=seed,
        progress=partial(lab.watch, "q*"),
    )
    parts = {"elbo_star": found.elbo_star, "error": found.standard_error, "residual": found.residual}
    parts |= {"residual_error": found.residual_error, "evaluations": found.evaluations}
    return {name: value.double().cpu().numpy().reshape(search.restarts, -1) for name, value in parts.items()}


def _start(trained: Trained, x: Tensor, fixed: dict[str, Tensor], search: Search, seed: int) -> Gaussian:
    """Where each restart begins, ``(R B, D)``: means moved at random about the encoder's answer or the prior's."""
    with global_seed(seed, "start"):
        q = gaussian_start(joint_density(trained.model, x, fixed=fixed), trained.guide, num_fit=100)
    if search.start == "prior":
        q = Gaussian(torch.zeros_like(q.loc), torch.ones_like(q.scale))
    generator = torch_generator(seed, "restarts", search.start, device=x.device)
    loc = draw(Gaussian(q.loc, search.spread * q.scale), search.restarts, generator)
    return Gaussian(loc.flatten(0, 1), q.scale.repeat(search.restarts, 1))
