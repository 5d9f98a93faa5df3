"""What :func:`~amortized_bayes.diagnosis.run.diagnose` found: tables, words, a figure, and a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from amortized_bayes.diagnosis.verdict import (
    BITS,
    OWN,
    RELATIONS,
    UNKNOWN,
    Certificate,
    Reliability,
    Verdict,
    errors_hold,
    give_verdict,
    is_certified,
    is_converged,
    join_certificate,
    split_certificate,
)
from amortized_bayes.evaluation.gaps import Estimate, Gaps, gaps
from amortized_bayes.evaluation.psis import khat_threshold
from amortized_bayes.page.parts import Badge, Part
from amortized_bayes.per_point import mean_over_points
from amortized_bayes.reports.report import Group, Report

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "Certificate", "Diagnosis"]

COLUMNS = (
    "elbo",
    "elbo_star",
    "iwae",
    "log_p_lower",
    "log_p_upper",
    "approximation_gap",
    "amortization_gap",
    "inference_gap",
    "k_hat",
    "ess",
    "acceptance",
    "residual",
)
"""Columns of ``to_frame``; each has its standard error in ``<name>_error``, NaN where none is known."""


@dataclass(frozen=True)
class Diagnosis(Report):
    """Where the nats go, for B points. ``print`` it for one line, ``summary()`` for means, ``to_frame()`` for points.

    Args:
        values: by name, ``(T, B)``: one row per draw of the shared latents (T = 1 without any), in nats but for
            ``k_hat``, ``ess`` and ``acceptance``. ``log_p_lower`` is the bound by AIS.
        errors: their Monte Carlo standard errors, ``(T, B)``, NaN where none is known, as that of IWAE where k̂ is
            above its threshold.
        certificate: certificate of the AIS bound; ``None`` where no data can be drawn from the model.
        why_uncertified: the reason why there is none.
        num_particles: S behind elbo, iwae, k̂ and ess.
        target_gap: largest mean gap of a certificate that holds, in nats.
        settings: the settings that were used.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> settings = ab.DiagnosisSettings(num_particles=100, certificate=ab.CertificateSettings(4, 0.1, 1000))
        >>> report = ab.diagnose(model, guide, x, settings=settings)
        >>> isinstance(report, ab.Diagnosis)
        True
    """

    KIND: ClassVar[str] = "diagnosis"

    values: Mapping[str, Tensor]
    errors: Mapping[str, Tensor]
    certificate: Certificate | None
    why_uncertified: str
    num_particles: int
    target_gap: float
    settings: Mapping[str, Any]

    @property
    def num_points(self) -> int:
        """B."""
        return self.values["elbo"].shape[1]

    @property
    def num_shared(self) -> int:
        """T, draws of the shared latents."""
        return self.values["elbo"].shape[0]

    @property
    def doubtful(self) -> float:
        """Share of points whose k̂ is above its threshold, or not known."""
        khat = self.values["k_hat"].amax(0)
        return (~(khat <= khat_threshold(self.num_particles))).double().mean().item()

    @property
    def verdict(self) -> Verdict:
        """What is to blame, in words."""
        relation, source = (str(self.settings.get(*p)) for p in (("relation", OWN), ("source", "other")))
        family = str(self.settings.get("family", "gaussian"))
        return give_verdict(self.gaps(), self._reliability, self._residual, relation, source, family)

    @property
    def exact(self) -> bool:
        """Whether log p(x) and L[q*] are sums over all codes of each point, without Monte Carlo error.

        So is the ELBO where the guide's bits are independent; else it is estimated from draws. q* is the best of
        several starts.
        """
        return "codes" in self.settings

    @property
    def certified(self) -> bool:
        """Whether the certificate of the AIS bound holds, and says something of the real points; or all is exact."""
        return is_certified(self._reliability)

    @property
    def converged(self) -> bool:
        """Whether what the search for q* would still gain is small beside each gap."""
        return is_converged(self.gaps(), self._residual)

    @property
    def _reliability(self) -> Reliability:
        return Reliability(
            self.certificate,
            self.why_uncertified,
            self.target_gap,
            self.num_particles,
            self.doubtful,
            self.mean("iwae") - self.mean("log_p_lower"),
            self.exact,
        )

    @property
    def _residual(self) -> float | None:
        """The upper end of what q* would still gain, mean over points; the search for a flow reports none."""
        if "flow" in self.settings:
            return None
        error = self.errors["residual"].square().sum().sqrt() / self.errors["residual"].numel()
        return self.mean("residual") + 2 * error.item()

    def estimate(self, name: str) -> Estimate:
        """Values ``(B,)`` averaged over the T draws of shared latents, and their Monte Carlo errors."""
        error = self.errors[name].square().sum(0).sqrt() / self.num_shared
        return Estimate(self.values[name].mean(0), error)

    def mean(self, name: str) -> float:
        """Mean over draws of shared latents and points."""
        return self.values[name].mean().item()

    def gaps(self) -> Gaps:
        """The decomposition of each point's inference gap, averaged over draws of shared latents.

        The error over points of gaps that rest on IWAE is nan where k̂ is above its threshold at more than a tenth of
        the points, since the weights may have no variance, unless a certified AIS bound is as high.
        """
        found = _gaps({name: self.estimate(name) for name in self.values}, self.exact)
        if errors_hold(self._reliability, found.log_evidence.source):
            return found
        of_evidence = {name: getattr(found, name).without_error() for name in ("approximation", "inference")}
        return found._replace(**of_evidence)

    def to_frame(self) -> pd.DataFrame:
        """One row per point, real points first, then simulated ones, which have bounds on log p(x) alone.

        Columns are those of ``COLUMNS``, each with ``<name>_error`` and, where latents are shared, ``<name>_spread``:
        the standard deviation over their draws.
        """
        import pandas as pd

        found = self.gaps()
        columns: dict[str, Any] = {"point": range(self.num_points), "kind": "real"}
        for name in COLUMNS:
            if name in self.values:
                value, error = self.estimate(name)
            elif not name.endswith("_gap"):
                value = error = torch.full((self.num_points,), math.nan, dtype=torch.float64)
            else:
                gap = getattr(found, name.removesuffix("_gap"))
                value, error = gap.value, gap.standard_error
            assert error is not None
            columns[name], columns[f"{name}_error"] = value.numpy(), error.numpy()
            if self.num_shared > 1 and name in self.values:
                columns[f"{name}_spread"] = self.values[name].std(0).numpy()
        real = pd.DataFrame(columns)
        if self.certificate is None:
            return real
        return pd.concat([real, self._simulated(self.certificate)], ignore_index=True)

    def summary(self) -> pd.DataFrame:
        """Mean over points, its standard error over points and 95% interval, in nats; gaps are paired by point.

        ``spread`` is the standard deviation of the mean over draws of the shared latents, ``negative`` the points where
        a gap is below zero by more than two of its Monte Carlo errors. Errors of gaps are those of :meth:`gaps`, and
        that of IWAE is nan where they would be. ``attrs["family"]`` is that of q*.
        """
        import pandas as pd

        found, rows = self.gaps(), {}
        for name in ("elbo", "elbo_star", "iwae", "log_p_lower"):
            values = self.values[name]
            mean, error = mean_over_points(values.mean(0))
            rows[name] = (mean, error, mean - 1.96 * error, mean + 1.96 * error, self._over_draws(values), None)
        per_draw = [_gaps(self._draw(t), self.exact) for t in range(self.num_shared)]
        for name in ("approximation", "amortization", "inference", "optimization"):
            gap = getattr(found, name)
            if gap is None:
                continue
            means = torch.tensor([[getattr(g, name).mean] for g in per_draw], dtype=torch.float64)
            spread = self._over_draws(means)
            rows[f"{name}_gap"] = (gap.mean, gap.mean_error, *gap.interval, spread, gap.num_flagged)
        if not errors_hold(self._reliability, "iwae"):
            mean, *_, spread, negative = rows["iwae"]
            rows["iwae"] = (mean, math.nan, math.nan, math.nan, spread, negative)
        names = ["mean", "standard_error", "low", "high", "spread", "negative"]
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=names).astype({"negative": "Int64"})
        frame.attrs["family"] = self.settings.get("family", "gaussian")
        return frame

    def evidence(self) -> str:
        """How far the estimates of log p(x) can be trusted, and the family of q*, in words."""
        khat = f"k̂ is above {khat_threshold(self.num_particles):.2f} at {self.doubtful:.0%} of the points"
        errors = ", where errors of IWAE do not hold and are not given" if self.doubtful else ""
        if self.exact:
            known = f"log p(x) exact, by the sum over all {self.settings['codes']:,} codes of each point"
            drawn = self.settings.get("relation", OWN) == UNKNOWN
            gaps = "of the gaps the approximation gap alone, since the ELBO is of draws," if drawn else "gaps"
            return f"{known}; {gaps} exact given the q* found; {khat}{errors}; {self._of_family()}"
        words = self.certificate.words if self.certificate else f"there is no certificate: {self.why_uncertified}"
        source = self.gaps().log_evidence.source.upper()
        return f"log p(x) by {source}; {words}; {khat}{errors}; {self._of_family()}"

    def plot(self) -> Figure:
        """Draw the mean gaps, and the gaps of all points."""
        from amortized_bayes.diagnosis.figure import gap_figure

        return gap_figure(self.to_frame(), self.summary(), str(self.verdict))

    def _badges(self) -> Iterator[Badge]:
        good = Badge("good", "exact" if self.exact else "certified")
        yield good if self.certified else Badge("bad", "not certified", self.why_uncertified)
        if not self.converged:
            yield Badge("bad", "not converged", "the search for q*")
        if self.verdict.abstains:
            yield Badge("open", "no verdict")

    def _parts(self) -> Iterator[tuple[str, Callable[[], Part]]]:
        from amortized_bayes.diagnosis.points import bounds_figure, hardest_points
        from amortized_bayes.page.svg import drawing

        frame = self.to_frame()
        yield "gaps", lambda: drawing(self.plot(), "mean gaps, and the share of points with at most each gap")
        label = "the ladder of bounds, and the gap of each point against k-hat"
        edge = khat_threshold(self.num_particles)
        top = "log p" if self.exact else "log p (AIS)"
        yield "bounds", lambda: drawing(bounds_figure(frame, edge, top), label, self.evidence())
        yield "hardest points", lambda: hardest_points(frame)

    def _pack(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        bounds, plain = split_certificate(self.certificate)
        header = {
            "certificate": plain,
            "why_uncertified": self.why_uncertified,
            "num_particles": self.num_particles,
            "target_gap": self.target_gap,
            "settings": dict(self.settings),
        }
        return {"values": self.values, "errors": self.errors, "certificate": bounds}, header

    @classmethod
    def _unpack(cls, groups: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, Any]) -> Diagnosis:
        certificate = join_certificate(groups.get("certificate", {}), header["certificate"])
        more = {name: value for name, value in header.items() if name != "certificate"}
        return cls(groups["values"], groups["errors"], certificate, **more)

    def _groups(self) -> dict[str, Group]:
        """Dimensions: ``shared_draw`` (T) and ``point`` (B), or ``simulated_point`` for the certificate."""
        of_points = ("shared_draw", "point")
        groups = {
            name: Group({key: (of_points, tensor.numpy()) for key, tensor in found.items()})
            for name, found in (("values", self.values), ("errors", self.errors))
        }
        bounds = {} if self.certificate is None else self._pack()[0]["certificate"]
        if bounds:
            of_simulated = ("shared_draw", "simulated_point")
            groups["certificate"] = Group({key: (of_simulated, tensor.numpy()) for key, tensor in bounds.items()})
        return groups

    def __repr__(self) -> str:
        return f"Diagnosis({self.num_points} points; {self.verdict.words})"

    def _of_family(self) -> str:
        words = RELATIONS[str(self.settings.get("relation", OWN))]
        family = self.settings.get("family", "gaussian")
        best = "; q* is the best of several starts: its family costs at most what is given" if family == BITS else ""
        return f"family of q*: {family}, {words}{best}"

    def _draw(self, t: int) -> dict[str, Estimate]:
        return {name: Estimate(value[t], self.errors[name][t]) for name, value in self.values.items()}

    @staticmethod
    def _over_draws(values: Tensor) -> float:
        return values.mean(1).std().item() if len(values) > 1 else math.nan

    def _simulated(self, certificate: Certificate) -> pd.DataFrame:
        import pandas as pd

        columns: dict[str, Any] = {"point": range(certificate.lower.shape[1]), "kind": "simulated"}
        for name in ("lower", "upper"):
            value, error = getattr(certificate, name), getattr(certificate, f"{name}_error")
            columns[f"log_p_{name}"] = value.mean(0).numpy()
            columns[f"log_p_{name}_error"] = (error.square().sum(0).sqrt() / len(error)).numpy()
        return pd.DataFrame(columns)


def _gaps(found: Mapping[str, Estimate], exact: bool) -> Gaps:
    of_evidence = found["log_p_lower"]
    return gaps(
        found["elbo"],
        found["elbo_star"],
        ais=None if exact else of_evidence,
        iwae=found["iwae"],
        exact=of_evidence if exact else None,
        elbo_best=found.get("elbo_best"),
    )
