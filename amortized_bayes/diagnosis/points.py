"""What a page about a diagnosis says of its points: the ladder of bounds, gaps against k̂, and the worst of them."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from amortized_bayes.page.parts import Table
from amortized_bayes.per_point import mean_over_points
from amortized_bayes.plotting import style
from amortized_bayes.plotting.panels import bend
from amortized_bayes.reports.hardest import hardest_table

__all__ = ["bounds_figure", "hardest_points"]

BOUNDS = {"elbo": "ELBO", "elbo_star": "L(q*)", "iwae": "IWAE", "log_p_lower": "log p (AIS)"}
"""From the loosest to the tightest."""


def bounds_figure(frame: pd.DataFrame, edge: float, name: str = BOUNDS["log_p_lower"]) -> Figure:
    """Left: mean distances of the bounds to the last, of that name. Right: each point's gap against k̂."""
    real = frame[frame["kind"] == "real"]
    top = real["log_p_lower"].to_numpy(float)
    found = [mean_over_points(real[bound].to_numpy(float) - top) for bound in BOUNDS]
    with style():
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        ladder, points = figure.subplots(1, 2)
        errors = [error if bound != "log_p_lower" else 0.0 for bound, (_, error) in zip(BOUNDS, found, strict=True)]
        places = range(len(BOUNDS))
        ladder.errorbar(places, [mean for mean, _ in found], yerr=errors, color="#0072B2", marker="o", capsize=3)
        ladder.set_xticks(list(places), [*list(BOUNDS.values())[:-1], name])
        ladder.set_ylabel(f"distance to {name}, nats per point\nbar: 1 standard error")
        points.plot(real["k_hat"], real["inference_gap"], "o", color="#0072B2", markersize=3, alpha=0.6)
        bend(points, "y")
        points.axvline(edge, color="black", linewidth=1.0, linestyle="--", label="weights unreliable beyond")
        points.set_xlabel("k-hat")
        points.set_ylabel("inference gap of a point (nats)")
        points.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def hardest_points(frame: pd.DataFrame) -> Table:
    """The points with the largest inference gap, the worst first."""
    real = frame[frame["kind"] == "real"]
    points = real["point"].tolist()
    found = hardest_table(
        {str(name): real[name] for name in real.columns}, lambda place: [str(points[place])], numbering="as in the data"
    )
    if found is None:
        raise ValueError("expected points with finite gaps, got none")
    return found
