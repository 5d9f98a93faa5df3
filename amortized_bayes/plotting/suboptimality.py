"""The experiments of *Inference Suboptimality in VAEs* (Cremer, Li & Duvenaud, ICML 2018), drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amortized_bayes.plotting.decomposition import PARTS, stack
from amortized_bayes.plotting.furniture import footnote, log_scale, settle, title
from amortized_bayes.plotting.style import dataset_label, style

__all__ = ["Cloud", "encoder_gap_figure", "model_gap_figure", "toy_figure"]

FAMILY_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
FAMILY_MARKERS = ("o", "s", "^", "D", "v", "P")


class Cloud(NamedTuple):
    """What one family makes of one posterior: its name, draws ``(S, 2)``, and what it loses in nats."""

    name: str
    draws: np.ndarray
    gap: float


def model_gap_figure(frame: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """Approximation and amortization gap of each model, stacked, one panel a data set.

    ``names`` has a label for each family.
    """
    datasets = list(dict.fromkeys(frame["dataset"]))
    with style():
        figure = Figure(figsize=(1.2 + 4.6 * len(datasets), 3.9), layout="constrained")
        panels = figure.subplots(1, len(datasets), squeeze=False)[0]
        for axes, dataset in zip(panels, datasets, strict=True):
            rows = frame[(frame["dataset"] == dataset) & (frame["metric"] == "approximation_gap")]
            labels = []
            for place, model in enumerate(rows["model"]):
                here = frame[(frame["dataset"] == dataset) & (frame["model"] == model)]
                values = here.set_index("metric")[["value", "standard_error"]]
                gaps = {
                    name: (float(values.at[name, "value"]), float(values.at[name, "standard_error"])) for name in PARTS
                }
                stack(axes, place, gaps, 0.65, label=not place)
                family = names[str(here["guide"].iloc[0])]
                extra = [p for p in str(model).split(", ")[1:] if p not in ("standard encoder", family)]
                labels.append("\n".join([family, *extra]))
            axes.set_xticks(range(len(labels)), labels)
            axes.grid(visible=False, axis="x")
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_title(dataset_label(dataset))
        panels[0].set_ylabel("mean gap (nats a point), bar: 1 s.e.")
        panels[0].legend(loc="upper left")
        panels[0].set_ylim(top=1.3 * panels[0].get_ylim()[1])
        title(figure, "Gaps of models trained with each family, with and without entropy annealing")
        settle(figure)
    return figure


def encoder_gap_figure(frame: pd.DataFrame, names: Mapping[str, str], encoders: Sequence[str], heading: str) -> Figure:
    """Left: amortization gap against the encoder's capacity, a line a family. Right: gaps by class of the Gaussian."""
    gaps = frame[(frame["metric"] == "amortization_gap")]
    families = list(dict.fromkeys(gaps["guide"]))
    classes = sorted({int(m[5:].split("_")[0]) for m in frame["metric"] if m.startswith("class")})
    with style():
        figure = Figure(figsize=(9.2, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        for place, family in enumerate(families):
            rows = gaps[gaps["guide"] == family].set_index("model")["value"]
            errors = gaps[gaps["guide"] == family].set_index("model")["standard_error"]
            known = [e for e in encoders if f"{e} encoder" in rows.index]
            shift = 0.06 * (place - (len(families) - 1) / 2)
            left.errorbar(
                [encoders.index(e) + shift for e in known],
                [rows[f"{e} encoder"] for e in known],
                yerr=[errors[f"{e} encoder"] for e in known],
                color=FAMILY_COLORS[place % 6],
                marker=FAMILY_MARKERS[place % 6],
                capsize=2,
                label=names[family],
            )
        left.set_xticks(range(len(encoders)), encoders)
        left.set_xlabel("encoder")
        left.set_ylabel("amortization gap (nats a point), bar: 1 s.e.")
        _gap_scale(left)
        left.legend(title="family")
        for place, encoder in enumerate(encoders):
            rows = frame[(frame["model"] == f"{encoder} encoder") & (frame["guide"] == "gaussian")]
            values = rows.set_index("metric")
            known = [c for c in classes if f"class{c}_amortization_gap" in values.index]
            right.errorbar(
                [c + 0.12 * (place - (len(encoders) - 1) / 2) for c in known],
                [values.loc[f"class{c}_amortization_gap", "value"] for c in known],
                yerr=[values.loc[f"class{c}_amortization_gap", "standard_error"] for c in known],
                color=FAMILY_COLORS[place % 6],
                marker=FAMILY_MARKERS[place % 6],
                linestyle="none",
                capsize=2,
                label=encoder,
            )
        right.set_xticks(classes)
        right.set_xlabel("class, Gaussian family")
        _gap_scale(right)
        if classes:
            right.legend(title="encoder", ncols=2)
        title(figure, heading)
        settle(figure)
    return figure


def toy_figure(
    densities: Sequence[tuple[np.ndarray, np.ndarray]], clouds: Sequence[Sequence[Cloud]], heading: str
) -> Figure:
    """A row a point: the true posterior, and what each family draws, with what it loses.

    Args:
        densities: of each point, coordinates of the grid ``(2, G)`` and the density ``(G, G)``.
        clouds: of each point, what each family makes of it.
        heading: title.
    """
    columns = 1 + len(clouds[0])
    with style():
        figure = Figure(figsize=(1.55 * columns, 1.75 * len(densities) + 0.8), layout="constrained")
        panels = figure.subplots(len(densities), columns, squeeze=False)
        for row, ((axis, density), own) in enumerate(zip(densities, clouds, strict=True)):
            window = _window(axis, density)
            panels[row, 0].pcolormesh(axis[0], axis[1], density.T, cmap="Blues", shading="nearest", rasterized=True)
            for place, cloud in enumerate(own):
                counts, x, y = np.histogram2d(*cloud.draws.T, bins=60, range=window)
                panels[row, place + 1].pcolormesh(x, y, counts.T, cmap="Blues", rasterized=True)
                panels[row, place + 1].text(
                    0.04,
                    0.96,
                    f"loses {cloud.gap:.2f}",
                    transform=panels[row, place + 1].transAxes,
                    va="top",
                    fontsize=7,
                )
                levels = _levels(density, axis)
                panels[row, place + 1].contour(
                    axis[0], axis[1], density.T, levels=levels, colors="#D55E00", linewidths=0.7
                )
            for axes in panels[row]:
                axes.set_xlim(window[0])
                axes.set_ylim(window[1])
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(visible=False)
        for axes, name in zip(panels[0], ["true posterior", *(cloud.name for cloud in clouds[0])], strict=True):
            axes.set_title(name, fontsize=8)
        title(figure, heading)
        footnote(figure, ["orange: true posterior, contours around 50% and 90% of its mass; losses in nats"])
        settle(figure)
    return figure


def _gap_scale(axes: Axes) -> None:
    """Logarithmic, but for gaps of zero or less, which a logarithm would hide."""
    low, _ = axes.get_ylim()
    if low > 0:
        log_scale(axes, "y")
    else:
        axes.set_yscale("symlog", linthresh=0.1)
        axes.axhline(0, color="black", linewidth=0.8)


def _levels(density: np.ndarray, axis: np.ndarray) -> list[float]:
    """Densities above which lie 90% and 50% of the mass, the lower first."""
    area = (axis[0, 1] - axis[0, 0]) * (axis[1, 1] - axis[1, 0])
    ordered = np.sort(density.ravel())[::-1]
    mass = np.cumsum(ordered) * area
    return [float(ordered[min(np.searchsorted(mass, share), len(ordered) - 1)]) for share in (0.9, 0.5)]


def _window(axis: np.ndarray, density: np.ndarray) -> list[list[float]]:
    """Where 99.9% of the posterior's mass lies, in each direction, with a margin."""
    window = []
    for place, other in ((0, 1), (1, 0)):
        share = np.cumsum(density.sum(other))
        share = share / share[-1]
        low, high = axis[place][np.searchsorted(share, 0.0005)], axis[place][np.searchsorted(share, 0.9995)]
        margin = 0.25 * (high - low)
        ends = axis[place][0], axis[place][-1]
        window.append([float(max(low - margin, ends[0])), float(min(high + margin, ends[1]))])
    return window
