"""What guides are fitted to and compared on: one type, filled in by the image sweep and by anybody's Pyro model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amortized_bayes.guides.registry import GUIDES, Fit
from amortized_bayes.inference.options import FitOptions, settling
from amortized_bayes.sites import LatentSites

__all__ = ["FitProblem", "Held", "floats"]


class Held(NamedTuple):
    """What is measured beside the ELBO: where data have real values behind them, and test points.

    Args:
        target: what predictions of the training points are compared with, (N, P): grey pixels, say.
        test: test points, (N', ...).
        test_target: likewise, (N', P).
        particles: of IWAE and the log predictive density.
        points: on which these two are measured.
    """

    target: Tensor
    test: Tensor
    test_target: Tensor
    particles: int = 50
    points: int = 1_000


@dataclass(frozen=True)
class FitProblem:
    """A model and data. Every guide is fitted to them from the same start, for as many epochs, and measured alike.

    Args:
        data: (N, ...), on the device.
        new_model: the model with its parameters at their start, called as ``model(x, index)``, and its latent sites;
            called before every fit.
        options: how to fit the guide of a name, but for what its entry in ``GUIDES`` says.
        seed: of guides, batches and draws.
        epochs: passes over the data of each fit.
        depth: hidden layers of encoders.
        num_draws: for the final ELBO.
        plate: name of the plate over data points.
        analytic_kl: in evaluations; see :func:`~amortized_bayes.expectations.expected_log_weights`.
        local_reparametrization: likewise.
        num_reports: points on the curves.
        published: guides start as in the code of Margossian & Blei (2024).
        name: of the random streams of evaluations; without one they go on from the start of the guide.
        held: what else to measure.
    """

    data: Tensor
    new_model: Callable[[], tuple[Any, LatentSites]]
    options: Callable[[str], FitOptions]
    seed: int
    epochs: int
    depth: int = 1
    num_draws: int = 20
    plate: str = "data"
    analytic_kl: bool = True
    local_reparametrization: bool = False
    num_reports: int = 28
    published: bool = False
    name: str = ""
    held: Held | None = None

    @property
    def x(self) -> Tensor:
        """The data as floats."""
        return floats(self.data)

    @property
    def index(self) -> Tensor:
        """Places of all points."""
        return torch.arange(len(self.data), device=self.data.device)

    def options_of(self, guide: str, num_data: int) -> FitOptions:
        """How to fit a guide to ``num_data`` points."""
        entry = GUIDES[guide]
        options = self.options(guide)
        # only a reference, which no other fit is timed against: let its step fall, so that its rows settle
        schedule = settling if entry.starts_from else options.schedule
        return replace(options, batch_size=min(options.batch_size, num_data), schedule=schedule)

    def stream(self, fit: Fit, *more: str) -> tuple[str, ...]:
        """Names of the random stream of a fit's evaluations; none where they go on from the start of the guide."""
        width = "" if fit.k is None else f"-k{fit.k}"
        return ("evaluation", f"{self.name}_{fit.guide}{width}", *more) if self.name else ()


def floats(data: Tensor) -> Tensor:
    """Data as floats; floats stay as they are."""
    return data if data.is_floating_point() else data.to(torch.get_default_dtype())
