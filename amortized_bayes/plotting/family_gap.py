r"""The family gap against the width of the encoder.

.. math:: \mathrm{gap}(k) = \mathrm{ELBO}_\mathrm{reference} - \mathrm{ELBO}(k)

in nats per point, where the reference is the best F-VI found (Margossian & Blei, *Amortized Variational Inference:
When and Why?*, UAI 2024). A guide that beat the reference lies below zero and is drawn there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullLocator, SymmetricalLogLocator

from amortized_bayes.labels import dataset_label, guide_label
from amortized_bayes.plotting.annotations import fix_layout, footnote, format_tick, format_value, title
from amortized_bayes.plotting.frames import Group, by_guide, failures, notes, select, tidy, where, widths
from amortized_bayes.plotting.style import GuideStyle, guide_style, style

__all__ = ["family_gap_figure"]

HALO = [withStroke(linewidth=2.5, foreground="white")]
INCH_PER_GUIDE = 0.48
CLOSE = 2.5
"""Times a gap that a line is above it, and a value between them would touch it."""
WIDE_RANGE = 30.0
"""Largest over lower quartile of the sizes of the gaps from which the axis bends (symlog)."""


def family_gap_figure(frame: pd.DataFrame) -> Figure:
    """Draw ``family_gap`` against k, one panel per data set, with the guides that have no width at the right margin.

    A small marker is one seed with one standard error over points; where there are more seeds, a large one is their
    mean with one standard error over seeds.
    """
    rows = tidy(frame)
    gaps = select(rows, "family_gap")
    datasets = list(dict.fromkeys(gaps["dataset"]))
    lines = []
    with style():
        wide = max(4.6, INCH_PER_GUIDE * (len(widths(rows)) + 3))
        figure = Figure(figsize=(wide * len(datasets) + 0.8, 4.2), layout="constrained")
        panels = figure.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
        for axes, dataset in zip(panels, datasets, strict=True):
            failed = failures(rows, dataset)
            name = dataset_label(dataset)
            lines += [f"{name}: {note}" for note in notes(where(gaps, gaps["dataset"] == dataset))]
            lines += [f"{name}, failed: {'; '.join(failed)}"] if failed else []
            _panel(axes, select(gaps, "family_gap", dataset), widths(rows))
            axes.set_title(name)
        panels[0].set_ylabel("family gap (nats per point)")
        _bend(panels[0], gaps)
        title(figure, "How far each family stays below the best F-VI found")
        footnote(figure, [_legend(gaps), *lines])
        fix_layout(figure)
    return figure


def _panel(axes: Axes, gaps: pd.DataFrame, all_widths: Sequence[int]) -> None:
    axes.axhline(0, color="black", linewidth=0.9, zorder=1.5)
    zero: dict[str, Any] = {"textcoords": "offset points", "va": "top", "fontsize": 8, "path_effects": HALO}
    axes.annotate("0: best F-VI found", (0.01, 0), (0, -3), xycoords=("axes fraction", "data"), **zero)
    groups = [group for group in by_guide(gaps.dropna(subset="value")) if group.fate != "failed"]
    places = _places(groups, all_widths)
    with_width = dict.fromkeys(group.guide for group in groups if group.k is not None)
    crowded = len(with_width) > 1  # names go to a legend, and values to the table: marks lie on each other
    for guide in with_width:
        swept = [(places[guide, group.k], group.rows["value"].mean()) for group in groups if group.guide == guide]
        look = guide_style(guide, max(all_widths, default=None), all_widths)
        line: dict[str, Any] = {**(look.line() if crowded else {"color": "0.6"}), "linewidth": 0.9}
        label = guide_label(guide) if crowded else None
        axes.plot(*np.array(sorted(swept)).reshape(-1, 2).T, **line, zorder=1.8, label=label)
    if crowded:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(with_width))
    lines = [_summary(group)[0] for group in groups if group.guide == "constant"]
    for group in groups:
        look = guide_style(group.guide, group.k, all_widths)
        if group.guide == "constant":
            _across(axes, group, look)
            continue
        _points(axes, group, look, places[group.guide, group.k])
        if group.fate == "vacuous" or not (crowded and group.k is not None):
            _name(axes, group, places[group.guide, group.k], lines)
    _ticks(axes, places)


def _places(groups: Sequence[Group], all_widths: Sequence[int]) -> dict[tuple[str, int | None], float]:
    """Map each guide to its x: log2 of the width, and beyond the widest for the guides that have none."""
    with_width = [(g.guide, g.k) for g in groups if g.k is not None]
    first = with_width[0][0] if with_width else "amortized"
    with_width += [(first, k) for k in all_widths]  # of fits that failed too
    places: dict[tuple[str, int | None], float] = {(guide, k): math.log2(k) for guide, k in with_width}
    exponents = sorted(set(places.values()))
    unit = max(1.0, (max(exponents) - min(exponents)) / (len(exponents) - 1)) if len(exponents) > 1 else 1.0
    right = max(exponents, default=0.0) + 0.3 * unit
    others = [group for group in groups if group.k is None and group.guide != "constant"]
    for guide in dict.fromkeys(group.guide for group in others):
        right += unit
        places[guide, None] = right
    return places


def _across(axes: Axes, group: Group, look: GuideStyle) -> None:
    """Draw a guide that has no width as a line across the panel, with a band of one standard error."""
    mean, error, _ = _summary(group)
    axes.axhline(mean, color=look.color, linestyle=look.linestyle, linewidth=look.linewidth, zorder=1.6)
    if np.isfinite(error):
        axes.axhspan(mean - error, mean + error, color=look.color, alpha=0.12, linewidth=0)
    text = f"{group.label}: {format_value(mean, _doubt(group, error))}"
    beside: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "fontsize": 8, "path_effects": HALO}
    axes.annotate(text, (0.99, mean), (0, 3), xycoords=("axes fraction", "data"), color=look.color, **beside)


def _points(axes: Axes, group: Group, look: GuideStyle, x: float) -> None:
    """Draw a guide at its place."""
    mean, error, count = _summary(group)
    points: dict[str, Any] = look.points() | ({"markerfacecolor": "white"} if group.fate == "vacuous" else {})
    small: dict[str, Any] = points | {"markersize": 2.5, "elinewidth": 0.6, "alpha": 0.7}
    for place, row in enumerate(group.rows.sort_values("seed").to_dict("records") if count > 1 else ()):
        axes.errorbar(x + 0.13 * (place + 1), row["value"], yerr=_error(row["standard_error"]), **small)
    large: dict[str, Any] = points | {"markersize": 6.5, "elinewidth": 1.3, "capsize": 2.5, "zorder": 3}
    axes.errorbar(x, mean, yerr=_error(error), **large)


def _name(axes: Axes, group: Group, x: float, lines: Sequence[float]) -> None:
    """Write a guide's value above its mark, or below it where a line across the panel runs just above."""
    mean, error, _ = _summary(group)
    reach = error if np.isfinite(error) else 0.0
    top, bottom = max(mean + reach, group.rows["value"].max()), min(mean - reach, group.rows["value"].min())
    near: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 7.5, "zorder": 4}
    near["path_effects"] = HALO
    value = format_value(mean, _doubt(group, error))
    under = any(top < line < CLOSE * top for line in lines)
    if under:
        axes.annotate(value, (x, bottom), (0, -6), va="top", **near)
    else:
        axes.annotate(value, (x, top), (0, 6), **near)
    if group.fate == "vacuous":
        axes.annotate("(vacuous)", (x, mean), (0, -16 if under else -6), va="top", **near)


def _summary(group: Group) -> tuple[float, float, int]:
    """Return the mean, its standard error (over seeds, or over points of a single seed) and the number of seeds."""
    values = group.rows["value"].to_numpy(float)
    if len(values) == 1:
        return float(values[0]), float(group.rows["standard_error"].iloc[0]), 1
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))), len(values)


def _doubt(group: Group, error: float) -> float:
    """Return the larger of the two errors: a few seeds may agree by luck, and then print too many decimals."""
    return float(np.nanmax([error, *group.rows["standard_error"], 0.0]))


def _error(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _ticks(axes: Axes, places: dict[tuple[str, int | None], float]) -> None:
    names = {
        x: str(k) if k is not None else guide_label(guide).replace(" from", "\nfrom")
        for (guide, k), x in places.items()
    }
    axes.set_xticks(list(names), list(names.values()))
    swept = [guide_label(guide) for guide in dict.fromkeys(guide for guide, k in places if k is not None)] or ["A-VI"]
    axes.set_xlabel(f"encoder width k of {swept[0]} (log2)" if len(swept) == 1 else "encoder width k (log2)")
    axes.grid(visible=False, axis="x")
    inside = [x for (_, k), x in places.items() if k is not None]
    outside = [x for (_, k), x in places.items() if k is None]
    if inside and outside:
        axes.axvline((max(inside) + min(outside)) / 2, color="0.75", linewidth=0.7)
    if places:
        aside = max(0.6, 0.075 * (max(places.values()) - min(places.values())))
        axes.set_xlim(min(places.values()) - aside, max(places.values()) + aside)


def _bend(axes: Axes, gaps: pd.DataFrame) -> None:
    """Make the shared y axis symlog where the gaps range widely: linear about zero up to the typical standard error."""
    axes.margins(y=0.12)
    sizes = np.abs(gaps["value"].dropna().to_numpy(float))
    errors = gaps["standard_error"].dropna().to_numpy(float)
    typical = float(np.median(errors)) if len(errors) else 0.1
    if not sizes.any() or sizes.max() < WIDE_RANGE * max(np.quantile(sizes[sizes > 0], 0.25), typical):
        return
    linear = next((edge for edge in (0.01, 0.1, 1.0) if not typical > edge), 10.0)
    axes.set_yscale("symlog", linthresh=linear, linscale=0.6)
    axes.yaxis.set_major_locator(SymmetricalLogLocator(linthresh=linear, base=10))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(format_tick))
    axes.set_ylabel(f"family gap (nats per point)\nlinear within ±{linear:g}, logarithmic beyond")


def _legend(gaps: pd.DataFrame) -> str:
    """Explain the marks in words; the guides are named at their places."""
    seeds = {group.num_seeds for group in by_guide(gaps.dropna(subset="value")) if group.fate != "failed"} or {1}
    if seeds == {1}:
        return "mark: one seed ± 1 standard error over points"
    count = f"{max(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    large = f"large mark: mean of {count} seeds ± 1 standard error over seeds"
    return f"{large}; small mark: one seed ± 1 standard error over points"
