"""What :func:`~amortized_bayes.diagnosis.comparing.compare` found: a frame, words and figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from amortized_bayes.evaluation.bounds import Elbo, mean_over_points

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Comparison", "FittedGuide"]


class FittedGuide(NamedTuple):
    """One guide's result; ``elbo`` is ``None`` for a fit that failed at ``step``."""

    guide: str
    k: int | None
    step: int
    seconds: float
    elbo: Elbo | None
    curve: list[tuple[int, float, float]]
    unconverged_by: float | None = None


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
        >>> report = ab.compare(model, x, widths=(2,), epochs=1, progress=False)
        >>> report
        Comparison(4 guides, 4 points, elbo_reference=...)
    """

    fits: tuple[FittedGuide, ...]
    num_data: int
    seed: int

    @property
    def reference(self) -> FittedGuide | None:
        """The better of F-VI from its own start and F-VI from the best A-VI."""
        found = [(f.elbo.mean()[0], f) for f in self.fits if f.elbo is not None and f.guide.startswith("factorized")]
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def to_frame(self) -> pd.DataFrame:
        """A row a guide: ELBO, KL and family gap in nats a point, standard errors over points, and time."""
        import pandas as pd

        return pd.DataFrame([self._row(f) for f in self.fits]).astype({"k": "Int64"})

    def summary(self) -> str:
        """What was found, in words."""
        import pandas as pd

        best = self.reference.elbo if self.reference is not None else None
        if best is None:
            return "no F-VI fit succeeded: there is no reference to compare with"
        lines = [f"ELBO of the best F-VI found: {best.mean()[0]:.3f} nats a point"]
        for row in self.to_frame().to_dict("records"):
            name = row["guide"] if pd.isna(row["k"]) else f"{row['guide']}, k = {row['k']}"
            if row["status"] == "failed":
                lines.append(f"{name}: failed at step {row['step']}")
                continue
            gap = f"{row['family_gap']:.3f} ± {row['family_gap_error']:.3f} (points)"
            dead = "; vacuous: KL below 1 nat" if row["status"] == "vacuous" else ""
            tail = "" if math.isnan(row["unconverged_by"]) else f"; unconverged by {row['unconverged_by']:.3f}"
            lines.append(f"{name}: family gap {gap}{tail}{dead}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Draw the family gap against k."""
        from amortized_bayes.plotting import family_gap_figure

        return family_gap_figure(self.to_rows())

    def plot_curves(self) -> Figure:
        """Draw the negative ELBO against iterations and seconds."""
        from amortized_bayes.plotting import curve_figure

        return curve_figure(self.to_rows(), "data", "elbo")

    def to_rows(self) -> pd.DataFrame:
        """The same as tidy rows, as experiments write them."""
        import pandas as pd

        from amortized_bayes.types import ROW_FIELDS, Row

        rows: list[Row] = []
        for fit, summary in zip(self.fits, (self._row(f) for f in self.fits), strict=True):
            base = Row("compare", "data", "user", fit.guide, fit.k, self.seed, fit.step, fit.seconds, "failure", None)
            base = base._replace(status=summary["status"])
            if fit.elbo is None:
                rows.append(base)
                continue
            rows += [base._replace(step=s, seconds=t, metric="elbo", value=v) for s, t, v in fit.curve]
            for metric, error in (("final_elbo", "elbo_error"), ("family_gap", "family_gap_error")):
                value = summary["elbo" if metric == "final_elbo" else metric]
                rows.append(
                    base._replace(metric=metric, value=value, standard_error=summary[error], error_over="points")
                )
        return pd.DataFrame(rows, columns=pd.Index(ROW_FIELDS)).astype({"k": "Int64"})

    def _row(self, fit: FittedGuide) -> dict[str, Any]:
        row: dict[str, Any] = {"guide": fit.guide, "k": fit.k, "step": fit.step, "seconds": fit.seconds}
        if fit.elbo is None:
            return {**row, "status": "failed"}
        value, error = fit.elbo.mean()
        kl = fit.elbo.kl.double().mean().item()
        gap, gap_error = math.nan, math.nan
        if self.reference is not None and self.reference.elbo is not None:
            gap, gap_error = mean_over_points(self.reference.elbo.value - fit.elbo.value)
        return {
            **row,
            "elbo": value,
            "elbo_error": error,
            "kl": kl,
            "family_gap": gap,
            "family_gap_error": gap_error,
            "unconverged_by": math.nan if fit.unconverged_by is None else fit.unconverged_by,
            "seconds_per_step": fit.seconds / max(1, fit.step),
            "status": "vacuous" if kl < 1.0 else "ok",
        }

    def __repr__(self) -> str:
        best = self.reference
        value = "no reference" if best is None or best.elbo is None else f"elbo_reference={best.elbo.mean()[0]:.3f}"
        return f"Comparison({len(self.fits)} guides, {self.num_data} points, {value})"
