"""The gaps of a diagnosis, drawn: means with intervals, and all points."""

from __future__ import annotations

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from amortized_bayes.plotting import style

__all__ = ["gap_figure"]

COLORS = {"amortization": "#0072B2", "approximation": "#D55E00", "inference": "#444444"}


def gap_figure(frame: pd.DataFrame, summary: pd.DataFrame, verdict: str) -> Figure:
    """Left: mean gaps in nats with 95% intervals over points. Right: each point's gaps, sorted; zero is a line."""
    real = frame[frame["kind"] == "real"]
    with style():
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        means, points = figure.subplots(1, 2)
        for place, (name, color) in enumerate(COLORS.items()):
            row = summary.loc[f"{name}_gap"]
            reach = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            means.errorbar(row["mean"], -place, xerr=reach, color=color, marker="o", capsize=3)
            gaps = np.sort(real[f"{name}_gap"].to_numpy(float))
            points.plot(gaps, (np.arange(len(gaps)) + 0.5) / len(gaps), color=color, label=name)
        means.set_yticks([-place for place in range(len(COLORS))], list(COLORS))
        means.set_ylim(-len(COLORS) + 0.5, 0.5)
        means.set_xlabel("mean gap (nats per point), 95% interval")
        points.set_xlabel("gap of a point (nats)")
        points.set_ylabel("share of points below")
        points.legend()
        for axes in (means, points):
            axes.axvline(0, color="black", linewidth=0.8)
        figure.suptitle(fill(verdict, 100), x=0.01, ha="left", fontsize=9)
    return figure
