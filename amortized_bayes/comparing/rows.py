"""Results of a comparison as tidy rows, as the sweep writes them."""

from __future__ import annotations

from collections.abc import Iterator

from amortized_bayes.comparing.between import Finding
from amortized_bayes.comparing.fitted import FittedGuide
from amortized_bayes.comparing.measures import Measure, over_points
from amortized_bayes.types import Factor, Row

__all__ = ["finding_row", "fit_rows"]


def fit_rows(fitted: FittedGuide, seed: int) -> Iterator[Row]:
    """The numbers of one fit: its ELBO with each budget, and ELBO and KL in the end."""
    factors = {**_of_run(seed), **fitted.fit.factors}
    row = Row("compare", factors, fitted.step, fitted.seconds, "failure", None, status=fitted.status)
    if fitted.elbo is None:
        yield row._replace(note=fitted.reason)
        return
    for rung in fitted.rungs:
        at = {"factors": {**factors, "epochs": rung.epochs}, "step": rung.step, "seconds": rung.seconds}
        yield _with(row._replace(metric="elbo", **at), over_points(rung.elbo))
    for metric, values in (("final_elbo", fitted.elbo), ("final_kl", fitted.elbo.kl)):
        yield _with(row._replace(metric=metric), over_points(values))


def finding_row(found: Finding, fitted: FittedGuide, seed: int) -> Row:
    """A number about a fit beside others."""
    at = (fitted.step, fitted.seconds) if found.rung is None else found.rung[1:3]
    row = Row("compare", {**_of_run(seed), **found.factors}, *at, found.metric, None)
    return _with(row._replace(status=fitted.status, note=found.note), found.measure)


def _of_run(seed: int) -> dict[str, Factor]:
    return {"dataset": "data", "seed": seed}


def _with(row: Row, measure: Measure) -> Row:
    return row._replace(value=measure.value, standard_error=measure.error, error_over=measure.error_over)
