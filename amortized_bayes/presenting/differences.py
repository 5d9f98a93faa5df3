"""Where our numbers and the published ones differ most: a block of a page, from finished runs.

Bounds depend on images and training. What is compared is a difference of two bounds of one model at the same points:
its gaps, and what the best flow of each point gains over the best Gaussian, L(q*, flow) - L(q*, gaussian).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from amortized_bayes import labels, selection
from amortized_bayes.experiments import experiment
from amortized_bayes.experiments.spec import GAPS
from amortized_bayes.presenting.cells import cell
from amortized_bayes.presenting.finished import FinishedRun, answering, finished_runs
from amortized_bayes.presenting.markdown import markdown_table, with_block
from amortized_bayes.presenting.published import Published, find, read_published
from amortized_bayes.presenting.tables import compared
from amortized_bayes.selection import Found

__all__ = ["Pair", "differences", "largest_differences", "with_differences"]

COMPARED = ("model-gaps", "frozen-decoder", "decoder-capacity")
"""Experiments after tables of Cremer, Li & Duvenaud (2018)."""
SMALLEST = 1.5
"""Nats per point that two numbers must lie apart to be listed."""
HEADINGS = ("what", "of", "command", "data", "published", "here", "difference")


class Pair(NamedTuple):
    """A number of ours and the published one.

    Args:
        experiment: whose rows have it.
        what: name of the quantity.
        ours: our number; its error is nan for a difference of two rows, since rows keep none that is paired by point.
        published: the same quantity of the same factors.
    """

    experiment: str
    what: str
    ours: Found
    published: Published

    @property
    def nats(self) -> float:
        """How far ours lies above the published number, in nats per point."""
        return self.ours.value - self.published.value


def with_differences(page: str, out: Path) -> str:
    """A page whose block is that of the finished runs under ``out``.

    Raises:
        ValueError: a page without the place of the block, no finished runs, or a damaged one.
    """
    return with_block(page, "largest differences", largest_differences(out))


def largest_differences(out: Path) -> str:
    """The table of differences of at least 1.5 nats, and how far apart estimates of log p(x) lie, in Markdown.

    Raises:
        ValueError: no finished runs under ``out``, or a damaged one.
    """
    pairs = list(_pairs(finished_runs(out, COMPARED)))
    if not pairs:
        raise ValueError(f"expected runs of preset quick with published numbers under {out}, got none")
    lines = [_line(pair) for pair in differences(pairs) if abs(pair.nats) >= SMALLEST]
    apart: dict[str, list[float]] = {}
    for pair in pairs:
        if pair.published.metric == "log_p_lower":
            apart.setdefault(pair.published.factors["dataset"], []).append(pair.nats)
    bounds = [f"{min(n):+.1f} to {max(n):+.1f} on {labels.dataset_label(name)}" for name, n in apart.items()]
    return f"{markdown_table(HEADINGS, lines)}\n\nlog p̂ here less the published one: {', '.join(bounds)}."


def differences(pairs: Iterable[Pair]) -> list[Pair]:
    """Gaps, and gains of the best flows, the largest difference first.

    Args:
        pairs: published numbers with ours.
    """
    models: dict[tuple[Any, ...], dict[str, Pair]] = {}
    found: list[Pair] = []
    for pair in pairs:
        if pair.published.metric in GAPS:
            found.append(pair)
        elif pair.published.metric == "elbo_star":
            model = {name: value for name, value in pair.published.factors.items() if name != "searched"}
            key = (pair.experiment, *sorted(model.items()))
            models.setdefault(key, {})[pair.published.factors["searched"]] = pair
    for stars in models.values():
        gaussian = stars.pop("gaussian", None)
        found += [_gain(flow, gaussian) for flow in stars.values() if gaussian is not None]
    return sorted(found, key=lambda pair: -abs(pair.nats))


def _pairs(runs: list[FinishedRun]) -> Iterator[Pair]:
    """Every published number of which a run has ours."""
    for name in COMPARED:
        files = dict.fromkeys(table.published for table in experiment(name).TABLES if table.published)
        numbers = [number for file in files for number in read_published(file)]
        for dataset in dict.fromkeys(number.factors["dataset"] for number in numbers):
            run = answering(runs, name, "quick", dataset)
            if run is not None:
                yield from _pairs_of(run, dataset, numbers)


def _pairs_of(run: FinishedRun, dataset: str, numbers: list[Published]) -> Iterator[Pair]:
    rows = selection.where(run.finals, {"dataset": dataset, "label": None})
    factors = [name for name in selection.factor_names(rows) if name != "seed"]
    for _, same in selection.groups(rows, factors):
        for metric in dict.fromkeys(same["metric"]):
            ours = selection.mean(same, metric, seeds=len(run.seeds))
            published = find(numbers, metric, ours.factors) if ours else None
            if ours and published:
                yield Pair(run.folder.experiment, labels.metric_name(metric), ours, published)


def _gain(flow: Pair, gaussian: Pair) -> Pair:
    """What the best flow gains over the best Gaussian of the same model."""
    name = labels.metric_label(flow.published.metric).heading
    what = " above ".join(f"{name}, {pair.ours.factors['searched']}," for pair in (flow, gaussian)).removesuffix(",")
    ours = Found(flow.ours.value - gaussian.ours.value, math.nan, flow.ours.factors)
    published = flow.published._replace(value=flow.published.value - gaussian.published.value)
    return Pair(flow.experiment, what, ours, published)


def _line(pair: Pair) -> tuple[str, ...]:
    factors, metric = pair.ours.factors, pair.published.metric
    return (
        pair.what,
        labels.describe({name: value for name, value in factors.items() if name not in ("dataset", "searched")}),
        f"`{pair.experiment}`",
        labels.dataset_label(factors["dataset"]),
        compared(pair.ours, pair.published),
        cell(metric, pair.ours),
        f"{abs(pair.nats):.2f} {'higher' if pair.nats > 0 else 'lower'}",
    )
