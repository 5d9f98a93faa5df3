"""How long a guide takes to come close: seconds and iterations until within 1 and 3 nats of the reference ELBO.

Guides are rows, so that their names can be read. A fit that never arrived is drawn in a strip at the right edge, never
left out: a box appears only where all seeds arrived and there are enough of them to have quartiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amortized_bayes.labels import dataset_label
from amortized_bayes.plotting.annotations import fix_layout, footnote, log_scale, title
from amortized_bayes.plotting.frames import Group, by_guide, remarks, select, tidy, widths
from amortized_bayes.plotting.style import GuideStyle, guide_style, style

__all__ = ["time_to_target_figure"]

TARGETS = {3.0: -0.2, 1.0: 0.2}
"""Distances to the reference in nats (``within``), with the place of each in its guide's row."""
SEEDS_FOR_A_BOX = 5


def time_to_target_figure(frame: pd.DataFrame, dataset: str) -> Figure:
    """Draw seconds and iterations until within 1 and 3 nats of ``elbo_reference``, and what one step costs."""
    rows = tidy(frame)
    clocks = {"seconds": "training time to get there (seconds)", "steps": "iterations to get there"}
    chosen = select(rows, [*(f"{clock}_to_target" for clock in clocks), "seconds_per_step"], dataset)
    groups = [group for group in by_guide(chosen) if group.fate != "failed"]
    looks = [guide_style(group.guide, group.k, widths(rows)) for group in groups]
    with style():
        figure = Figure(figsize=(10, 1.8 + 0.42 * len(groups)), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True, width_ratios=(1.2, 1.2, 0.8))
        for axes, (clock, label) in zip(panels, clocks.items(), strict=False):
            _targets(axes, groups, looks, clock)
            axes.set_xlabel(label)
        _step_costs(panels[2], groups, looks)
        _names(panels[0], groups)
        title(
            figure,
            f"Time to come within 1 and 3 nats per point of the best ELBO of F-VI, {dataset_label(dataset)}",
        )
        footnote(figure, [_legend(groups), *remarks(chosen, rows, dataset)])
        fix_layout(figure)
    return figure


def _targets(axes: Axes, groups: Sequence[Group], looks: Sequence[GuideStyle], clock: str) -> None:
    values = {
        (row, target): group.rows.loc[
            (group.rows["metric"] == f"{clock}_to_target") & (group.rows["within"] == target), "value"
        ].to_numpy(float)
        for row, group in enumerate(groups)
        for target in TARGETS
    }
    reached = np.concatenate([found[found > 0] for found in values.values()])
    low, high = (reached.min(), reached.max()) if len(reached) else (1.0, 10.0)
    room = max(high / low, 3.0) ** 0.12
    missed = any(np.isnan(found).any() for found in values.values())
    edge = high * room
    right = edge * room**3 if missed else edge
    axes.set_xlim(low / room, right)
    log_scale(axes, "x")
    for (row, target), found in values.items():
        _one_target(axes, found, looks[row], row + TARGETS[target], target == 1.0, edge * room**0.7)
    if missed:
        axes.axvspan(edge, right, color="0.93", linewidth=0, zorder=0)
        above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
        axes.annotate("not reached", (np.sqrt(edge * right), 1), (0, 3), xycoords=("data", "axes fraction"), **above)


def _one_target(axes: Axes, found: np.ndarray, look: GuideStyle, y: float, filled: bool, strip: float) -> None:
    """Draw the seeds of one guide and one target; ``strip`` is where those that never arrived go."""
    face = look.color if filled else "white"
    seeds: dict[str, Any] = {"linestyle": "", "markeredgecolor": look.color, "markerfacecolor": face}
    arrived = found[np.isfinite(found)]
    if len(arrived) >= SEEDS_FOR_A_BOX and len(arrived) == len(found):
        _box(axes, arrived, look, y, filled)
        return
    if len(arrived):
        axes.plot(arrived, np.full(len(arrived), y), marker="o", **seeds)
    if len(arrived) > 1 and len(arrived) == len(found):
        axes.plot([np.median(arrived)] * 2, [y - 0.15, y + 0.15], color=look.color, linewidth=1.6)
    missed = len(found) - len(arrived)
    if missed:
        axes.plot([strip], [y], marker=">", **seeds)
        text = f"{missed} of {len(found)}" if len(found) > 1 else ""
        axes.annotate(text, (strip, y), (6, 0), "data", "offset points", va="center", fontsize=7)


def _box(axes: Axes, arrived: np.ndarray, look: GuideStyle, y: float, filled: bool) -> None:
    line = {"color": look.color, "linewidth": 1.0}
    axes.boxplot(
        arrived,
        positions=[y],
        widths=0.26,
        orientation="horizontal",
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": look.color if filled else "white", "edgecolor": look.color},
        medianprops={"color": "white" if filled else look.color, "linewidth": 1.4},
        whiskerprops=line,
        capprops=line,
        flierprops={"marker": ".", "markeredgecolor": look.color, "markerfacecolor": look.color},
    )


def _step_costs(axes: Axes, groups: Sequence[Group], looks: Sequence[GuideStyle]) -> None:
    for row, (group, look) in enumerate(zip(groups, looks, strict=True)):
        costs = 1e3 * group.rows.loc[group.rows["metric"] == "seconds_per_step", "value"].to_numpy(float)
        axes.plot(costs, np.full(len(costs), row), "o", color=look.color, alpha=0.8)
        if np.isfinite(costs).any():
            middle = float(np.nanmedian(costs))
            axes.annotate(
                f"{middle:#.3g}",
                (float(np.nanmax(costs)), row),
                (6, 0),
                "data",
                "offset points",
                va="center",
                fontsize=7.5,
            )
    axes.set_xlim(0, 1.25 * axes.get_xlim()[1])
    axes.set_xlabel("time per step (ms)")


def _names(axes: Axes, groups: Sequence[Group]) -> None:
    axes.set_yticks(range(len(groups)), [group.label for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _legend(groups: Sequence[Group]) -> str:
    """Explain the marks in words; the guides are named at their rows."""
    most = max((group.num_seeds for group in groups), default=1)
    hollow = "hollow, upper: within 3 nats; filled, lower: within 1 nat"
    if most == 1:
        return f"{hollow}; one seed"
    boxes = f"; a box (quartiles) where all of {SEEDS_FOR_A_BOX} or more arrived" if most >= SEEDS_FOR_A_BOX else ""
    return f"{hollow}; one mark per seed, {most} seeds, bar: median where all arrived{boxes}"
