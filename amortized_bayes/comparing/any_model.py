"""Constant, amortized and factorized guides, built from anybody's Pyro model, fitted and compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pyro import poutine
from torch import Tensor

from amortized_bayes.calls import Bound, PerPointNames, bind_points, check_several
from amortized_bayes.comparing.comparison import Comparison
from amortized_bayes.comparing.encoder_input import encoder_view
from amortized_bayes.comparing.fitted import with_own_states
from amortized_bayes.comparing.own_guides import take_guides
from amortized_bayes.comparing.problem import FitProblem
from amortized_bayes.comparing.race import run_race
from amortized_bayes.guides.registry import Fit, guide_entry, list_budgets, list_fits
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.inference.streams import cuda_devices
from amortized_bayes.joint.checks import check_model
from amortized_bayes.limits import AtLeast, Count, Depth, Seed, limited
from amortized_bayes.point_programs import PointProgram
from amortized_bayes.program_errors import said_of
from amortized_bayes.progress import Told, Watch, watched
from amortized_bayes.seeding import torch_seed
from amortized_bayes.signatures import check_keywords, own_options, takes
from amortized_bayes.sites import LatentSites, latent_sites
from amortized_bayes.snapshots import Snapshot, snapshot
from amortized_bayes.types import Guide, Model, Row

__all__ = ["ComparisonSettings", "compare"]

OURS = ("constant", "amortized", "factorized")
"""Guides that are compared unless others are named."""


@limited
@dataclass(frozen=True)
class ComparisonSettings:
    """How :func:`compare` fits and measures.

    Args:
        epochs: passes over the data for each fit; smaller budgets are fitted first, to see what more epochs gain.
        rungs: smaller budgets, each half of the next.
        depth: hidden layers of the encoder.
        num_draws: draws for the final ELBO.
        fit: how to fit; batches are smaller where there are fewer points, and so are steps of encoders wider than 64.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> from amortized_bayes import ComparisonSettings
        >>> ComparisonSettings(epochs=50).depth
        1
    """

    epochs: Annotated[int, AtLeast(2)] = 400
    rungs: Annotated[int, AtLeast(1, 60)] = 3
    depth: Depth = 1
    num_draws: Count = 20
    fit: FitOptions = field(default_factory=FitOptions.recipe)


@own_options
@limited
def compare(
    model: Model,
    *args: Any,
    plate: str | None = None,
    per_point: PerPointNames = None,
    encoder_input: Callable[..., Tensor] | None = None,
    widths: Annotated[Sequence[int], AtLeast(1, math.inf)] = (1, 16, 64),
    guides: Sequence[str] | Mapping[str, Guide] = OURS,
    settings: ComparisonSettings | None = None,
    seed: Seed = 0,
    progress: bool | Watch = True,
    on_row: Callable[[Row], object] | None = None,
    **kwargs: Any,
) -> Comparison:
    """Fit constant, amortized (each width) and factorized guides, built from the model's own trace, and compare them.

    Shared latents get a mean-field Gaussian, started at a draw from their priors; parameters of the model are fitted
    with each guide and reset before the next one and at the end. All families start from the same q(z). The report
    keeps the fitted guides: continue with ``diagnose(model, report.best.apply().guide, x)``, where ``apply`` sets the
    model's parameters, if it has any, to their fitted values. Without it such a guide refuses to run.

    Args:
        model: Pyro program ``model(*args, **kwargs)`` with continuous latent sites inside a plate over data points;
            discrete ones marked ``infer={"enumerate": "parallel"}`` are summed out. It must take any number of points.
            If it has a parameter ``index``, it gets the indices of the points.
        args: arguments of the model: tensors, numpy arrays, and dicts and lists of them, with a row for each of N data
            points, and whatever else it takes.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        encoder_input: a function or network of the model's arguments that gives what encoders see, ``(B, P)``, such as
            ``lambda counts: torch.log1p(counts)``; a network is fitted with the encoder. By default they see all
            tensors with rows, flattened and side by side.
        widths: encoder widths k.
        guides: names of guides, see :data:`~amortized_bayes.guides.registry.GUIDES`; or your own guides by name,
            ``{"mine": guide}``, which are fitted beside these three with the same options, batches and budgets. Such
            a guide takes any number of points and is called as the model is; Pyro's joint autoguides are accepted.
            Its parameters start at their current values and are reset to them; those in Pyro's param store are fitted
            at the learning rate of shared latents.
        settings: how to fit and measure.
        seed: random seed for starts, batches and draws.
        progress: show a bar on a terminal or in a notebook, elsewhere a line every 30 s; or a function that is called
            with the guide's name, the steps done and the steps in all.
        on_row: function called with each result, as a :class:`~amortized_bayes.types.Row`: those of a guide when
            it is fitted, comparisons at the end.
        kwargs: keyword arguments of the model.

    Raises:
        TypeError: arguments that the model does not take, such as an option that is misspelt, or an
            option whose name the model has for an argument too.
        ValueError: no such plate, discrete latents, no data or data that make log p nan, widths below 1, unknown
            guides.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> import amortized_bayes
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        ...         pyro.sample("x", dist.Normal(z[:, None], 0.5).to_event(1), obs=x)
        >>> x = torch.randn(100, 3)
        >>> quick = amortized_bayes.ComparisonSettings(epochs=5)
        >>> report = amortized_bayes.compare(model, x, widths=(4,), settings=quick, progress=False)
        >>> report.to_frame()["guide"].tolist()
        ['constant', 'amortized', 'factorized', 'factorized-from-amortized']
    """
    check_keywords(compare, model, kwargs)
    if not widths:
        raise ValueError("expected widths of 1 or more, got none")
    if not guides:
        raise ValueError(f"expected guides, such as {', '.join(map(repr, OURS))}, or your own by name, got none")
    own = dict(guides) if isinstance(guides, Mapping) else {}
    if stepping := [name for name in guides if name not in own and guide_entry(name).own_steps != "never"]:
        raise ValueError(
            f"expected guides whose answers are networks' or tables', got {stepping[0]!r}: make one that takes "
            "per-point steps, and pass it as guides={'mine': SemiAmortized(model, guide)}"
        )
    fits = list_fits(OURS if own else tuple(guides), tuple(widths), tuple(own), stepping=False)
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices), watched(progress) as told:
        torch.manual_seed(torch_seed(seed, "start"))
        bound = bind_points(model, args, kwargs, plate=plate, per_point=per_point, measured=True)
        check_several(bound.data)
        problem, put_back = _pose(model, own, bound, encoder_input, settings or ComparisonSettings(), seed)
        return _race(problem, fits, put_back, told, on_row)


def _pose(
    model: Model,
    guides: Mapping[str, Guide],
    bound: Bound,
    encoder_input: Callable[..., Tensor] | None,
    chosen: ComparisonSettings,
    seed: int,
) -> tuple[FitProblem, Snapshot]:
    """The problem that all guides are fitted to, and what puts model and guides back to their start."""
    data, plate, rows = bound.data, bound.plate, bound.data.rows
    if "index" in data.names:
        raise ValueError("expected no index: compare gives the indices of the points itself")
    # without an index the plate counts the batch, and not all points as that of a guide does
    program = PointProgram(model, data, hide=[] if takes(model, "index") else [plate])
    few = rows[:2], torch.arange(2, device=rows.device)
    put_back = snapshot(model)
    try:
        devices = cuda_devices(rows)
        with torch.no_grad(), torch.random.fork_rng(devices=devices), said_of("model", rows[:2].tensors, {}):
            trace = poutine.trace(program).get_trace(*few)
        check_model(program, trace, few, {}, plate)
        sites = latent_sites(program, *few, plate=plate)
    finally:
        put_back()
    if not sites.local:
        raise ValueError(
            f"expected a continuous latent site in plate {plate!r}, got none (enumerated ones are summed out): there "
            "is nothing to amortize"
        )
    nodes: Any = trace.nodes
    dtype = nodes[sites.local[0].name]["value"].dtype
    own = take_guides(guides, program, bound)
    put_back = snapshot(model, *guides.values())  # of what the first run made too

    def new_model() -> tuple[Any, LatentSites]:
        put_back()
        return program, sites

    return FitProblem(
        data=rows,
        new_model=new_model,
        options=lambda fit: chosen.fit.at_width(fit.k),
        seed=seed,
        epochs=chosen.epochs,
        budgets=list_budgets(chosen.epochs, chosen.rungs),
        depth=chosen.depth,
        num_draws=chosen.num_draws,
        plate=plate,
        analytic_kl=chosen.fit.expected_kl,
        local_reparametrization=chosen.fit.local_reparametrization,
        seen=encoder_view(data, encoder_input, dtype),
        own=own,
    ), put_back


def _race(
    problem: FitProblem,
    fits: list[Fit],
    put_back: Snapshot,
    told: Told,
    on_row: Callable[[Row], object] | None,
) -> Comparison:
    try:
        fitted = run_race(problem, fits, told, on_row)
    finally:
        put_back()
    report = Comparison(tuple(with_own_states(fitted, put_back)), len(problem.data), problem.seed)
    if on_row is not None:
        for row in report.findings():
            on_row(row)
    return report
