"""Figures that panels cannot draw, by name: functions from a run and its rows to a figure, or ``None`` without data.

Besides rows they read arrays of jobs: images ``(n, H, W)`` or ``(n, H, W, 3)`` named ``picture_...``;
``elbo_<epochs>`` ``(N,)``, ``original`` and ``reconstruction`` of a fit of the sweep; ``elbo_star``, ``residual`` and
``evaluations``, ``(R, B)``, of a search for q*; for ``toy-posteriors``, ``axes`` and ``density`` of the job named
``posterior``, and ``draws`` ``(S, 4, 2)`` and ``elbo`` ``(B,)`` of the jobs of each family named ``amortized`` and
``best``; and the arrays of ``gmm`` (``presenting.mixture``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from amortized_bayes import labels, plotting, selection
from amortized_bayes.guides.registry import GUIDES
from amortized_bayes.plotting.annotations import fix_layout, log_scale, title
from amortized_bayes.plotting.curves import CURVES
from amortized_bayes.plotting.panels import Series, draw_lines
from amortized_bayes.presenting.fits import of_guide, widths
from amortized_bayes.presenting.mixture import mixture
from amortized_bayes.presenting.pictures import PICTURE, as_images
from amortized_bayes.presenting.series import course, gaps_by_input
from amortized_bayes.presenting.stages import stages
from amortized_bayes.results.summary import summarise

if TYPE_CHECKING:
    import pandas as pd

    from amortized_bayes.presenting.view import RunView

__all__ = ["DRAWN"]

SIZES = np.array([1e3, 1e4, 1e5, 1e6])
"""Numbers of data points for which memory is drawn."""


def _curves(run: RunView, rows: pd.DataFrame, metric: str) -> Figure | None:
    """A metric of every guide against iterations and seconds."""
    del run
    if metric not in CURVES or not (rows["metric"] == metric).any():
        return None
    return plotting.curve_figure(rows, str(rows["dataset"].iloc[0]), metric)


def _family_gap(run: RunView, rows: pd.DataFrame) -> Figure | None:
    del run
    return plotting.family_gap_figure(rows) if (rows["metric"] == "family_gap").any() else None


def _reconstructions(run: RunView, rows: pd.DataFrame) -> Figure | None:
    """Test images and their reconstructions by each guide of the first seed; ``None`` if the data are not images."""
    finals = summarise(rows)
    dataset, seed = str(rows["dataset"].iloc[0]), int(rows["seed"].min())
    seen: dict[str, np.ndarray] = {}
    errors: dict[str, float] = {}
    original = None
    for guide, k in selection.guides(finals):
        name = labels.guide_label(guide, k)
        for job in run.find({"dataset": dataset, "seed": seed, "guide": guide, "k": k})[:1]:
            arrays = run.arrays(job)
            if "reconstruction" not in arrays or (original := as_images(arrays["original"])) is None:
                return None
            seen[name] = arrays["reconstruction"].reshape(original.shape)
            if (error := of_guide(finals, "final_mse_test", guide, k)) is not None:
                errors[name] = error.value
    if original is None:
        return None
    title = f"{labels.dataset_label(dataset)}: test images and what each guide makes of them"
    return plotting.reconstruction_figure(original, seen, title, errors)


def _point_elbos(run: RunView, rows: pd.DataFrame) -> Figure | None:
    """ELBO of each training point under A-VI of up to three widths against that under F-VI, for the first seed."""
    finals = summarise(rows)
    dataset, seed = str(rows["dataset"].iloc[0]), int(rows["seed"].min())
    place = {"dataset": dataset, "seed": seed}

    def elbos(guide: str, k: int | None = None) -> np.ndarray | None:
        for job in run.find({**place, "guide": guide, "k": k})[:1]:
            return _with_all_epochs(run.arrays(job))
        return None

    reference = elbos("factorized-from-amortized")
    known = {k: found for k in widths(finals) if (found := elbos("amortized", k)) is not None}
    if reference is None or not known:
        return None
    chosen = sorted({min(known), sorted(known)[len(known) // 2], max(known)})
    heading = f"{labels.dataset_label(dataset)}: ELBO of each training point, A-VI against F-VI from A-VI, seed {seed}"
    return plotting.point_elbo_figure(reference, {k: known[k] for k in chosen}, sorted(known), heading)


def _with_all_epochs(arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """ELBO of each point with the largest budget."""
    budgets = [int(name.removeprefix("elbo_")) for name in arrays if name.removeprefix("elbo_").isdecimal()]
    return arrays[f"elbo_{max(budgets)}"] if budgets else None


def _memory(run: RunView, rows: pd.DataFrame) -> Figure | None:
    """Measured bytes; for guides with per-point parameters they are scaled with the number of points."""
    finals = summarise(rows)
    guides = [g for g in selection.guides(finals) if g[0] not in GUIDES or not GUIDES[g[0]].starts_from]
    series: list[Series] = []
    for guide, k in guides:
        own = selection.where(finals, {"guide": guide, "k": k, "metric": "memory_bytes"})
        sizes = [size for job in run.find({"guide": guide, "k": k}) if (size := _num_points(run.arrays(job)))][:1]
        if not sizes or not len(own):
            continue
        grows = guide in GUIDES and GUIDES[guide].per_point
        y = (SIZES / sizes[0] if grows else np.ones(len(SIZES))) * float(own["value"].iloc[0])
        y *= labels.metric_label("memory_bytes").scale
        look = plotting.guide_style(guide, k, [k for _, k in guides if k is not None])
        series.append(Series(labels.guide_label(guide, k), look, SIZES, y, y, y))
    if not series:
        return None
    with plotting.style():
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        draw_lines(axes, series)
        log_scale(axes, "x")
        log_scale(axes, "y")
        axes.set(xlabel="data points N", ylabel=labels.axis_label("memory_bytes"))
        figure.legend(handles=axes.get_legend_handles_labels()[0][::-1], loc="outside right center")
        title(figure, "Memory that fitting a guide holds, as the data set grows")
        fix_layout(figure)
    return figure


def _num_points(arrays: Mapping[str, np.ndarray]) -> int:
    """N, from the ELBO of each point with some budget; 0 where a job has none."""
    return next((len(values) for name, values in arrays.items() if name.startswith("elbo_")), 0)


def _qstar(run: RunView, rows: pd.DataFrame) -> Figure | None:
    """Convergence of the search for q*, and its residual against what is truly missing."""
    references = run.find({"start": "reference"})
    if not references:
        return None
    reference = run.arrays(references[0])["elbo_star"]
    found: dict[tuple[str, float], dict[int, dict[str, np.ndarray]]] = {}
    for key in run.find({}):
        own = run.jobs[key]
        if own.get("start") not in (None, "reference"):
            by_budget = found.setdefault((str(own["start"]), float(own["spread"])), {})
            by_budget[int(own["budget"])] = run.arrays(key)
    searches = [
        plotting.Search(
            start,
            spread,
            sorted(by_budget),
            [float(np.mean(by_budget[budget]["evaluations"])) for budget in sorted(by_budget)],
            [reference - by_budget[budget]["elbo_star"] for budget in sorted(by_budget)],
            [by_budget[budget]["residual"] for budget in sorted(by_budget)],
        )
        for (start, spread), by_budget in found.items()
    ]
    return (
        plotting.convergence_figure(
            searches, f"How far q* can be trusted: {labels.describe(selection.factors_of(rows))}"
        )
        if searches
        else None
    )


def _restarts(run: RunView, rows: pd.DataFrame) -> Figure | None:
    """How far each search for q* is behind the best of its restarts."""
    found: dict[str, list[np.ndarray]] = {}
    for key in run.find({}):
        own = run.jobs[key]
        elbos = run.arrays(key)["elbo_star"]
        if own.get("start") not in (None, "reference") and len(elbos) > 1:
            name = f"{own['start']}, {int(own['budget']):,} steps"
            found.setdefault(name, []).append((elbos.max(0) - elbos).ravel())
    if not found:
        return None
    heading = f"Optimization gap over restarts: {labels.describe(selection.factors_of(rows))}"
    return plotting.restart_figure({name: np.concatenate(gaps) for name, gaps in found.items()}, heading)


def _toy_posteriors(run: RunView, rows: pd.DataFrame) -> Figure | None:
    """Posteriors of the first points, and their approximations by each family."""
    grids = run.find({}, "posterior")
    if not grids:
        return None
    truth = run.arrays(grids[0])
    densities = list(zip(truth["axes"], truth["density"], strict=True))
    clouds: list[list[plotting.Cloud]] = [[] for _ in densities]
    families = [key["family"] for key, _ in selection.groups(rows, ("family",))]
    for family, way in product(families, ("amortized", "best")):
        for key in run.find({"family": family}, way):
            arrays = run.arrays(key)
            for point, own in enumerate(clouds):
                name = f"{labels.value_label('family', family)},\n{way}"
                gap = float(truth["log_p"][point] - arrays["elbo"][point])
                own.append(plotting.Cloud(name, arrays["draws"][:, point], gap))
    if not clouds[0]:
        return None
    datasets = ", ".join(labels.dataset_label(name) for name in rows["dataset"].unique())
    return plotting.toy_figure(densities, clouds, f"Posteriors of a model with two latents on {datasets}")


def _close_the_gap(run: RunView, rows: pd.DataFrame) -> Figure | None:
    """What each method recovers, against its seconds at test time and in training."""
    del run
    finals = summarise(rows)
    found: dict[str, list[plotting.Way]] = {}
    for dataset in dict.fromkeys(finals["dataset"]):
        own = selection.where(finals, {"dataset": dataset})
        ways = [_way(selection.where(own, {"method": method}), method) for method in _methods(own)]
        if ways:
            found[labels.dataset_label(str(dataset))] = ways
    heading = "Nats recovered over the encoder's own answer (numbers at markers: per-point steps)"
    return plotting.closing_figure(found, heading) if found else None


def _methods(rows: pd.DataFrame) -> list[str]:
    known = rows[(rows["metric"] == "recovered") & rows["value"].notna()]
    return labels.order("method", known["method"])


def _way(rows: pd.DataFrame, method: str) -> plotting.Way:
    steps = [0] * len(rows) if "budget" not in rows else [int(n) for n in rows["budget"].fillna(0)]
    columns = (rows["metric"], rows["value"].astype(float), rows["standard_error"].astype(float))
    own = {(metric, n): (value, error) for n, metric, value, error in zip(steps, *columns, strict=True)}
    known = sorted(n for metric, n in own if metric == "recovered")

    def column(metric: str, place: int = 0) -> list[float]:
        return [own[metric, n][place] if (metric, n) in own else math.nan for n in known]

    return plotting.Way(
        labels.value_label("method", method),
        known,
        column("recovered"),
        column("recovered", 1),
        [1e3 * seconds for seconds in column("seconds_per_point")],
        column("training_seconds"),
        is_ceiling=method.startswith("qstar"),
    )


def _pictures(run: RunView, rows: pd.DataFrame, heading: str) -> Figure | None:
    """Images that jobs kept as arrays named ``picture_...``, a row per array, labelled by the factors of its job."""
    jobs = {key: run.jobs[key] for key in run.find({})}
    shared = selection.factors_of(rows)
    found = {
        ", ".join(
            filter(None, (labels.describe({n: v for n, v in own.items() if n not in shared}), _words(name)))
        ): images
        for key, own in jobs.items()
        for name, images in run.arrays(key).items()
        if name.startswith(PICTURE)
    }
    return plotting.picture_figure(found, f"{heading}: {labels.describe(shared)}") if found else None


def _words(name: str) -> str:
    return name.removeprefix(PICTURE).replace("_", " ")


DRAWN: dict[str, Callable[..., Figure | None]] = {
    "close_the_gap": _close_the_gap,
    "course": course,
    "curves": _curves,
    "family_gap": _family_gap,
    "gaps_by_input": gaps_by_input,
    "reconstructions": _reconstructions,
    "memory": _memory,
    "mixture": mixture,
    "pictures": _pictures,
    "point_elbos": _point_elbos,
    "qstar": _qstar,
    "restarts": _restarts,
    "stages": stages,
    "toy_posteriors": _toy_posteriors,
}
"""Figures by name, as ``Drawn`` of an experiment names them."""
