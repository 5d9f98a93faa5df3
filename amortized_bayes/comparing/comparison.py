"""What :func:`~amortized_bayes.comparing.any_model.compare` found: a frame, words and figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from amortized_bayes.comparing.between import Finding, Rung, compare_fits, find_reference
from amortized_bayes.comparing.measures import Measure, over_points
from amortized_bayes.evaluation.bounds import Elbo
from amortized_bayes.guides.registry import GUIDES, Fit
from amortized_bayes.per_point import is_vacuous, mean_over_points
from amortized_bayes.types import Row

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Comparison", "FittedGuide"]


class FittedGuide(NamedTuple):
    """One guide's result.

    Args:
        guide: its name.
        k: its width, where it has one.
        step: steps taken; where a fit failed, at which.
        seconds: that they took.
        elbo: of each point; ``None`` for a fit that failed.
        rungs: the fit with each budget, the last with all epochs.
        active_units: latents that carry something.
    """

    guide: str
    k: int | None
    step: int
    seconds: float
    elbo: Elbo | None
    rungs: tuple[Rung, ...]
    active_units: int = 0

    @property
    def fit(self) -> Fit:
        """Guide and width."""
        return Fit(self.guide, self.k)

    @property
    def status(self) -> str:
        """Ok, vacuous or failed."""
        if self.elbo is None:
            return "failed"
        return "vacuous" if is_vacuous(self.active_units) else "ok"


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found: a row a guide, against the best F-VI found.

    Args:
        fits: results of all guides.
        num_data: N.
        seed: of the run.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> report = ab.compare(model, x, widths=(2,), settings=ab.ComparisonSettings(epochs=2), progress=False)
        >>> report
        Comparison(4 guides, 4 points, elbo_reference=...)
    """

    fits: tuple[FittedGuide, ...]
    num_data: int
    seed: int

    @property
    def reference(self) -> FittedGuide | None:
        """The best F-VI: from its own start, or from the best A-VI."""
        found = find_reference(self._ladders)
        return None if found is None else next(f for f in self.fits if f.fit == found)

    def to_frame(self) -> pd.DataFrame:
        """A row a guide: ELBO, KL and family gap in nats per point, standard errors over points, and time."""
        import pandas as pd

        return pd.DataFrame([self._row(f) for f in self.fits]).astype({"k": "Int64"})

    def summary(self) -> str:
        """What was found, in words."""
        import pandas as pd

        best = self.reference.elbo if self.reference is not None else None
        if best is None:
            return "no F-VI fit succeeded: there is no reference to compare with"
        lines = [f"ELBO of the best F-VI found: {best.mean()[0]:.3f} nats per point"]
        for row in self.to_frame().to_dict("records"):
            label = GUIDES[row["guide"]].label
            name = label if pd.isna(row["k"]) else f"{label}, k = {row['k']}"
            if row["status"] == "failed":
                lines.append(f"{name}: failed at step {row['step']}")
                continue
            gap = f"{row['family_gap']:.3f} ± {row['family_gap_error']:.3f} (over points)"
            more = row["unconverged_by"]
            tail = "" if math.isnan(more) else f"; the last doubling of the epochs gained {more:.3f} nats"
            tail += "" if row["gap_settled"] else ", so that longer fits may close or turn the gap"
            dead = "; vacuous: no latent is active" if row["status"] == "vacuous" else ""
            lines.append(f"{name}: family gap {gap}{tail}{dead}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Draw the family gap against k."""
        from amortized_bayes.plotting import family_gap_figure

        return family_gap_figure(self.to_rows())

    def plot_curves(self) -> Figure:
        """Draw nats behind the reference against iterations and seconds, a point for each budget."""
        from amortized_bayes.plotting import curve_figure

        return curve_figure(self.to_rows(), "data", "behind_reference")

    def to_rows(self) -> pd.DataFrame:
        """The same as tidy rows, as the sweep writes them."""
        from amortized_bayes.results.rows import to_frame

        return to_frame({**row._asdict(), "factors": dict(row.factors)} for row in self._rows())

    def _rows(self) -> Iterator[Row]:
        of_run = {"dataset": "data", "seed": self.seed}
        for fitted in self.fits:
            factors = {**of_run, **fitted.fit.factors}
            row = Row("compare", factors, fitted.step, fitted.seconds, "failure", None, status=fitted.status)
            if fitted.elbo is None:
                yield row
                continue
            for rung in fitted.rungs:
                at = {"factors": {**factors, "epochs": rung.epochs}, "step": rung.step, "seconds": rung.seconds}
                yield _with(row._replace(metric="elbo", **at), over_points(rung.elbo))
            for metric, values in (("final_elbo", fitted.elbo), ("final_kl", fitted.elbo.kl)):
                yield _with(row._replace(metric=metric), over_points(values))
        for found in self._findings:
            fitted = next(f for f in self.fits if f.fit == found.fit)
            at = (fitted.step, fitted.seconds) if found.rung is None else found.rung[1:3]
            row = Row("compare", {**of_run, **found.factors}, *at, found.metric, None)
            yield _with(row._replace(status=fitted.status, note=found.note), found.measure)

    @cached_property
    def _ladders(self) -> dict[Fit, tuple[Rung, ...]]:
        return {f.fit: f.rungs for f in self.fits if f.elbo is not None}

    @cached_property
    def _findings(self) -> tuple[Finding, ...]:
        return tuple(compare_fits(self._ladders, [f.fit for f in self.fits if f.status == "vacuous"]))

    def _row(self, fitted: FittedGuide) -> dict[str, Any]:
        row: dict[str, Any] = dict(zip(("guide", "k", "step", "seconds"), fitted[:4], strict=True))
        if fitted.elbo is None:
            return {**row, "status": fitted.status}
        found = {f.metric: f.measure for f in self._findings if f.fit == fitted.fit}
        nothing = Measure(math.nan)
        gap, more = found.get("family_gap", nothing), found.get("unconverged_by", nothing)
        value, error = fitted.elbo.mean()
        return {
            **row,
            "elbo": value,
            "elbo_error": error,
            "kl": mean_over_points(fitted.elbo.kl)[0],
            "active_units": fitted.active_units,
            "family_gap": gap.value,
            "family_gap_error": math.nan if gap.error is None else gap.error,
            "unconverged_by": more.value,
            "gap_settled": self._is_settled(fitted.fit),
            "seconds_per_step": _seconds_per_step(fitted),
            "status": fitted.status,
        }

    def _is_settled(self, fit: Fit) -> bool:
        """Whether the gap of a fit is larger than what the last doubling gained it, or F-VI."""
        gains = {f.fit: f.measure.value or 0.0 for f in self._findings if f.metric == "unconverged_by"}
        gap = next((f.measure.value or 0.0 for f in self._findings if (f.fit, f.metric) == (fit, "family_gap")), 0.0)
        own = [gain for other, gain in gains.items() if other == fit or GUIDES[other.guide].is_reference]
        return gap == 0 or abs(gap) > max(own, default=0.0)

    def __repr__(self) -> str:
        best = self.reference
        value = "no reference" if best is None or best.elbo is None else f"elbo_reference={best.elbo.mean()[0]:.3f}"
        return f"Comparison({len(self.fits)} guides, {self.num_data} points, {value})"


def _with(row: Row, measure: Measure) -> Row:
    return row._replace(value=measure.value, standard_error=measure.error, error_over=measure.error_over)


def _seconds_per_step(fitted: FittedGuide) -> float:
    """Of a fit's own steps: one that goes on from another's answer has those that led there below its first rung."""
    before, top = fitted.rungs[-2:]
    return (top.seconds - before.seconds) / max(1, top.step - before.step)
