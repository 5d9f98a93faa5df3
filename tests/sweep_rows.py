"""Synthetic rows of a width sweep, what figures draw of them, and the words in a figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text

from amortized_bayes.plotting import (
    reconstruction_figure,
)
from amortized_bayes.results.rows import to_frame
from amortized_bayes.types import Row

WIDTHS = (1, 16, 256)
STEPS = (0, 1, 3, 10, 30, 100, 300, 1000)
STAND_IN = "using digits instead of FashionMNIST"
FRESH = "fresh factors, q(theta) frozen"
OTHERS = ("factorized", "factorized-from-amortized", "constant")


def gap_of(guide: str, k: int | None) -> float:
    return 60.0 / k if k is not None else {"factorized": 0.0, "factorized-from-amortized": -0.25}.get(guide, 105.0)


def fit_rows(dataset: str, guide: str, k: int | None, seed: int, failed: bool) -> list[Row]:
    gap = gap_of(guide, k) + 0.02 * seed
    status = "vacuous" if guide == "constant" else "ok"
    note = STAND_IN if dataset == "fashion-mnist" else ""
    factors = {"dataset": dataset, "seed": seed, "guide": guide, **({} if k is None else {"k": k})}
    rows = []

    def add(
        metric: str, step: int, value: float | None, error: float | None = None, more: str = "", **own: float
    ) -> None:
        text = "; ".join(filter(None, (note, more)))
        seconds = 0.002 * step
        rows.append(Row("sweep", {**factors, **own}, step, seconds, metric, value, error, None, status, text))

    for step in (s for s in STEPS if not (failed and s > 100)):
        distance = (1 + step / 20) ** -1.5
        add("elbo", step, -(100 + gap + 400 * distance))
        add("kl", step, 25 * (1 - distance))
        add("mse_train", step, 0.01 + 0.2 * distance)
        if guide != "factorized" or step in (30, 1000):
            add("mse_test", step, 0.011 + 0.2 * distance, more=FRESH if guide == "factorized" else "")
    if failed:
        return [
            *rows,
            Row("sweep", factors, 120, 0.2, "failure", None, status="failed", note="nan"),
        ]
    add("family_gap", 1000, gap, 0.1)
    add("seconds_per_step", 1000, 0.002)
    for target in (1.0, 3.0):
        reached = 500.0 + 50 * seed if gap < target else None
        add("steps_to_target", 1000, reached, within=target)
        add("seconds_to_target", 1000, reached and 0.002 * reached, within=target)
    return rows


def make(
    seeds: int = 3, all_widths: tuple[int, ...] = WIDTHS, failing: bool = False, datasets: tuple[str, ...] = ("mnist",)
) -> pd.DataFrame:
    rows = []
    for dataset in datasets:
        for guide, k in [*(("amortized", k) for k in all_widths), *((guide, None) for guide in OTHERS)]:
            for seed in range(seeds):
                rows += fit_rows(dataset, guide, k, seed, failed=failing and k == all_widths[-1] and seed == seeds - 1)
        reference = {"dataset": dataset, "seed": 0, "guide": "reference"}
        rows.append(Row("sweep", reference, 1000, 2.0, "elbo_reference", -100.0))
    return to_frame(row._asdict() for row in rows)


def make_images() -> Figure:
    originals = np.random.default_rng(0).random((6, 8, 8))
    return reconstruction_figure(
        originals, {"F-VI": originals * 0.9, "constant VI": originals * 0}, "t", {"F-VI": 0.002}
    )


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]
