"""Figures from their declarations, as PNG and PDF."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amortized_bayes import labels
from amortized_bayes.experiments.spec import Bars, Drawn, Gaps, Lines, Panel, Points
from amortized_bayes.plotting import guide_style, save_figure, style
from amortized_bayes.plotting.annotations import fix_layout, log_scale, title
from amortized_bayes.plotting.panels import (
    LINES,
    Series,
    bend,
    draw_bars,
    draw_dots,
    draw_lines,
    draw_points,
    series_style,
)
from amortized_bayes.presenting import drawn, selection
from amortized_bayes.presenting.tables import fill
from amortized_bayes.presenting.view import RunView
from amortized_bayes.results.summary import summarise

__all__ = ["SHORT", "draw_figures"]

SHORT = {"mnist": "mnist", "fashion-mnist": "fmnist"}
"""Names of data sets in names of files; others keep their own."""
ERRORS = (ArithmeticError, LookupError, OSError, RuntimeError, ValueError)
"""What may go wrong in drawing one figure; the others are drawn all the same."""
CLOCKS = {"step": "steps", "seconds": "training time (seconds)"}
Axis = tuple[Callable[[Axes], None], float, str]
"""What draws one panel, how many inches wide it is, and its title."""


def draw_figures(
    figures: Mapping[str, Panel | Sequence[Panel]],
    run: RunView,
    rows: pd.DataFrame,
    into: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Draw every figure that the rows allow into the run's folder or ``into``, and return the files.

    Args:
        figures: by file name; of a name with ``{dataset}`` or ``{number}`` there is one per data set.
        run: to be drawn.
        rows: of the run.
        into: another folder.
        say: told of a figure that cannot be drawn.
    """
    saved: list[Path] = []
    for pattern, panels in figures.items():
        panels = (panels,) if isinstance(panels, Panel) else tuple(panels)
        for name, part in _named(pattern, rows):
            try:
                figure = _figure(panels, run, part)
                saved += [] if figure is None else save_figure(figure, into or run.folder.path, name)
            except ERRORS as error:
                say(f"figure {name} cannot be drawn: {' '.join(str(error).split())}")
    return saved


def _named(pattern: str, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The names that a pattern stands for, with the rows of each."""
    if "{" not in pattern:
        yield pattern, rows
        return
    for number, (key, part) in enumerate(selection.groups(rows, ("dataset",)), start=1):
        dataset = str(key["dataset"])
        short = SHORT.get(dataset, re.sub(r"[^A-Za-z0-9_.=+-]+", "-", PurePath(dataset).stem))
        yield pattern.format(dataset=short, number=number), part


def _figure(panels: Sequence[Panel], run: RunView, rows: pd.DataFrame) -> Figure | None:
    """The panels beside each other; ``None`` where no row is for any."""
    if isinstance(panels[0], Drawn):
        return drawn.DRAWN[panels[0].function](run, rows, **panels[0].options)
    axes_of = [list(_axes(panel, run, rows)) for panel in panels]
    together = [axis for several in axes_of for axis in several]
    if not together:
        return None
    with style():
        figure = Figure(figsize=(sum(width for _, width, _ in together), 3.8), layout="constrained")
        places = figure.subplots(1, len(together), squeeze=False, width_ratios=[w for _, w, _ in together])[0]
        start = 0
        for several in axes_of:
            for axes, (draw, _, heading) in zip(places[start:], several, strict=False):
                draw(axes)
                axes.set_title(heading)
                if axes is not places[start]:
                    axes.set_ylabel("")
                    if axes.get_legend() is not None:
                        axes.get_legend().remove()
            limits = [axes.get_ylim() for axes in places[start : start + len(several)]]
            for axes in places[start : start + len(several)]:
                axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
            start += len(several)
        first = next(panel for panel, several in zip(panels, axes_of, strict=True) if several)
        title(figure, fill(first.title, rows) if not isinstance(first, Drawn) else "")
        fix_layout(figure)
    return figure


def _axes(panel: Panel, run: RunView, rows: pd.DataFrame) -> Iterator[Axis]:
    """What to draw for a panel: once, or once for each value of the factor ``apart``."""
    if isinstance(panel, Drawn):
        raise ValueError(f"expected {panel.function} alone in its figure")
    if isinstance(panel, Gaps):
        points = _points_of_jobs(panel, run)
        if len(points):
            yield lambda axes: _draw_gaps(axes, points), 2.6 + 0.9 * points["place"].nunique(), ""
        return
    chosen = selection.where(rows, panel.where)
    for key, part in selection.groups(chosen, (panel.apart,)) if panel.apart else [({}, chosen)]:
        heading = ""
        if panel.apart:
            heading = labels.value_label(panel.apart, key[panel.apart])
            heading = f"{heading} points" if panel.apart == "split" else heading
        draw, width = _ways(panel, part)
        if draw is not None:
            yield draw, width, heading


def _ways(panel: Points | Lines | Bars, rows: pd.DataFrame) -> tuple[Callable[[Axes], None] | None, float]:
    if isinstance(panel, Lines):
        curves = _curves(panel, rows)
        return (lambda axes: _draw_lines(axes, panel, curves)) if curves else None, 4.6
    finals = summarise(rows)
    if isinstance(panel, Bars):
        bars = _stacks(panel, finals)
        return (lambda axes: _draw_bars(axes, panel, bars)) if bars else None, max(3.6, 1.6 + 0.75 * len(bars))
    series, names = _series(panel, finals)
    return (lambda axes: _draw_points(axes, panel, series, names)) if series else None, max(
        4.2, 1.6 + 0.42 * len(names)
    )


# Points ---------------------------------------------------------------------------------------------------------------


def _series(panel: Points, finals: pd.DataFrame) -> tuple[list[Series], list[str]]:
    finals = cast("pd.DataFrame", finals[(finals["metric"] == panel.y) & finals["value"].notna()])
    if panel.x not in finals.columns or not len(finals):
        return [], []
    seeds = _num_seeds(finals)
    values = labels.order(panel.x, finals[panel.x].tolist())
    found = []
    for key, part in selection.groups(finals, _hue(panel.hue)) if panel.hue else [({}, finals)]:
        means = {
            values.index(at[panel.x]): mean
            for at, here in selection.groups(part, (panel.x,))
            if (mean := selection.mean(here, panel.y, seeds=seeds)) is not None and np.isfinite(mean.value)
        }
        if means:
            y = np.array([mean.value for mean in means.values()])
            error = np.array([mean.error for mean in means.values()])
            look = _look(key, len(found), finals)
            found.append(Series(_label(key), look, np.array(list(means), float), y, y - error, y + error))
    return found, [labels.value_label(panel.x, value) for value in values]


def _draw_points(axes: Axes, panel: Points, series: Sequence[Series], names: Sequence[str]) -> None:
    joined = panel.x != "label" and (panel.x in labels.ORDERS or all(_is_number(name) for name in names))
    draw_points(axes, series, names, joined=joined)
    for which in panel.log:
        bend(axes, which)
    given = [labels.value_label(n, v) for n, v in panel.where.items() if isinstance(v, str)]
    axes.set_xlabel(", ".join([labels.factor_label(panel.x), *given]))
    axes.set_ylabel(f"{labels.axis_label(panel.y)}, bar: 1 s.e.")
    if panel.hue:
        axes.legend(title=labels.factor_label(panel.hue), ncols=2 if len(series) > 4 else 1)


# Lines ----------------------------------------------------------------------------------------------------------------


def _curves(panel: Lines, rows: pd.DataFrame) -> list[Series]:
    found: list[Series] = []
    for number, metric in enumerate(panel.y):
        chosen = cast("pd.DataFrame", rows[(rows["metric"] == metric) & rows["value"].notna()])
        for key, part in selection.groups(chosen, _hue(panel.hue)) if panel.hue else [({}, chosen)]:
            if not len(part):
                continue
            line = _over_seeds(panel, part)
            name = labels.metric_label(metric).name or labels.metric_label(metric).heading
            label = ", ".join(filter(None, [name if len(panel.y) > 1 else "", _label(key)]))
            look = _look(key, len(found), chosen, LINES[number % len(LINES)] if panel.hue else "-")
            x, y, low, high = (line[c].to_numpy(float) for c in (panel.x, "value", "low", "high"))
            found.append(Series(label, look, x, y, low, high))
    return found


def _over_seeds(panel: Lines, rows: pd.DataFrame) -> pd.DataFrame:
    """A line: its mean and range over seeds where all have come, or one seed with its standard errors."""
    seeds = _num_seeds(rows)
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


def _draw_lines(axes: Axes, panel: Lines, curves: Sequence[Series]) -> None:
    draw_lines(axes, curves)
    longest = max(len(curve.x) for curve in curves)
    if "x" in panel.log and longest > 1:
        log_scale(axes, "x")
    if "y" in panel.log:
        bend(axes, "y")
    elif longest > 4:  # the first looks are far below the rest, which they would squeeze
        low = min(float(curve.y[2:].min()) for curve in curves if len(curve.y) > 2)
        high = max(float(curve.y[2:].max()) for curve in curves if len(curve.y) > 2)
        bottom = max(low - 0.06 * (high - low), axes.get_ylim()[0])
        axes.set_ylim(bottom=bottom)
    axes.set_xlabel(CLOCKS.get(panel.x, labels.factor_label(panel.x)))
    axes.set_ylabel(labels.axis_label(panel.y[0]))
    if len(curves) > 1:
        axes.legend(title=labels.factor_label(panel.hue) if panel.hue else None)


# Bars and gaps --------------------------------------------------------------------------------------------------------


def _stacks(panel: Bars, finals: pd.DataFrame) -> dict[str, dict[str, tuple[float, float]]]:
    chosen = cast("pd.DataFrame", finals[finals["metric"].isin(panel.parts)])
    seeds = _num_seeds(chosen)
    lines = selection.groups(chosen, panel.x)
    varying = [n for n in panel.x if len({key[n] for key, _ in lines}) > 1] or [panel.x[0]]
    bars: dict[str, dict[str, tuple[float, float]]] = {}
    for key, part in lines:
        found = {metric: selection.mean(part, metric, seeds=seeds) for metric in panel.parts}
        known = {m: (f.value, f.error) for m, f in found.items() if f is not None and np.isfinite(f.value)}
        if known:
            name = "\n".join(filter(None, (labels.value_label(n, key[n]) for n in varying)))
            bars[name] = {labels.metric_label(m).name or labels.metric_label(m).heading: v for m, v in known.items()}
    return bars


def _draw_bars(axes: Axes, panel: Bars, bars: Mapping[str, Mapping[str, tuple[float, float]]]) -> None:
    draw_bars(axes, list(bars.values()), list(bars))
    axes.set_xlabel(labels.factor_label(panel.x[0]) if len(panel.x) == 1 else "")
    unit = labels.metric_label(panel.parts[0]).unit
    axes.set_ylabel(f"mean gap ({unit}), bar: 1 s.e.")
    axes.set_ylim(top=1.3 * axes.get_ylim()[1])
    axes.legend(loc="upper left")


def _points_of_jobs(panel: Gaps, run: RunView) -> pd.DataFrame:
    """A row per data point and metric, of all jobs that left these arrays."""
    found: list[pd.DataFrame] = []
    values = labels.order(panel.x, (run.jobs[key].get(panel.x) for key in run.find(**_single(panel.where))))
    for value in values:
        for key in run.find(**_single(panel.where), **{panel.x: value}):
            arrays = run.arrays(key)
            for metric in panel.y:
                if metric in arrays:
                    shown = labels.metric_label(metric)
                    place = labels.value_label(panel.x, value)
                    place = f"{place} points" if panel.x == "split" else place
                    part = shown.name or shown.heading
                    found.append(pd.DataFrame({"value": arrays[metric].ravel(), "part": part, "place": place}))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame({"place": []})


def _draw_gaps(axes: Axes, points: pd.DataFrame) -> None:
    draw_dots(axes, points)
    axes.set_ylabel("gap of each data point (nats)")
    axes.legend(loc="upper left", markerscale=1.2)
    axes.set_ylim(top=axes.get_ylim()[1] + 0.22 * (axes.get_ylim()[1] - axes.get_ylim()[0]))


# Words and looks ------------------------------------------------------------------------------------------------------


def _hue(hue: str) -> tuple[str, ...]:
    return ("guide", "k") if hue == "guide" else (hue,)


def _label(key: Mapping[str, Any]) -> str:
    if "guide" in key:
        k = key.get("k")
        return labels.guide_label(str(key["guide"]), None if labels.is_missing(k) else k)
    return ", ".join(labels.value_label(name, value) for name, value in key.items())


def _look(key: Mapping[str, Any], place: int, rows: pd.DataFrame, line: str = "-") -> Any:
    if "guide" not in key:
        return series_style(place, line)
    widths = labels.order("k", rows["k"].tolist() if "k" in rows.columns else [])
    return guide_style(str(key["guide"]), None if labels.is_missing(key.get("k")) else key["k"], widths)


def _num_seeds(rows: pd.DataFrame) -> int:
    return max(1, rows["seed"].nunique()) if "seed" in rows.columns else 1


def _single(wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in wanted.items() if not isinstance(value, tuple)}


def _is_number(name: str) -> bool:
    return name.replace(",", "").replace(".", "", 1).isdecimal()
