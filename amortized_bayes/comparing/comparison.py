"""What :func:`~amortized_bayes.comparing.any_model.compare` found: a frame, words and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from amortized_bayes.comparing.archive import array_groups, pack_fits, unpack_fits
from amortized_bayes.comparing.between import Finding, Rung, compare_fits, find_reference
from amortized_bayes.comparing.fitted import FittedGuide
from amortized_bayes.comparing.measures import Measure
from amortized_bayes.comparing.rows import finding_row, fit_rows
from amortized_bayes.guides.registry import Fit, guide_entry
from amortized_bayes.page.parts import Badge, Part
from amortized_bayes.per_point import mean_over_points
from amortized_bayes.reports.report import Group, Report
from amortized_bayes.types import Row

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["Comparison", "Ranking"]

SUMMARY = ("elbo", "elbo_error", "family_gap", "family_gap_error", "unconverged_by", "gap_settled", "seconds", "status")
"""Columns of ``summary``."""


class Ranking(NamedTuple):
    """Which guide came out best, in words.

    Args:
        words: a line for each guide.
        best: the guide with the highest ELBO; ``None`` where there is nothing to compare with.
        reasons: why there is not.
    """

    words: str
    best: str | None
    reasons: tuple[str, ...] = ()

    @property
    def abstains(self) -> bool:
        """Whether guides could not be compared."""
        return self.best is None

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Comparison(Report):
    """What :func:`compare` found: a row per guide, against the best F-VI found. ``print`` it for words.

    Args:
        fits: results of all guides.
        num_data: N.
        seed: random seed of the run.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> report = ab.compare(model, x, widths=(2,), settings=ab.ComparisonSettings(epochs=2), progress=False)
        >>> report
        Comparison(4 guides, 4 points, elbo_reference=...)
    """

    KIND: ClassVar[str] = "comparison"

    fits: tuple[FittedGuide, ...]
    num_data: int
    seed: int

    @property
    def reference(self) -> FittedGuide | None:
        """The best F-VI: from its own start, or from the best A-VI."""
        found = find_reference(self._ladders)
        return None if found is None else next(f for f in self.fits if f.fit == found)

    @property
    def best(self) -> FittedGuide:
        """The fit with the highest ELBO.

        Raises:
            ValueError: every fit failed.
        """
        done = [f for f in self.fits if f.elbo is not None]
        if not done:
            raise ValueError(f"expected a fit that succeeded, but every one failed: {self._first_failure()}")
        return max(done, key=_mean_elbo)

    def to_frame(self) -> pd.DataFrame:
        """A row per guide: ELBO, KL and family gap in nats per point, standard errors over points, and time."""
        import pandas as pd

        return pd.DataFrame([self._row(f) for f in self.fits]).astype({"k": "Int64"})

    def summary(self) -> pd.DataFrame:
        """The most important numbers, in nats per point: a row per guide.

        Where fits failed, a last column says why.
        """
        why = ["reason"] if any(fitted.reason for fitted in self.fits) else []
        frame = self.to_frame().reindex(columns=[*SUMMARY, *why])
        frame.index = [f.label for f in self.fits]
        return frame

    @property
    def verdict(self) -> Ranking:
        """The findings, in words."""
        reference = self.reference
        if reference is None or reference.elbo is None:
            why = "no F-VI fit succeeded: there is no reference to compare with"
            why += f" ({failure})" if (failure := self._first_failure()) else ""
            return Ranking(why, None, (why,))
        lines = [f"ELBO of the best F-VI found: {reference.elbo.mean()[0]:.3f} nats per point"]
        lines += [f"{fitted.label}: {self._say(fitted)}" for fitted in self.fits]
        return Ranking("\n".join(lines), self.best.label)

    def _say(self, fitted: FittedGuide) -> str:
        if fitted.elbo is None:
            return f"failed at step {fitted.step}" + (f" ({fitted.reason})" if fitted.reason else "")
        row = self._row(fitted)
        gap, more = f"{row['family_gap']:.3f} ± {row['family_gap_error']:.3f} (over points)", row["unconverged_by"]
        tail = "" if math.isnan(more) else f"; the last doubling of the epochs gained {more:.3f} nats"
        tail += "" if row["gap_settled"] else ", so that longer fits may close or reverse the gap"
        dead = "; vacuous: no latent is active" if fitted.status == "vacuous" else ""
        return f"family gap {gap}{tail}{dead}"

    def _first_failure(self) -> str:
        """The first F-VI that failed, else the first fit of any guide, with its reason; empty where none did."""
        failed = sorted((f for f in self.fits if f.elbo is None), key=lambda f: not guide_entry(f.name).is_reference)
        return f"{failed[0].label} {self._say(failed[0])}" if failed else ""

    def _need_reference(self) -> None:
        if self.reference is None:
            raise ValueError(f"expected a fit to draw the others against, but {self.verdict}")

    def plot(self) -> Figure:
        """Draw the family gap against k.

        Raises:
            ValueError: no F-VI succeeded.
        """
        from amortized_bayes.plotting import family_gap_figure

        self._need_reference()
        return family_gap_figure(self.to_rows())

    def _badges(self) -> Iterator[Badge]:
        for status in ("failed", "vacuous"):
            whose = [f for f in self.fits if f.status == status]
            if status == "vacuous":
                whose = [f for f in whose if not guide_entry(f.name).never_active]
            if whose:
                yield Badge("bad", status, "; ".join(f.label for f in whose))
        if self.reference is None:
            yield Badge("open", "no verdict", "no F-VI fit succeeded")
        elif found := [f.label for f in self.fits if f.elbo is not None and not self._is_settled(f.fit)]:
            yield Badge("bad", "not converged", "; ".join(found))

    def _parts(self) -> Iterator[tuple[str, Callable[[], Part]]]:
        from amortized_bayes.page.svg import drawing

        yield "family gap", lambda: drawing(self.plot(), "family gap of each guide against the width of the encoder")
        yield "curves", lambda: drawing(self.plot_curves(), "nats behind the reference against steps and seconds")

    def plot_curves(self) -> Figure:
        """Draw nats behind the reference against iterations and seconds, a point for each budget.

        Raises:
            ValueError: no F-VI succeeded.
        """
        from amortized_bayes.plotting import curve_figure

        self._need_reference()
        return curve_figure(self.to_rows(), "data", "behind_reference")

    def to_rows(self) -> pd.DataFrame:
        """The same as tidy rows, as the sweep writes them."""
        from amortized_bayes.results.rows import to_frame

        rows = (*(row for fitted in self.fits for row in fit_rows(fitted, self.seed)), *self.findings())
        return to_frame({**row._asdict(), "factors": dict(row.factors)} for row in rows)

    def findings(self) -> Iterator[Row]:
        """Rows of what the fits say about each other."""
        for found in self._findings:
            fitted = next(f for f in self.fits if f.fit == found.fit)
            yield finding_row(found, fitted, self.seed)

    @cached_property
    def _ladders(self) -> dict[Fit, tuple[Rung, ...]]:
        return {f.fit: f.rungs for f in self.fits if f.elbo is not None}

    @cached_property
    def _findings(self) -> tuple[Finding, ...]:
        return tuple(compare_fits(self._ladders, [f.fit for f in self.fits if f.status == "vacuous"]))

    def _row(self, fitted: FittedGuide) -> dict[str, Any]:
        row: dict[str, Any] = dict(zip(("guide", "k", "step", "seconds"), fitted[:4], strict=True))
        if fitted.elbo is None:
            return {**row, "status": fitted.status, "reason": fitted.reason}
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
            "seconds_per_step": fitted.seconds_per_step,
            "status": fitted.status,
            "reason": fitted.reason,
        }

    def _is_settled(self, fit: Fit) -> bool:
        """Whether the gap of a fit is larger than what the last doubling gained it, or F-VI."""
        gains = {f.fit: f.measure.value or 0.0 for f in self._findings if f.metric == "unconverged_by"}
        gap = next((f.measure.value or 0.0 for f in self._findings if (f.fit, f.metric) == (fit, "family_gap")), 0.0)
        own = [gain for other, gain in gains.items() if other == fit or guide_entry(other.guide).is_reference]
        return gap == 0 or abs(gap) > max(own, default=0.0)

    def _pack(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        groups, fits = pack_fits(self.fits)
        return groups, {"fits": fits, "num_data": self.num_data, "seed": self.seed}

    @classmethod
    def _unpack(cls, groups: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, Any]) -> Comparison:
        return cls(unpack_fits(groups, header["fits"]), header["num_data"], header["seed"])

    def _groups(self) -> dict[str, Group]:
        """Dimensions: ``fit``, ``point`` and ``epochs``."""
        return array_groups(self.fits, self.num_data)

    def __repr__(self) -> str:
        best = self.reference
        value = "no reference" if best is None or best.elbo is None else f"elbo_reference={best.elbo.mean()[0]:.3f}"
        return f"Comparison({len(self.fits)} guides, {self.num_data} points, {value})"


def _mean_elbo(fitted: FittedGuide) -> float:
    return -math.inf if fitted.elbo is None else fitted.elbo.mean()[0]
