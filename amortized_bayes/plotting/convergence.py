"""How far the best q of a point can be trusted: convergence of the search, and its residual against the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from amortized_bayes.plotting.furniture import format_tick, log_scale, settle, title
from amortized_bayes.plotting.style import style

__all__ = ["Curve", "convergence_figure"]

STARTS = {"encoder": ("#0072B2", "o"), "prior": ("#D55E00", "s")}
LINES = ("-", "--", ":", "-.")


class Curve(NamedTuple):
    """Searches from one start with one spread, a budget each.

    Args:
        start: ``encoder`` or ``prior``.
        spread: of restarts, in scales of q.
        evaluations: mean decoder evaluations a point, by budget.
        behind: nats behind the reference, ``(R, B)`` each.
        residual: what the search itself believes to be missing, ``(R, B)`` each.
    """

    start: str
    spread: float
    evaluations: Sequence[float]
    behind: Sequence[np.ndarray]
    residual: Sequence[np.ndarray]


def convergence_figure(curves: Sequence[Curve], heading: str) -> Figure:
    """Left: nats behind the reference against evaluations. Right: residual against nats behind, a dot a run."""
    spreads = sorted({curve.spread for curve in curves})
    with style():
        figure = Figure(figsize=(8.6, 3.8), layout="constrained")
        course, truth = figure.subplots(1, 2)
        for curve in curves:
            color, marker = STARTS[curve.start]
            line = LINES[spreads.index(curve.spread) % len(LINES)]
            mean = np.array([v.mean() for v in curve.behind])
            error = np.array([v.mean(0).std(ddof=1) / np.sqrt(v.shape[1]) for v in curve.behind])
            label = f"from the {curve.start}, restarts {curve.spread:g} scales off"
            course.errorbar(
                curve.evaluations, mean, yerr=error, color=color, linestyle=line, marker=marker, capsize=2, label=label
            )
        course.set_xlabel("decoder evaluations a point")
        course.set_ylabel("nats behind the reference, bar: 1 s.e.")
        course.set_yscale("symlog", linthresh=0.05)
        course.yaxis.set_major_formatter(FuncFormatter(format_tick))
        course.axhline(0, color="black", linewidth=0.8)
        log_scale(course, "x")
        course.legend()
        shown = _by_budget(curves)
        for (budget, (behind, residual)), color in zip(
            shown.items(), ("#999999", "#E69F00", "#009E73", "#000000"), strict=False
        ):
            truth.plot(behind, residual, ".", color=color, markersize=3, alpha=0.6, label=f"{budget:,.0f} evaluations")
        low, high = truth.get_xlim()
        truth.plot([0, high], [0, high], color="black", linewidth=0.8, label="equal")
        truth.set_xlim(low, high)
        for axis in ("x", "y"):
            (truth.set_xscale if axis == "x" else truth.set_yscale)("symlog", linthresh=0.05)
        truth.xaxis.set_major_formatter(FuncFormatter(format_tick))
        truth.yaxis.set_major_formatter(FuncFormatter(format_tick))
        truth.set_xlabel("nats behind the reference, one run")
        truth.set_ylabel("residual that the run reports (nats)")
        truth.legend(markerscale=3, loc="upper left")
        title(figure, heading)
        settle(figure)
    return figure


def _by_budget(curves: Sequence[Curve]) -> Mapping[float, tuple[np.ndarray, np.ndarray]]:
    """Runs of the encoder's start, pooled over spreads, by budget."""
    found: dict[float, list[tuple[np.ndarray, np.ndarray]]] = {}
    for curve in curves:
        if curve.start == "encoder" or all(c.start == "prior" for c in curves):
            for spent, behind, residual in zip(curve.evaluations, curve.behind, curve.residual, strict=True):
                found.setdefault(round(spent, -1), []).append((behind.ravel(), residual.ravel()))
    return {k: tuple(np.concatenate(part) for part in zip(*v, strict=True)) for k, v in found.items()}  # pyright: ignore
