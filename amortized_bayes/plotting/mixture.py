"""Four Gaussians named by two bits: data, where the posterior does not factorize, and how training moves the means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amortized_bayes.plotting.annotations import fix_layout, footnote, title
from amortized_bayes.plotting.style import MARKERS, PALETTE, style

__all__ = ["Decoder", "mixture_figure"]

CODES = ("00", "01", "10", "11")
AROUND = (0, 1, 3, 2, 0)
"""Codes of which one bit differs from the next: a parallelogram where the means factorize."""


class Decoder(NamedTuple):
    """A decoder, and its posterior over a square of points.

    Args:
        name: name of it.
        means: (4, 2), of the codes.
        gap: log p(x) - L[q*] in nats, (G, G).
        bits: posterior probability of each bit being 1, (G, G, 2).
    """

    name: str
    means: np.ndarray
    gap: np.ndarray
    bits: np.ndarray


def mixture_figure(
    x: np.ndarray,
    codes: np.ndarray,
    axis: np.ndarray,
    decoders: Sequence[Decoder],
    path: np.ndarray | None,
    heading: str,
) -> Figure:
    """The data, and a map of each decoder's gap, on one scale of colours.

    Args:
        x: points, (n, 2).
        codes: 0 to 3 of each, (n,).
        axis: coordinates of the maps, (G,), along both sides.
        decoders: the true one first.
        path: means along joint training, (T, 4, 2), drawn on the maps but the first; ``None`` without training.
        heading: title.
    """
    true, *others = decoders
    top = max(1e-3, *(float(decoder.gap.max()) for decoder in decoders))
    with style():
        figure = Figure(figsize=(3.1 * (1 + len(decoders)) + 0.6, 4.1), layout="constrained")
        panels = figure.subplots(1, 1 + len(decoders), sharex=True, sharey=True)
        _draw_data(panels[0], x, codes, true.means)
        mesh: Any = None
        for panel, decoder in zip(panels[1:], decoders, strict=True):
            mesh = panel.pcolormesh(
                axis, axis, decoder.gap, cmap="Greys", vmin=0, vmax=top, shading="nearest", rasterized=True
            )
            for bit, kind in enumerate(("-", "--")):
                panel.contour(axis, axis, decoder.bits[..., bit], levels=[0.5], colors="#0072B2", linestyles=kind)
            if decoder is not true:
                _draw_quad(panel, true.means, "0.45", ":", filled=False)
                if path is not None:
                    for code in range(4):
                        panel.plot(*path[:, code].T, color="#009E73", linewidth=1.6)
            _draw_quad(panel, decoder.means, PALETTE[1], "-", filled=True)
            panel.set_title(decoder.name)
        for panel in panels:
            panel.set(xlim=(axis[0], axis[-1]), ylim=(axis[0], axis[-1]), aspect="equal")
            panel.grid(visible=False)
        figure.colorbar(mesh, ax=panels[1:], shrink=0.8, label="gap of the best product (nats)")
        title(figure, heading)
        drift = ["dotted: where the means were; green: their way in joint training"] if others else []
        lines = "blue: where the first (solid) and the second bit (dashed) are even in the posterior"
        footnote(figure, ["; ".join(["orange: means, neighbours differ in one bit", *drift[:1], lines])])
        fix_layout(figure)
    return figure


def _draw_data(panel: Axes, x: np.ndarray, codes: np.ndarray, means: np.ndarray) -> None:
    for code, name in enumerate(CODES):
        own = x[codes == code]
        look: Any = {"color": PALETTE[(0, 4, 2, 3)[code]], "marker": MARKERS[code]}
        panel.plot(*own.T, linestyle="none", markersize=2.2, alpha=0.5, label=name, **look)
    _draw_quad(panel, means, "black", "-", filled=True)
    panel.set_title("data, by their two bits")
    below: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.08)}
    panel.legend(ncols=4, markerscale=2.2, columnspacing=0.8, handletextpad=0.0, **below)


def _draw_quad(panel: Axes, means: np.ndarray, color: str, line: str, *, filled: bool) -> None:
    around = means[list(AROUND)]
    face = color if filled else "white"
    panel.plot(*around.T, color=color, linestyle=line, marker="o", markerfacecolor=face, markersize=4.5)
    if filled:
        for place, (mean, name) in enumerate(zip(means, CODES, strict=True)):
            beside = means[[place ^ 1, place ^ 2]]
            away = 2 * mean - beside.sum(0)  # from both neighbours, so that no line is written over
            point = mean + 0.32 * away / max(float(np.linalg.norm(away)), 1e-9)
            panel.text(
                float(point[0]),
                float(point[1]),
                name,
                color=color,
                ha="center",
                va="center",
                fontsize=8,
                fontweight="bold",
            )
