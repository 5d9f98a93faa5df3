"""What the fits of one data set and seed say about each other: gaps, times to target, convergence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import numpy as np
import pandas as pd
import torch

from amortized_bayes.experiments.measure import Measure, over_points, paired_difference, steps_to_target
from amortized_bayes.experiments.sweep import Fit
from amortized_bayes.types import Row

__all__ = ["TARGETS", "compare_fits", "final_row"]

TARGETS = {"1_nat": 1.0, "3_nats": 3.0}
"""Distances from elbo_reference, in nats a point, that a fit is timed to."""


def compare_fits(frame: pd.DataFrame, elbos: Mapping[Fit, np.ndarray], gains: Mapping[Fit, Measure]) -> Iterator[Row]:
    """Yield ``elbo_reference``, and for each fit its ``family_gap``, times to target and ``unconverged_by``.

    Args:
        frame: rows of the run.
        elbos: final ELBO a point, (N,), of each fit.
        gains: what doubling the epochs gained for some fits.
    """
    factorized = [f for f in elbos if f.guide.startswith("factorized")]
    reference = max(factorized, key=lambda f: float(elbos[f].mean())) if factorized else None
    if reference is None:
        return
    target, error, over = over_points(torch.from_numpy(elbos[reference]))
    assert target is not None
    first = final_row(frame, reference)
    chosen = "F-VI from its own start" if reference.guide == "factorized" else "F-VI from the best A-VI"
    row = first._replace(guide="reference", metric="elbo_reference", note=chosen)
    yield row._replace(value=target, standard_error=error, error_over=over)
    for fit, values in elbos.items():
        row = final_row(frame, fit)
        found = {"family_gap": paired_difference(elbos[reference], values)}
        if fit.guide != "factorized-from-amortized":  # its time would leave out that of the A-VI fit it started at
            found |= _times(frame, fit, target)
        if fit in gains and gains[fit].value is not None:
            found["unconverged_by"] = gains[fit]
        for metric, (value, error, over) in found.items():
            yield row._replace(metric=metric, value=value, standard_error=error, error_over=over, note="")


def final_row(frame: pd.DataFrame, fit: Fit) -> Row:
    """The row of a fit's final ELBO, whose other columns its comparisons share."""
    rows = _of(frame, fit, "final_elbo")
    values = {str(column): value for column, value in rows.iloc[-1].to_dict().items()}
    values["k"] = fit.k
    return Row(**values)


def _of(frame: pd.DataFrame, fit: Fit, metric: str) -> pd.DataFrame:
    wanted = {"dataset": fit.dataset, "guide": fit.guide, "seed": fit.seed, "metric": metric}
    chosen = pd.Series(True, index=frame.index)
    for column, value in wanted.items():
        chosen &= frame[column] == value
    chosen &= frame["k"].isna() if fit.k is None else frame["k"] == fit.k
    return cast(pd.DataFrame, frame[chosen.astype(bool)])


def _times(frame: pd.DataFrame, fit: Fit, reference: float) -> dict[str, Measure]:
    """Seconds and steps until the curve is within each target of the reference; ``None`` where it never is."""
    curve = _of(frame, fit, "elbo").sort_values("step")
    columns = (curve[c].to_numpy(dtype=float) for c in ("step", "seconds", "value"))
    steps, seconds, values = columns
    found: dict[str, Measure] = {}
    for name, distance in TARGETS.items():
        at = steps_to_target(steps, seconds, values, reference - distance)
        found[f"steps_to_{name}"] = Measure(None if at is None else at[0])
        found[f"seconds_to_{name}"] = Measure(None if at is None else at[1])
    return found
