"""How far the best q of a point can be trusted: convergence of the search, and its residual against the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from amortized_bayes.plotting.annotations import fix_layout, log_scale, title
from amortized_bayes.plotting.panels import LINES, bend
from amortized_bayes.plotting.style import MARKERS, PALETTE, style

__all__ = ["Search", "convergence_figure", "restart_figure"]


class Search(NamedTuple):
    """Searches from one start with one spread, one for each budget.

    Args:
        start: ``encoder`` or ``prior``.
        spread: spread of restarts, in scales of q.
        steps: the budgets.
        evaluations: mean decoder evaluations per point, by budget.
        behind: nats behind the reference, ``(R, B)`` each.
        residual: what the search itself reports to be missing, ``(R, B)`` each.
    """

    start: str
    spread: float
    steps: Sequence[int]
    evaluations: Sequence[float]
    behind: Sequence[np.ndarray]
    residual: Sequence[np.ndarray]


def convergence_figure(searches: Sequence[Search], heading: str) -> Figure:
    """Left: nats behind the reference against evaluations. Right: residual against nats behind, a dot per search."""
    spreads = sorted({search.spread for search in searches})
    starts = list(dict.fromkeys(search.start for search in searches))
    with style():
        figure = Figure(figsize=(8.8, 4.6), layout="constrained")
        course, truth = figure.subplots(1, 2)
        for search in searches:
            place = starts.index(search.start)
            mean = np.array([v.mean() for v in search.behind])
            error = np.array(
                [v.mean(0).std(ddof=1) / np.sqrt(v.shape[1]) if v.shape[1] > 1 else 0 for v in search.behind]
            )
            course.errorbar(
                search.evaluations,
                mean,
                yerr=error,
                color=PALETTE[place],
                linestyle=LINES[spreads.index(search.spread) % len(LINES)],
                marker=MARKERS[place],
                capsize=2,
                label=f"{search.start}, {search.spread:g} scales away",
            )
        course.set_xlabel("decoder evaluations per point")
        course.set_ylabel("nats behind the reference, bar: 1 s.e.")
        bend(course, "y")
        log_scale(course, "x")
        for place, (budget, (behind, residual)) in enumerate(_by_budget(searches).items()):
            color = PALETTE[::-1][place % len(PALETTE)]
            truth.plot(behind, residual, ".", color=color, markersize=3, alpha=0.6, label=f"{budget:,} steps")
        most = max(float(v.max()) for search in searches for v in search.behind)
        truth.plot([0, most], [0, most], color="black", linewidth=0.8, label="equal")
        bend(truth, "x")
        bend(truth, "y")
        truth.set_xlabel("nats behind the reference, one search")
        truth.set_ylabel("residual that the search reports (nats)")
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}
        course.legend(**below, title="start of the search")
        shown = "the encoder" if "encoder" in starts else "the prior"
        truth.legend(**below, markerscale=3, title=f"searches from {shown}")
        title(figure, heading)
        fix_layout(figure)
    return figure


def restart_figure(gaps: Mapping[str, np.ndarray], heading: str) -> Figure:
    """A histogram for each kind of search: nats of each restart behind the best restart of its point, ``(R B,)``."""
    with style():
        columns = min(4, len(gaps))
        rows = -(-len(gaps) // columns)
        figure = Figure(figsize=(0.8 + 2.4 * columns, 0.6 + 2.0 * rows), layout="constrained")
        all_axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axes, (name, values) in zip(all_axes, gaps.items(), strict=False):
            axes.hist(values, bins=30, color=PALETTE[0])
            axes.set_title(f"{name}\nmean {values.mean():.3g}", fontsize=8)
        log_scale(all_axes[0], "y")
        for axes in all_axes[len(gaps) :]:
            axes.set_visible(False)
        figure.supxlabel("nats behind the best restart of the same point", fontsize=9)
        figure.supylabel("searches", fontsize=9)
        title(figure, heading)
        fix_layout(figure)
    return figure


def _by_budget(searches: Sequence[Search]) -> Mapping[int, tuple[np.ndarray, np.ndarray]]:
    """Searches from the encoder, or from the prior where there are no others, pooled over spreads, by budget."""
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for search in searches:
        if search.start == "encoder" or all(s.start == "prior" for s in searches):
            for steps, behind, residual in zip(search.steps, search.behind, search.residual, strict=True):
                found.setdefault(steps, []).append((behind.ravel(), residual.ravel()))
    return {k: (np.concatenate([b for b, _ in v]), np.concatenate([r for _, r in v])) for k, v in found.items()}
