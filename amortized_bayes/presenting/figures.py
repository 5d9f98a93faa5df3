"""Figures from their declarations, as PNG and PDF."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amortized_bayes import labels, selection
from amortized_bayes.data.catalogue import short_name
from amortized_bayes.experiments.spec import Bars, Drawn, Ecdf, Gaps, Ladder, Lines, Panel, Points, Scatter
from amortized_bayes.plotting import GuideStyle, guide_style, save_figure, size_style, style
from amortized_bayes.plotting.annotations import fix_layout, log_scale, title
from amortized_bayes.plotting.panels import (
    LINES,
    Series,
    bend,
    draw_bars,
    draw_lines,
    draw_points,
    series_style,
)
from amortized_bayes.presenting import drawn
from amortized_bayes.presenting.cells import fill
from amortized_bayes.presenting.classes import with_class_names
from amortized_bayes.presenting.point_panels import BELOW, Ready, of_points
from amortized_bayes.presenting.view import RunView
from amortized_bayes.results.summary import summarise

__all__ = ["Drawing", "draw_figures", "drawn_figures"]

ERRORS = (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""Errors that stop the drawing of one figure; the others are still drawn."""
CLOCKS = {"step": "steps", "seconds": "training time (seconds)"}
LINES_WIDTH = 4.6
"""Inches of a panel with curves."""
SQUEEZED = 8
"""Length of a curve above which its first evaluations are cut off if they are far below the rest."""
LABEL = 42
"""Characters of a y label in a line."""


class Drawing(NamedTuple):
    """A declared figure, drawn for a run.

    Args:
        name: name of its file.
        panels: that were declared.
        figure: ``None`` where the run has nothing for it.
        problem: why it could not be drawn.
    """

    name: str
    panels: Sequence[Panel]
    figure: Figure | None
    problem: str = ""


def drawn_figures(
    figures: Mapping[str, Panel | Sequence[Panel]], run: RunView, rows: pd.DataFrame
) -> Iterator[Drawing]:
    """Yield every declared figure, drawn if the run has rows and arrays for it, or the problem if drawing failed.

    Args:
        figures: by file name; a name with ``{dataset}`` or ``{number}`` stands for one figure per data set.
        run: the run to draw.
        rows: rows of the run.
    """
    rows = with_class_names(rows)
    for pattern, panels in figures.items():
        panels = (panels,) if isinstance(panels, Panel) else tuple(panels)
        for name, part in _named(pattern, rows):
            try:
                yield Drawing(name, panels, _figure(panels, run, part))
            except ERRORS as error:
                yield Drawing(name, panels, None, " ".join(str(error).split()))


def draw_figures(
    figures: Mapping[str, Panel | Sequence[Panel]],
    run: RunView,
    rows: pd.DataFrame,
    into: Path | None = None,
) -> list[Path]:
    """Draw every figure that the rows allow into the run's folder or ``into``, and return the files.

    Arguments are those of :func:`drawn_figures`, and another folder.
    """
    saved: list[Path] = []
    for name, _, figure, problem in drawn_figures(figures, run, rows):
        try:
            saved += [] if figure is None else save_figure(figure, into or run.folder.path, name)
        except ERRORS as error:
            problem = " ".join(str(error).split())
        if problem:
            print(f"figure {name} cannot be drawn: {problem}")
    return saved


def _named(pattern: str, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The names that a pattern stands for, with the rows of each."""
    if "{" not in pattern:
        yield pattern, rows
        return
    used: Counter[str] = Counter()
    for number, (key, part) in enumerate(selection.groups(rows, ("dataset",)), start=1):
        short = short_name(str(key["dataset"]))
        used[short] += 1  # other files may have the same short name
        yield pattern.format(dataset=short if used[short] == 1 else f"{short}-{used[short]}", number=number), part


def _figure(panels: Sequence[Panel], run: RunView, rows: pd.DataFrame) -> Figure | None:
    """The panels side by side, those of one declaration with a common y axis; ``None`` if there are no rows for any."""
    first = panels[0]
    if isinstance(first, Drawn):
        return drawn.DRAWN[first.function](run, rows, **first.options)
    ready = [(place, *one) for place, panel in enumerate(panels) for one in _ready(panel, run, rows)]
    if not ready:
        return None
    with style():
        widths = [width for _, _, (_, width) in ready]
        figure = Figure(figsize=(sum(widths), 3.9), layout="constrained")
        all_axes = figure.subplots(1, len(ready), squeeze=False, width_ratios=widths)[0]
        for (place, heading, (draw, _)), axes in zip(ready, all_axes, strict=True):
            draw(axes)
            axes.set_title(heading)
            beside = [other for other, one in zip(all_axes, ready, strict=True) if one[0] == place]
            panel = panels[place]
            if axes is beside[-1] and not (isinstance(panel, Lines) and panel.own_scale):
                limits = [other.get_ylim() for other in beside]
                for other in beside:
                    other.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
                for other in beside[1:]:
                    other.set_ylabel("")
        title(figure, fill(first.title, rows))
        fix_layout(figure)
    return figure


def _ready(panel: Panel, run: RunView, rows: pd.DataFrame) -> Iterator[tuple[str, Ready]]:
    """What to draw for a panel, with its title: once, or once for each value of the factor ``apart``."""
    if isinstance(panel, Drawn):
        raise ValueError(f"expected {panel.function} alone in its figure")
    rows = selection.where(rows, panel.where)
    if isinstance(panel, Gaps | Scatter | Ladder | Ecdf):
        if (dots := of_points(panel, run)) is not None:
            yield "", dots
        return
    for key, part in selection.groups(rows, (panel.apart,) if panel.apart else ()):
        if isinstance(panel, Lines):
            ready = _lines(panel, part)
        elif isinstance(panel, Bars):
            ready = _bars(panel, summarise(part))
        else:
            ready = _points(panel, summarise(part))
        if ready is not None:
            yield labels.describe(key), ready


def _points(panel: Points, finals: pd.DataFrame) -> Ready | None:
    seeds = selection.num_seeds(finals)
    finals = cast("pd.DataFrame", finals[(finals["metric"] == panel.y) & finals["value"].notna()])
    values = labels.order(panel.x, finals[panel.x].tolist()) if panel.x in finals.columns else []
    series: list[Series] = []
    for key, part in selection.groups(finals, _hue(panel.hue)):
        means = {
            values.index(at[panel.x]): mean
            for at, here in selection.groups(part, (panel.x,))
            if (mean := _over_all_seeds(here, panel.y, seeds)) is not None
        }
        if means:
            scale = labels.metric_label(panel.y).scale
            y, error = (scale * np.array([getattr(m, field) for m in means.values()]) for field in ("value", "error"))
            look = _look(key, len(series), finals)
            series.append(Series(_label(key), look, np.array(list(means), float), y, y - error, y + error))
    if not series:
        return None
    joined = panel.x != "label" and (panel.x in labels.ORDERS or not any(isinstance(v, str) for v in values))
    given = [labels.value_label(n, v) for n, v in panel.where.items() if isinstance(v, str)]

    def draw(axes: Axes) -> None:
        draw_points(axes, series, [labels.value_label(panel.x, value) for value in values], joined=joined)
        for which in panel.log:
            bend(axes, which)
        axes.set_xlabel(", ".join([labels.factor_label(panel.x), *given]))
        bars = "\nbar: 1 standard error" if any(np.isfinite(one.low).any() for one in series) else ""
        axes.set_ylabel(textwrap.fill(labels.axis_label(panel.y), LABEL) + bars)
        if len(series) > 1:
            _legend(axes, panel.hue, width)

    width = max(4.2, 1.6 + 0.42 * len(values))
    return draw, width


def _lines(panel: Lines, rows: pd.DataFrame) -> Ready | None:
    curves: list[Series] = []
    kinds: dict[str, str] = {}
    for number, metric in enumerate(panel.y):
        chosen = cast("pd.DataFrame", rows[(rows["metric"] == metric) & rows["value"].notna()])
        kinds = _kinds(panel, chosen)
        for place, (key, part) in enumerate(selection.groups(chosen, _hue(panel.hue)) if len(chosen) else []):
            for nth, (shade, own) in enumerate(selection.groups(part, (panel.style,) if panel.style else ())):
                line = _over_seeds(panel, own)
                label = ", ".join(filter(None, [labels.metric_name(metric) if len(panel.y) > 1 else "", _label(key)]))
                kind = kinds[_label(shade)] if panel.style else LINES[number % len(LINES)] if panel.hue else "-"
                look = _look(key, place if panel.style else len(curves), chosen, kind)
                if not panel.bands:
                    line[["low", "high"]] = np.nan
                x, y, low, high = (line[c].to_numpy(float) for c in (panel.x, "value", "low", "high"))
                curves.append(Series("" if nth else label, look, x, y, low, high))
    if not curves:
        return None

    def draw(axes: Axes) -> None:
        draw_lines(axes, curves)
        for name, kind in kinds.items():
            axes.plot([], [], linestyle=kind, color="0.3", label=name)
        longest = max(len(curve.x) for curve in curves)
        if "x" in panel.log and longest > 1:
            log_scale(axes, "x")
        if "y" in panel.log:
            bend(axes, "y")
        elif longest > SQUEEZED:
            later = np.concatenate([curve.y[2:] for curve in curves])
            height = 1.12 * np.ptp(later)
            if height < 0.4 * np.ptp(axes.get_ylim()):
                axes.set_ylim(bottom=later.max() - height)
        axes.set_xlabel(panel.clock or CLOCKS.get(panel.x, labels.factor_label(panel.x)))
        axes.set_ylabel(textwrap.fill(labels.axis_label(panel.y[0]), LABEL))
        if len(curves) > 1:
            _legend(axes, panel.hue, LINES_WIDTH)

    return draw, LINES_WIDTH


def _legend(axes: Axes, hue: str, width: float) -> None:
    """Below the axes, in as many columns as its names fit into a panel of so many inches."""
    names = [str(name) for name in axes.get_legend_handles_labels()[1]]
    columns = max(1, min(4, len(names), int(width / (0.5 + 0.065 * max(map(len, names))))))
    axes.legend(title=labels.factor_label(hue) or None, ncols=columns, **BELOW)


def _kinds(panel: Lines, rows: pd.DataFrame) -> dict[str, str]:
    """The kind of line of each value of the factor ``style``, by its name in the legend."""
    found = [_label(key) for key, _ in selection.groups(rows, (panel.style,))] if panel.style and len(rows) else []
    return {name: LINES[number % len(LINES)] for number, name in enumerate(found)}


def _over_seeds(panel: Lines, rows: pd.DataFrame) -> pd.DataFrame:
    """A line: mean and range over seeds, at the steps that all seeds have, or one seed with its standard errors."""
    seeds = selection.num_seeds(rows)
    by_step: Any = rows.groupby("step")
    count = by_step["value"].agg("count")
    if (count > seeds).any():
        different = [n for n in selection.factor_names(rows) if n != "seed" and rows[n].nunique(dropna=False) > 1]
        raise ValueError(f"expected one {panel.y[0]} at each step, got several: they differ in {', '.join(different)}")
    line = by_step[["value", "seconds"]].mean()
    error = by_step["standard_error"].mean()
    line["low"] = by_step["value"].min() if seeds > 1 else line["value"] - error
    line["high"] = by_step["value"].max() if seeds > 1 else line["value"] + error
    line = line[count == seeds].reset_index()
    return cast("pd.DataFrame", line[line[panel.x] > 0] if "x" in panel.log else line)


def _bars(panel: Bars, finals: pd.DataFrame) -> Ready | None:
    seeds = selection.num_seeds(finals)
    finals = cast("pd.DataFrame", finals[finals["metric"].isin(panel.parts)])
    lines = selection.groups(finals, panel.x)
    varying = [name for name in panel.x if len({key[name] for key, _ in lines}) > 1] or [panel.x[0]]
    bars: dict[str, dict[str, tuple[float, float]]] = {}
    for key, part in lines:
        found = {m: _over_all_seeds(part, m, seeds) for m in panel.parts}
        name = "\n".join(filter(None, (labels.value_label(factor, key[factor]) for factor in varying)))
        bars[name] = {labels.metric_name(m): (f.value, f.error) for m, f in found.items() if f is not None}
    if not any(bars.values()):
        return None

    def draw(axes: Axes) -> None:
        draw_bars(axes, list(bars.values()), list(bars))
        axes.set_xlabel(labels.factor_label(panel.x[0]) if len(panel.x) == 1 else "")
        axes.set_ylabel(f"mean gap ({labels.metric_label(panel.parts[0]).unit})\nbar: 1 standard error")
        axes.legend(ncols=2, **BELOW)

    letters = [max(map(len, name.split("\n"))) for name in bars]
    return draw, 1.8 + max(2.0, sum(0.26 + 0.065 * number for number in letters))


def _over_all_seeds(rows: pd.DataFrame, metric: str, seeds: int) -> selection.Found | None:
    """A mean over seeds; ``None`` if some are missing, since a mark in a figure cannot show that."""
    found = selection.mean(rows, metric, seeds=seeds)
    return None if found is None or found.note or not np.isfinite(found.value) else found


def _hue(hue: str) -> tuple[str, ...]:
    return ("guide", "k") if hue == "guide" else (hue,) if hue else ()


def _label(key: Mapping[str, Any]) -> str:
    return ", ".join(labels.names(key).values())


def _look(key: Mapping[str, Any], place: int, rows: pd.DataFrame, line: str = "-") -> GuideStyle:
    if "encoder" in key:  # an order, and in other colours than families of q beside it
        sizes = labels.order("encoder", rows["encoder"].tolist())
        return size_style(sizes.index(key["encoder"]), len(sizes))
    if "guide" not in key:
        return series_style(place, line)
    widths = labels.order("k", rows["k"].tolist() if "k" in rows.columns else [])
    return guide_style(str(key["guide"]), None if labels.is_missing(key.get("k")) else key["k"], widths)
