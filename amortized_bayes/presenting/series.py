"""Figures and sentences of ``when-and-why`` and ``interpolate``: models where it is known what f must see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from amortized_bayes import labels, plotting, selection
from amortized_bayes.plotting.panels import Series, series_style
from amortized_bayes.presenting.cells import cell
from amortized_bayes.results.summary import summarise

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from amortized_bayes.presenting.view import RunView

__all__ = ["course", "gaps_by_input", "what_f_must_see"]

SMALL = 0.01
"""Nats per point below which a family gap counts as closed."""


def gaps_by_input(run: RunView, rows: pd.DataFrame, metric: str, heading: str) -> Figure | None:
    """A metric against the width, a panel per model and a curve for each input; constant VI as a line."""
    del run
    finals, panels = summarise(rows), []
    seeds = selection.num_seeds(finals)
    own = cast("pd.DataFrame", finals[finals["metric"] == metric])
    if "k" not in own.columns or not own["k"].notna().any():
        return None
    widths = labels.order("k", own["k"].tolist())
    for key, part in selection.groups(own, ("dataset",)):
        series = []
        for sees, some in selection.groups(part, ("sees",)):
            means = {
                widths.index(at["k"]): found
                for at, here in selection.groups(some, ("k",))
                if (found := selection.mean(here, metric, {**sees, **at}, seeds)) is not None
            }
            label = labels.value_label("sees", sees["sees"])
            if means:
                series.append(_series(label, _place(str(sees["sees"])), [*means], [*means.values()]))
        panels.append(
            plotting.ModelPanel(labels.dataset_label(str(key["dataset"])), series, _constant(part, metric, seeds))
        )
    return plotting.when_and_why_figure(panels, [int(k) for k in widths], heading)


def course(run: RunView, rows: pd.DataFrame) -> Figure | None:
    """How far each fit of the first seed is behind at each step: constant VI, F-VI, and A-VI that sees enough."""
    del run
    own = selection.where(rows, {"metric": "behind_reference", "seed": int(rows["seed"].min())})
    shares = rows["share"].dropna().tolist() if "share" in rows.columns else []
    panels = []
    for key, part in selection.groups(own, ("dataset",)):
        enough = labels.SEES.get(str(key["dataset"]), ("",))[-1]
        series = []
        all_widths = [int(k) for k in part["k"].dropna().unique()]
        for fit, curve in selection.groups(part, ("guide", "sees", "k")):
            if fit["guide"] == "amortized" and fit["sees"] != enough:
                continue
            curve = curve[curve["step"] > 0].sort_values("step")
            k = None if labels.is_missing(fit["k"]) else int(fit["k"])
            look = plotting.guide_style(str(fit["guide"]), k, all_widths)
            x, y = (curve[name].to_numpy(float) for name in ("step", "value"))
            label = "A-VI, linear f" if k == 0 else labels.guide_label(str(fit["guide"]), k)
            series.append(Series(label, look, x, y, np.full_like(y, np.nan), np.full_like(y, np.nan)))
        if series:
            panels.append(plotting.ModelPanel(labels.dataset_label(str(key["dataset"])), series))
    if not panels:
        return None
    share = float(shares[0]) if shares else 0.99
    heading = "Same initialization and learning rates: how fast guides approach F-VI's optimum, where f sees enough"
    return plotting.course_figure(panels, share, heading)


def what_f_must_see(finals: pd.DataFrame) -> Iterator[str]:
    """The smallest family gap of A-VI in each model, for each input of f, and the width that reaches it."""
    seeds = selection.num_seeds(finals)
    for key, part in selection.groups(finals, ("dataset",)):
        amortized = selection.where(part, {"metric": "exact_family_gap", "guide": "amortized"})
        found = {
            str(sees["sees"]): best
            for sees, some in selection.groups(amortized, ("sees",))
            if (best := _best(some, sees, seeds)) is not None
        }
        if not found:
            continue
        name = labels.dataset_label(str(key["dataset"]))
        words = [
            f"{labels.value_label('sees', sees)} {cell('exact_family_gap', gap)} ({_f(k)})"
            for sees, (k, gap) in found.items()
        ]
        yield f"{name[0].upper()}{name[1:]}, the smallest family gap by what f sees: {', '.join(words)} nats per point."


def _best(rows: pd.DataFrame, sees: dict[str, Any], seeds: int) -> tuple[int, selection.Found] | None:
    gaps = {
        int(at["k"]): gap
        for at, here in selection.groups(rows, ("k",))
        if (gap := selection.mean(here, "exact_family_gap", {**sees, **at}, seeds)) is not None
    }
    return min(gaps.items(), key=lambda item: item[1].value) if gaps else None


def _f(k: int) -> str:
    return "linear f" if k == 0 else f"k = {k}"


def _place(sees: str) -> int:
    """Place of an input in the order of colours and markers, the same in all panels."""
    return list(labels.SEES_LABELS).index(sees)


def _series(label: str, place: int, x: list[int], means: list[selection.Found]) -> Series:
    y, error = (np.array([getattr(mean, name) for mean in means], float) for name in ("value", "error"))
    return Series(label, series_style(place), np.array(x, float), y, y - error, y + error)


def _constant(rows: pd.DataFrame, metric: str, seeds: int) -> dict[str, Any]:
    if "guide" not in rows.columns:
        return {}
    found = selection.mean(selection.where(rows, {"guide": "constant"}), metric, {"guide": "constant"}, seeds)
    return {} if found is None else {"constant VI": (found.value, plotting.guide_style("constant"))}
