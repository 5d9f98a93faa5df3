"""How far the best q of a point can be trusted: convergence of the search, and its residual against the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from amortized_bayes.plotting.furniture import format_tick, log_scale, settle, title
from amortized_bayes.plotting.style import style

__all__ = ["Curve", "convergence_figure"]

STARTS = {"encoder": ("#0072B2", "o"), "prior": ("#D55E00", "s")}
COLORS = ("#999999", "#E69F00", "#009E73", "#000000", "#CC79A7", "#56B4E9")
LINES = ("-", "--", ":", "-.")


class Curve(NamedTuple):
    """Searches from one start with one spread, a budget each.

    Args:
        start: ``encoder`` or ``prior``.
        spread: of restarts, in scales of q.
        steps: the budgets.
        evaluations: mean decoder evaluations a point, by budget.
        behind: nats behind the reference, ``(R, B)`` each.
        residual: what the search itself believes to be missing, ``(R, B)`` each.
    """

    start: str
    spread: float
    steps: Sequence[int]
    evaluations: Sequence[float]
    behind: Sequence[np.ndarray]
    residual: Sequence[np.ndarray]


def convergence_figure(curves: Sequence[Curve], heading: str) -> Figure:
    """Left: nats behind the reference against evaluations. Right: residual against nats behind, a dot a run."""
    spreads = sorted({curve.spread for curve in curves})
    with style():
        figure = Figure(figsize=(8.8, 4.6), layout="constrained")
        course, truth = figure.subplots(1, 2)
        for curve in curves:
            color, marker = STARTS[curve.start]
            line = LINES[spreads.index(curve.spread) % len(LINES)]
            mean = np.array([v.mean() for v in curve.behind])
            error = np.array([v.mean(0).std(ddof=1) / np.sqrt(v.shape[1]) for v in curve.behind])
            label = f"{curve.start}, {curve.spread:g} scales off"
            course.errorbar(
                curve.evaluations, mean, yerr=error, color=color, linestyle=line, marker=marker, capsize=2, label=label
            )
        course.set_xlabel("decoder evaluations a point")
        course.set_ylabel("nats behind the reference, bar: 1 s.e.")
        course.set_ylim(bottom=min(-0.05, min(v.mean() for curve in curves for v in curve.behind) - 0.05))
        _bend(course, "y")
        course.axhline(0, color="black", linewidth=0.8)
        log_scale(course, "x")
        course.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, title="start of the search")
        shown = _by_budget(curves)
        for place, (budget, (behind, residual)) in enumerate(shown.items()):
            color = COLORS[place % len(COLORS)]
            truth.plot(behind, residual, ".", color=color, markersize=3, alpha=0.6, label=f"{budget:,} steps")
        low, high = truth.get_xlim()
        truth.plot([0, high], [0, high], color="black", linewidth=0.8, label="equal")
        truth.set_xlim(low, high)
        _bend(truth, "x")
        _bend(truth, "y")
        truth.set_xlabel("nats behind the reference, one run")
        truth.set_ylabel("residual that the run reports (nats)")
        truth.legend(
            markerscale=3,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            ncols=2,
            title="searches from the encoder",
        )
        title(figure, heading)
        settle(figure)
    return figure


def _bend(axes: Axes, which: str) -> None:
    """An axis that is linear within a tenth of a nat of zero and logarithmic beyond."""
    low, high = axes.get_ylim() if which == "y" else axes.get_xlim()
    (axes.set_yscale if which == "y" else axes.set_xscale)("symlog", linthresh=0.1)
    axis = axes.yaxis if which == "y" else axes.xaxis
    ticks = [sign * 10.0**e for sign in (-1, 1) for e in range(-1, 6)]
    axis.set_major_locator(FixedLocator([t for t in [*ticks, 0.0] if low <= t <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(format_tick))


def _by_budget(curves: Sequence[Curve]) -> Mapping[int, tuple[np.ndarray, np.ndarray]]:
    """Runs of the encoder's start, pooled over spreads, by budget."""
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for curve in curves:
        if curve.start == "encoder" or all(c.start == "prior" for c in curves):
            for steps, behind, residual in zip(curve.steps, curve.behind, curve.residual, strict=True):
                found.setdefault(steps, []).append((behind.ravel(), residual.ravel()))
    return {k: (np.concatenate([b for b, _ in v]), np.concatenate([r for _, r in v])) for k, v in found.items()}
