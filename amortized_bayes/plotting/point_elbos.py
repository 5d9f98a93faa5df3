"""The ELBO of each data point under A-VI against that under F-VI: where an encoder loses its nats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from amortized_bayes.labels import guide_label
from amortized_bayes.plotting.annotations import fix_layout, footnote, title
from amortized_bayes.plotting.style import guide_style, style

__all__ = ["point_elbo_figure"]

MOST = 2_000
"""Points that are drawn; means are over all."""


def point_elbo_figure(
    reference: np.ndarray, amortized: Mapping[int, np.ndarray], all_widths: Sequence[int], heading: str
) -> Figure:
    """Draw a panel per width: one dot per data point, and a diagonal where both are equal.

    Args:
        reference: ELBO of each point under F-VI, ``(N,)`` in nats.
        amortized: that under A-VI, by width.
        all_widths: all widths of the study, for the colours.
        heading: title.
    """
    shown = np.linspace(0, len(reference) - 1, min(MOST, len(reference))).round().astype(int)
    values = np.concatenate([reference[shown], *(own[shown] for own in amortized.values())])
    low, high = np.quantile(values, [0.002, 1.0])
    margin = max(0.03 * (high - low), 0.1)
    ends = (low - margin, high + margin)
    with style():
        figure = Figure(figsize=(3.1 * len(amortized) + 0.5, 3.9), layout="constrained")
        panels = figure.subplots(1, len(amortized), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (k, own) in zip(panels, amortized.items(), strict=True):
            color = guide_style("amortized", k, all_widths).color
            axes.plot(
                *(reference[shown], own[shown], "o"),
                **{"color": color, "markersize": 2, "alpha": 0.4, "markeredgewidth": 0, "rasterized": True},
            )
            axes.plot(ends, ends, color="black", linewidth=0.9)
            behind = reference - own
            axes.set_title(f"{guide_label('amortized', k)}: {behind.mean():.1f} behind")
            axes.set(xlim=ends, ylim=ends, aspect="equal")
            axes.set_xlabel("F-VI (nats)")
        panels[0].set_ylabel("A-VI (nats)")
        title(figure, heading)
        words = f"One dot per data point, {len(shown):,} of {len(reference):,}; below the line A-VI is worse."
        footnote(figure, [f"{words} Titles: mean over all points, in nats per point."])
        fix_layout(figure)
    return figure
