"""Posteriors of two latents, drawn: the true one beside what each family makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from amortized_bayes.plotting.annotations import fix_layout, footnote, title
from amortized_bayes.plotting.style import style

__all__ = ["Cloud", "toy_figure"]


class Cloud(NamedTuple):
    """What one family makes of one posterior: its name, draws ``(S, 2)``, and its gap in nats."""

    name: str
    draws: np.ndarray
    gap: float


def toy_figure(
    densities: Sequence[tuple[np.ndarray, np.ndarray]], clouds: Sequence[Sequence[Cloud]], heading: str
) -> Figure:
    """A row per data point: the true posterior, and what each family draws, with its gap.

    Args:
        densities: densities of each point, coordinates of the grid ``(2, G)`` and the density ``(G, G)``.
        clouds: clouds of each point, what each family makes of it.
        heading: title.
    """
    columns = 1 + len(clouds[0])
    with style():
        figure = Figure(figsize=(1.55 * columns, 1.75 * len(densities) + 0.8), layout="constrained")
        panels = figure.subplots(len(densities), columns, squeeze=False)
        for row, ((axis, density), own) in enumerate(zip(densities, clouds, strict=True)):
            window = _window(axis, density)
            panels[row, 0].pcolormesh(axis[0], axis[1], density.T, cmap="Blues", shading="nearest", rasterized=True)
            for panel, cloud in zip(panels[row, 1:], own, strict=True):
                counts, x, y = np.histogram2d(*cloud.draws.T, bins=60, range=window)
                panel.pcolormesh(x, y, counts.T, cmap="Blues", rasterized=True)
                panel.text(0.04, 0.96, f"gap {cloud.gap:.2f}", transform=panel.transAxes, va="top", fontsize=7)
                levels = _levels(density, axis)
                panel.contour(axis[0], axis[1], density.T, levels=levels, colors="#D55E00", linewidths=0.7)
            for panel in panels[row]:
                panel.set(xlim=window[0], ylim=window[1], xticks=[], yticks=[])
                panel.grid(visible=False)
        for panel, name in zip(panels[0], ["true posterior", *(cloud.name for cloud in clouds[0])], strict=True):
            panel.set_title(name, fontsize=8)
        title(figure, heading)
        footnote(figure, ["orange: true posterior, contours around 50% and 90% of its mass; gaps in nats"])
        fix_layout(figure)
    return figure


def _levels(density: np.ndarray, axis: np.ndarray) -> list[float]:
    """Densities above which lie 90% and 50% of the mass, the lower first."""
    area = (axis[0, 1] - axis[0, 0]) * (axis[1, 1] - axis[1, 0])
    ordered = np.sort(density.ravel())[::-1]
    mass = np.cumsum(ordered) * area
    return [float(ordered[min(np.searchsorted(mass, share), len(ordered) - 1)]) for share in (0.9, 0.5)]


def _window(axis: np.ndarray, density: np.ndarray) -> list[tuple[float, float]]:
    """Where 99.9% of the posterior's mass lies, in each direction, with a margin."""
    window = []
    for place, other in ((0, 1), (1, 0)):
        share = np.cumsum(density.sum(other))
        share = share / share[-1]
        low, high = axis[place][np.searchsorted(share, 0.0005)], axis[place][np.searchsorted(share, 0.9995)]
        margin = 0.25 * (high - low)
        ends = axis[place][0], axis[place][-1]
        window.append((float(max(low - margin, ends[0])), float(min(high + margin, ends[1]))))
    return window
