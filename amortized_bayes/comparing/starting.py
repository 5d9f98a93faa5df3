"""Where a fit begins: model, guide and training at their start, from a kept state, or at the answer of another fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amortized_bayes.comparing.problem import FitProblem
from amortized_bayes.guides import LocalGuide, MeanField
from amortized_bayes.guides.registry import GUIDES, Fit, GuideSpec, guide_entry
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.inference.semi_amortized import OWN_STEPS, SemiAmortized
from amortized_bayes.inference.svi import Training
from amortized_bayes.seeding import torch_seed
from amortized_bayes.sites import LatentSites

__all__ = ["Fitting", "Start", "restore_fit", "start_at", "start_fit"]


class Start(NamedTuple):
    """Where a guide starts that starts at the answer of another.

    Args:
        rows: locations and log scales of all points, (N, 2 D).
        shared: state of q(theta).
        put_model: puts the parameters of the model it is given to where they were then.
        step: steps that led there.
        seconds: that these took.
    """

    rows: Tensor
    shared: Mapping[str, Tensor] | None
    put_model: Callable[[Any], None]
    step: int
    seconds: float


class Fitting(NamedTuple):
    """A model and a guide being fitted, and where it started, unless at its own start.

    ``asked`` is what gives the guide's answers: itself, or itself with per-point steps.
    """

    fit: Fit
    model: Any
    guide: Any
    asked: Any
    sites: LatentSites
    training: Training
    start: Start | None = None


def start_fit(problem: FitProblem, fit: Fit, start: Start | None = None, options: FitOptions | None = None) -> Fitting:
    """Model, guide and training at their start; ``options`` are those of the problem, unless others are given.

    Raises:
        ValueError: a guide that is neither in ``GUIDES`` nor the user's own.
    """
    if fit.guide not in (*GUIDES, *problem.own):
        raise ValueError(f"expected a guide among {', '.join(GUIDES)}, got {fit.guide!r}")
    model, sites = problem.new_model()
    guide: Any
    asked: Any
    guide = asked = problem.own[fit.guide] if fit.guide in problem.own else _build_guide(problem, sites, fit, start)
    if (when := guide_entry(fit.guide).own_steps) != "never":
        asked = SemiAmortized(model, guide, problem.own_steps, seed=problem.seed, **OWN_STEPS).to(problem.data.device)
        guide = asked if when == "always" else guide
    if start is not None:
        start.put_model(model)
    options = options or problem.options_of(fit, len(problem.data))
    training = Training(model, guide, problem.data, options, problem.seed, plate=problem.plate)
    return Fitting(fit, model, guide, asked, sites, training, start)


def restore_fit(problem: FitProblem, fit: Fit, state: Mapping[str, Tensor]) -> Fitting:
    """A fit from the state of its training.

    Raises:
        ValueError: the state of another model or guide.
    """
    fitting = start_fit(problem, fit)
    fitting.training.load_state(dict(state))
    return fitting


@torch.no_grad()
def start_at(
    problem: FitProblem, fitting: Fitting, keep: Callable[[Any], Callable[[Any], None]] | None = None
) -> Start:
    """The answer of a fit, as a start for another: the Gaussian of each point, q(theta) and the model's parameters.

    Args:
        problem: what was fitted.
        fitting: the fit.
        keep: remembers the parameters of the model it is given, and returns what puts them into another; by default
            those of a module.
    """
    training = fitting.training
    with training.averaged():
        rows = fitting.guide.answer(problem.x, problem.index).clone()
        shared = fitting.guide.shared
        state = None if shared is None else {name: value.clone() for name, value in shared.state_dict().items()}
        put_model = (keep or _keep_module)(fitting.model)
    return Start(rows, state, put_model, training.steps, training.seconds)


def _keep_module(model: nn.Module) -> Callable[[nn.Module], None]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return lambda other: other.load_state_dict(state) and None


def _build_guide(problem: FitProblem, sites: LatentSites, fit: Fit, start: Start | None) -> LocalGuide:
    entry = guide_entry(fit.guide)
    like = fit.guide if entry.own_steps == "never" else entry.like
    torch.manual_seed(torch_seed(problem.seed, "guide", like, fit.k or 0))
    shared = None
    if sites.shared and problem.published:
        shared = MeanField(sites.shared, log_scale=-2.0)
    elif sites.shared:
        shared = MeanField(sites.shared, locs=sites.shared_draw)
    if shared is not None and start is not None and start.shared is not None:
        shared.load_state_dict(start.shared)
    seen = None if problem.seen is None else problem.seen.of_guide(trained=entry.has_width)
    spec = GuideSpec(
        sites.local,
        problem.tensor if seen is None else seen.see(problem.x).detach(),
        fit.k or 1,
        problem.depth,
        shared,
        problem.plate,
        None if start is None else start.rows,
        problem.published,
        problem.options(fit).center_input,
    )
    guide = entry.build(spec)
    guide.seen = seen
    return guide.to(device=problem.data.device, dtype=problem.dtype)
