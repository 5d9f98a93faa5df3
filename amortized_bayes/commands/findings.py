"""What a sweep found, in a table and in words, from its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import pandas as pd
from rich.console import Console
from rich.table import Table

from amortized_bayes.plotting import dataset_label, guide_label

__all__ = ["claims", "print_claims", "print_table", "sentences", "value_of"]

ORDER = ["constant", "amortized", "factorized", "factorized-from-amortized"]
COLUMNS = {
    "final_elbo": "ELBO",
    "family_gap": "family gap",
    "final_iwae_gain": "IWAE - ELBO",
    "final_kl": "KL of z",
    "active_units": "active",
    "final_mse_train": "train MSE",
    "final_mse_test": "test MSE",
    "log_predictive": "test log pred.",
    "seconds_per_step": "ms/step",
    "seconds_to_1_nat": "s to 1 nat",
    "seconds_to_3_nats": "s to 3 nats",
    "unconverged_by": "unconverged by",
}


def print_table(frame: pd.DataFrame, console: Console | None = None) -> None:
    """Print a table a data set: a row a guide, mean over seeds, ± the error that the caption names."""
    console = console or Console(width=None if Console().is_terminal else 190)
    for dataset in frame["dataset"].unique():
        rows = cast(pd.DataFrame, frame[frame["dataset"] == dataset])
        seeds = rows["seed"].nunique()
        over = f"± standard error over {seeds} seeds" if seeds > 1 else "± standard error over points, one seed"
        table = Table(title=f"{dataset_label(dataset)}: nats a point; {over}", title_justify="left")
        table.add_column("guide")
        for heading in COLUMNS.values():
            table.add_column(heading, justify="right")
        for guide, k in fits_of(rows):
            cells = [_cell(rows, guide, k, metric) for metric in COLUMNS]
            table.add_row(_name(rows, guide, k), *cells)
        console.print(table)


def fits_of(rows: pd.DataFrame) -> list[tuple[str, int | None]]:
    """Guides of a data set in the order in which people read them."""
    found = {(str(g), None if pd.isna(k) else int(k)) for g, k in zip(rows["guide"], rows["k"], strict=True)}
    return sorted((f for f in found if f[0] in ORDER), key=lambda f: (ORDER.index(f[0]), f[1] or 0))


def value_of(rows: pd.DataFrame, guide: str, k: int | None, metric: str) -> tuple[float, float] | None:
    """Mean over seeds of a final value, and its error: over seeds where there are several, else the row's own."""
    chosen = (rows["guide"] == guide) & (rows["metric"] == metric) & rows["value"].notna()
    chosen &= rows["k"].isna() if k is None else (rows["k"] == k).fillna(False)
    if "_to_" in metric and _missed(rows, guide, k, metric):
        return None  # a mean over the seeds that arrived would be too good
    found = rows[chosen.astype(bool)].sort_values("step").groupby("seed").last()
    if found.empty:
        return None
    values = found["value"].astype(float)
    if rows["seed"].nunique() > 1:  # nan where one seed alone has a value
        return float(values.mean()), float(values.std() / math.sqrt(len(values)))
    error = found["standard_error"].astype(float).iloc[0]
    return float(values.iloc[0]), float(error)


def _missed(rows: pd.DataFrame, guide: str, k: int | None, metric: str) -> bool:
    """Whether some seed never reached a target."""
    own = rows[(rows["guide"] == guide) & (rows["metric"] == metric) & rows["value"].isna()]
    return bool(own["k"].isna().any() if k is None else (own["k"] == k).fillna(False).any())


def sentences(frame: pd.DataFrame) -> Iterator[str]:
    """Yield what was found, in words."""
    for dataset in frame["dataset"].unique():
        rows = cast(pd.DataFrame, frame[frame["dataset"] == dataset])
        label = dataset_label(dataset)
        failed = rows[rows["metric"] == "failure"]
        for row in failed.itertuples():
            yield f"{label}: {guide_label(str(row.guide), _width(row.k))} failed at step {row.step} ({row.note})."
        yield from _gap_sentences(rows, label)
        yield from _vacuous_sentences(rows, label)
        yield from _time_sentences(rows, label)
        yield from _convergence_sentences(rows, label)


def _gap_sentences(rows: pd.DataFrame, label: str) -> Iterator[str]:
    over = "seeds" if rows["seed"].nunique() > 1 else "points"
    gaps = [
        (k, g) for guide, k in fits_of(rows) if guide == "amortized" and (g := value_of(rows, guide, k, "family_gap"))
    ]
    if not gaps:
        return
    parts = [f"k = {k} {_loses(gap, error)}" for k, (gap, error) in gaps]
    constant = value_of(rows, "constant", None, "family_gap")
    ending = f"; constant VI loses {constant[0]:.1f}" if constant else ""
    yield f"{label}: against the best F-VI found, {', '.join(parts)}{ending} (nats a point, ± over {over})."
    enough = next((k for k, (gap, _) in gaps if gap <= 1.0), None)
    if enough is None:
        yield f"{label}: no width tried comes within 1 nat of F-VI."
    else:
        yield f"{label}: the narrowest encoder within 1 nat of F-VI is k = {enough}."


def _loses(gap: float, error: float) -> str:
    size = f"{abs(gap):.1f}{_plus_minus(error, 1)}"
    return f"loses {size}" if gap > 0 else f"is {size} better"


def _vacuous_sentences(rows: pd.DataFrame, label: str) -> Iterator[str]:
    finals = rows[rows["metric"] == "final_kl"]
    dead = finals[finals["status"] == "vacuous"]
    names = sorted({guide_label(str(r.guide), _width(r.k)) for r in dead.itertuples()})
    if names:
        yield f"{label}: vacuous, since the latents carry less than 1 nat: {', '.join(names)}."


def _time_sentences(rows: pd.DataFrame, label: str) -> Iterator[str]:
    factorized = {m: value_of(rows, "factorized", None, m) for m in ("seconds_to_3_nats", "steps_to_3_nats")}
    for guide, k in fits_of(rows):
        if guide != "amortized":
            continue
        own = {m: value_of(rows, guide, k, m) for m in factorized}
        seconds, steps = own["seconds_to_3_nats"], own["steps_to_3_nats"]
        other, other_steps = factorized["seconds_to_3_nats"], factorized["steps_to_3_nats"]
        if seconds and steps and other and other_steps:
            yield (
                f"{label}: to within 3 nats of the reference F-VI took {other[0] / seconds[0]:.1f} times the seconds "
                f"and {other_steps[0] / steps[0]:.1f} times the iterations of k = {k}."
            )


def _convergence_sentences(rows: pd.DataFrame, label: str) -> Iterator[str]:
    parts = []
    for guide, k in fits_of(rows):
        if (gain := value_of(rows, guide, k, "unconverged_by")) is not None:
            parts.append(f"{guide_label(guide, k)} by {gain[0]:.1f}")
    if parts:
        yield f"{label}: unconverged (what as many epochs again still gain): {', '.join(parts)} nats a point."
    for guide, k in fits_of(rows):
        gap, gain = (value_of(rows, guide, k, metric) for metric in ("family_gap", "unconverged_by"))
        if guide == "amortized" and gap and gain:  # F-VI from A-VI had A-VI's epochs and its own
            yield (
                f"{label}: the reference may rest on twice the epochs (F-VI started at A-VI); given as many, "
                f"{guide_label(guide, k)} {_loses(gap[0] - gain[0], math.nan)}."
            )
    for row in rows[(rows["metric"] == "doubled_elbo") & rows["value"].isna()].itertuples():
        yield f"{label}: {guide_label(str(row.guide), _width(row.k))}: {row.note} (step {row.step})."


def _cell(rows: pd.DataFrame, guide: str, k: int | None, metric: str) -> str:
    found = value_of(rows, guide, k, metric)
    if found is None:
        reached = metric.startswith("seconds_to")
        return "not reached" if reached and (rows["metric"] == metric).any() and guide != ORDER[-1] else ""
    value, error = found
    if metric == "seconds_per_step":
        return f"{1000 * value:.2f}"
    if metric == "active_units":
        return f"{value:.0f}"
    digits = 4 if "mse" in metric else 1 if metric.startswith("seconds") else 2
    return f"{value:.{digits}f}{_plus_minus(error, digits)}"


def _plus_minus(error: float, digits: int) -> str:
    return f"±{error:.{digits}f}" if math.isfinite(error) else ""


def _name(rows: pd.DataFrame, guide: str, k: int | None) -> str:
    label = guide_label(guide, k)
    chosen = (rows["guide"] == guide) & (rows["k"].isna() if k is None else (rows["k"] == k).fillna(False))
    own = rows[chosen.astype(bool)]
    if (own["metric"] == "failure").any():
        return f"{label} (failed)"
    dead = (own[own["metric"] == "final_kl"]["status"] == "vacuous").any()
    return f"{label} (vacuous)" if dead else label


def _width(k: Any) -> int | None:
    return None if pd.isna(k) else int(k)


PUBLISHED = [
    ("F-VI's iterations over A-VI's, MNIST", "1.2-1.4, to train MSE < 0.07 [F]", "mnist", "steps"),
    (
        "F-VI's iterations over A-VI's, FashionMNIST",
        "1.7-2.2, to train MSE < 0.07 [F]; 1.5-1.6, to < 0.03 [A]",
        "fashion-mnist",
        "steps",
    ),
    (
        "F-VI's time a step over A-VI's, FashionMNIST",
        "0.84: a step of A-VI costs 19% more [A]",
        "fashion-mnist",
        "per step",
    ),
    ("train MSE of k = 64 minus F-VI's, FashionMNIST", "-0.0020 [A]", "fashion-mnist", "mse"),
    ("k = 1 closes the gap, FashionMNIST", "no: train MSE .0510 against F-VI's .0265 [A]", "fashion-mnist", "k1"),
    ("k = 64 closes the gap, FashionMNIST", "yes: train MSE .0245, k = 256 .0245 [A]", "fashion-mnist", "k64"),
    ("test MSE of F-VI", "none published", "fashion-mnist", "test"),
]
"""Claims of Margossian & Blei (UAI 2024): [A] computed from their published arrays, [F] read off a figure."""


def claims(frame: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Yield claim, what was published, and what this run finds."""
    for claim, published, dataset, what in PUBLISHED:
        rows = cast(pd.DataFrame, frame[frame["dataset"] == dataset])
        yield claim, published, _found(rows, what) if len(rows) else "not run"


def print_claims(frame: pd.DataFrame, console: Console | None = None) -> None:
    """Print the published claims beside what this run finds."""
    table = Table(title="Published (Margossian & Blei 2024, another setting: compare orderings) beside this run")
    for heading in ("claim", "published", "this run"):
        table.add_column(heading)
    for row in claims(frame):
        table.add_row(*row)
    (console or Console(width=None if Console().is_terminal else 170)).print(table)


def _found(rows: pd.DataFrame, what: str) -> str:
    best = _best_width(rows)
    if best is None:
        return "no amortized fit"
    if what == "steps":
        return _step_ratios(rows, best)
    if what == "per step":
        a, f = (value_of(rows, g, k, "seconds_per_step") for g, k in (("amortized", best), ("factorized", None)))
        return f"{f[0] / a[0]:.2f} (k = {best})" if a and f else "not measured"
    if what == "mse":
        a, f = (value_of(rows, g, k, "final_mse_train") for g, k in (("amortized", 64), ("factorized", None)))
        return f"{a[0] - f[0]:+.4f} ({a[0]:.4f} against {f[0]:.4f})" if a and f else "not run"
    if what == "test":
        f = value_of(rows, "factorized", None, "final_mse_test")
        return f"{f[0]:.4f}{_plus_minus(f[1], 4)}, fresh factors with q(theta) frozen" if f else "not measured"
    gap = value_of(rows, "amortized", int(what[1:]), "family_gap")
    if gap is None:
        return "not run"
    return f"{'yes' if gap[0] <= 1 else 'no'}: family gap {gap[0]:.1f}{_plus_minus(gap[1], 1)} nats a point"


def _step_ratios(rows: pd.DataFrame, best: int) -> str:
    parts = []
    for metric, name in (("steps_to_3_nats", "3 nats"), ("steps_to_1_nat", "1 nat")):
        a, f = value_of(rows, "amortized", best, metric), value_of(rows, "factorized", None, metric)
        if a and f:
            parts.append(f"{f[0] / a[0]:.1f} to within {name} of elbo_reference")
        else:
            parts.append(f"to within {name}: {'F-VI' if a else f'k = {best}'} not reached")
    return f"{', '.join(parts)} (k = {best})"


def _best_width(rows: pd.DataFrame) -> int | None:
    scores = {k: v[0] for g, k in fits_of(rows) if g == "amortized" and (v := value_of(rows, g, k, "final_elbo")) and k}
    return max(scores, key=scores.__getitem__) if scores else None
