"""The protocol of ``experiments/protocol.py`` as a figure: what joint training does to a decoder, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from amortized_bayes import labels, plotting, selection
from amortized_bayes.plotting.panels import Series, series_style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from amortized_bayes.presenting.view import RunView
    from amortized_bayes.types import Factor

__all__ = ["stages"]

PANELS = (("log_p", "elbo"), ("approximation_gap", "amortization_gap"), ("log_p_lost",), ("kl_to_original",))
LOG = ("approximation_gap",)
"""First metrics of the panels with a logarithmic axis."""
ALIKE = ("log_p", "elbo")
"""Metrics whose errors come from the choice of points, which are the same at all steps; drawn without bands."""


def stages(run: RunView, rows: pd.DataFrame, where: Mapping[str, Factor], prefix: str = "") -> Figure | None:
    """All measures along the stages of one training.

    Args:
        run: not read.
        rows: rows of a run.
        where: which training; with several seeds, the first is drawn.
        prefix: prefix of the metrics: ``exact_`` where they are exact.
    """
    del run
    own = selection.where(rows, where)
    if "stage" not in own.columns or not own["stage"].notna().any():
        return None
    seed = int(own["seed"].min())
    own = selection.where(own, {"seed": seed})
    own = own[own["stage"].notna()]
    panels = []
    for names in PANELS:
        shown = own if names[0] in LOG else own[own["step"] > 0]
        series = [s for place, name in enumerate(names) if (s := _series(shown, prefix, name, place)) is not None]
        if series:
            metric = prefix + names[0]
            label = labels.axis_label(metric) if len(names) == 1 else labels.metric_label(metric).unit
            panels.append(plotting.StagePanel(label.replace(" (", "\n("), series, names[0] in LOG))
    ends = [
        (int(part["step"].max()), labels.value_label("stage", key["stage"]))
        for key, part in selection.groups(own, ("stage",))
    ]
    if not panels:
        return None
    shown = {name: value for name, value in where.items() if name != "dataset"}
    heading = f"Training that starts from a known decoder: {labels.describe({**shown, 'seed': seed})}"
    note = (
        "bands: one standard error over points (not drawn for log p(x) and ELBO); "
        "the untrained encoder is shown among the gaps only"
    )
    return plotting.stages_figure(panels, ends, heading, note)


def _series(rows: pd.DataFrame, prefix: str, name: str, place: int) -> Series | None:
    own = selection.where(rows, {}).loc[rows["metric"] == prefix + name].sort_values("step", kind="stable")
    if not len(own):
        return None
    x, y, error = (own[column].to_numpy(float) for column in ("step", "value", "standard_error"))
    error = np.full_like(y, np.nan) if name in ALIKE else error
    return Series(labels.metric_name(prefix + name), series_style(place), x, y, y - error, y + error)
