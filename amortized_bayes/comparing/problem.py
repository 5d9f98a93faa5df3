"""What guides are fitted to and compared on: one type, filled in by the image sweep and by anybody's Pyro model.

Every family is fitted on a *ladder of budgets*: afresh for 1/2, 1/4, ... of the epochs, each with rates that fall to
their ends, and then for all of them, by going on from the fit of 1/2. A run whose rates fall is no anytime curve, so
times and what is not converged are read off the ladder. F-VI from A-VI goes on from the best A-VI of 1/2 for as long,
so that at the top of the ladder all have taken equally many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amortized_bayes.guides.registry import Fit, guide_entry
from amortized_bayes.guides.seen import Seen
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.inference.streams import batch_length
from amortized_bayes.points import PointRows
from amortized_bayes.sites import LatentSites

__all__ = ["FitProblem", "Held", "floats"]


class Held(NamedTuple):
    """What is measured beside the ELBO: where data have real values behind them, and test points.

    Args:
        target: what predictions of the training points are compared with, (N, P): grey pixels, say.
        test: test points, (N', ...).
        test_target: likewise, (N', P).
        particles: particles of IWAE.
        points: on which it is measured.
        predictive_points: test points on which the log predictive density is.
        shown: places of the test points whose reconstructions are kept.
    """

    target: Tensor
    test: Tensor
    test_target: Tensor
    particles: int = 50
    points: int = 1_000
    predictive_points: int = 200
    shown: Sequence[int] = ()


@dataclass(frozen=True)
class FitProblem:
    """A model and data. Every guide is fitted to them from the same start, for as many epochs, and measured alike.

    Args:
        data: (N, ...), on the device, or rows of several tensors.
        new_model: the model with its parameters at their start, called as ``model(x, index)``, and its latent sites;
            called before every fit.
        options: how to fit a guide.
        seed: random seed for guides, batches and draws.
        epochs: passes over the data of each fit in all.
        budgets: epochs of the fits that start afresh, rising; the last is half of all.
        depth: hidden layers of encoders.
        own_steps: per-point steps, of guides that take them.
        num_draws: for the final ELBO.
        plate: name of the plate over data points.
        analytic_kl: in evaluations; see :func:`~amortized_bayes.expectations.expected_log_weights`.
        local_reparametrization: likewise.
        published: guides start as in the code of Margossian & Blei (2024).
        name: name of the random streams of evaluations; without one they go on from the start of the guide.
        held: what else to measure.
        own: guides of the user's own, by name, called with data and places.
        seen: what guides see of the data, where that is not the data themselves.
    """

    data: Tensor | PointRows
    new_model: Callable[[], tuple[Any, LatentSites]]
    options: Callable[[Fit], FitOptions]
    seed: int
    epochs: int
    budgets: Sequence[int]
    depth: int = 1
    own_steps: int = 1
    num_draws: int = 20
    plate: str = "data"
    analytic_kl: bool = True
    local_reparametrization: bool = False
    published: bool = False
    name: str = ""
    held: Held | None = None
    seen: Seen | None = None
    own: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def x(self) -> Any:
        """The data as floats, or the rows as they are."""
        return floats(self.data)

    @property
    def tensor(self) -> Tensor:
        """The data, where they are one tensor."""
        assert isinstance(self.data, Tensor), "rows of several tensors have no pixels, and guides see them by `seen`"
        return self.data

    @property
    def dtype(self) -> torch.dtype:
        """Of guides."""
        return self.x.dtype if self.seen is None else self.seen.dtype

    @property
    def index(self) -> Tensor:
        """Places of all points."""
        return torch.arange(len(self.data), device=self.data.device)

    def options_of(self, fit: Fit, num_data: int) -> FitOptions:
        """How to fit a guide to ``num_data`` points."""
        options = self.options(fit)
        options = options.settled if guide_entry(fit.guide).starts_from else options
        return replace(options, batch_size=batch_length(num_data, options.batch_size))

    def stream(self, fit: Fit, *more: str) -> tuple[str, ...]:
        """Names of the random stream of a fit's evaluations; none where they go on from the start of the guide."""
        width = "" if fit.k is None else f"-k{fit.k}"
        return ("evaluation", f"{self.name}_{fit.guide}{width}", *more) if self.name else ()


def floats(data: Any) -> Any:
    """Data as floats; floats, and rows of several tensors, stay as they are."""
    return data if data.is_floating_point() else data.to(torch.get_default_dtype())
