"""The course of training one model."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from amortized_bayes.plotting.furniture import log_scale, settle, title
from amortized_bayes.plotting.style import dataset_label, style

__all__ = ["training_figure"]

CURVES = {
    "elbo": ("training points", "#0072B2", "-", "o"),
    "validation_elbo": ("validation points", "#E69F00", "--", "s"),
    "test_elbo": ("test points", "#D55E00", "-.", "^"),
}


def training_figure(frame: pd.DataFrame) -> Figure:
    """Draw the ELBO of training and held-out points against steps, and the KL of the latents beside it."""
    first = frame.iloc[0]
    with style():
        figure = Figure(figsize=(8.2, 3.4), layout="constrained")
        bounds, divergence = figure.subplots(1, 2, width_ratios=[1.6, 1])
        for metric, (label, color, line, marker) in CURVES.items():
            rows = frame[frame["metric"] == metric]
            if len(rows):
                value, error = rows["value"].to_numpy(float), rows["standard_error"].to_numpy(float)
                bounds.plot(rows["step"], value, color=color, linestyle=line, marker=marker, markevery=5, label=label)
                bounds.fill_between(rows["step"], value - error, value + error, color=color, alpha=0.15, linewidth=0)
        kl = frame[frame["metric"] == "kl"]
        divergence.plot(kl["step"], kl["value"], color="#444444", marker="o", markevery=5)
        last = frame[frame["metric"] == "elbo"]["value"].to_numpy(float)
        bounds.set_ylim(last[min(2, len(last) - 1)] - 2 if len(last) > 3 else None)
        bounds.set_ylabel("ELBO (nats a point), band: 1 s.e. over points")
        divergence.set_ylabel("KL of z from its prior (nats a point)")
        for axes in (bounds, divergence):
            axes.set_xlabel("steps")
            if len(kl) > 1:
                log_scale(axes, "x")
        bounds.legend()
        title(figure, f"{dataset_label(str(first['dataset']))}: {first['model']}, seed {first['seed']}")
        settle(figure)
    return figure
