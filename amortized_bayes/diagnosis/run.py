r"""``diagnose``: from a model, a guide and data to the gaps of each point, with certificates.

Every part is estimated given the latents outside the plate: T draws of them from the guide are held fixed in turn.
For each, draws from the guide give ELBO, IWAE and k̂; q* is optimized from the guide's own answer; simulated data
settle how many temperatures AIS needs and certify them; AIS then bounds log p(x) of the real points.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import pyro
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from amortized_bayes.calls import PerPointNames, check_several
from amortized_bayes.diagnosis.estimates import Estimates, guide_estimates
from amortized_bayes.diagnosis.report import Certificate, Diagnosis
from amortized_bayes.diagnosis.starting import SEARCHED, chain_start
from amortized_bayes.diagnosis.telling import Telling
from amortized_bayes.diagnosis.verdict import CONTAINS, OWN, UNKNOWN
from amortized_bayes.entrance import enter
from amortized_bayes.evaluation.ais import ais
from amortized_bayes.evaluation.bdmc import BDMCResult, bdmc
from amortized_bayes.evaluation.psis import MIN_DRAWS, khat_threshold
from amortized_bayes.evaluation.settings import AISSettings, CertificateSettings
from amortized_bayes.flows import FlowSettings
from amortized_bayes.guides import Amortized, Constant, Factorized, FlowGuide
from amortized_bayes.guides.autoguides import PerPointGuide
from amortized_bayes.inference.flow_search import optimize_flow
from amortized_bayes.inference.optimize import optimize_local
from amortized_bayes.inference.own_family import OwnFamily
from amortized_bayes.inference.settings import FlowSearchSettings, LocalSettings
from amortized_bayes.joint import FreshStart, draw_shared, global_seed, joint_density, read_family
from amortized_bayes.keeping import known
from amortized_bayes.limits import AtLeast, Count, Seed, limited
from amortized_bayes.program_errors import ProgramError, first_line
from amortized_bayes.progress import Watch, watched
from amortized_bayes.signatures import own_options
from amortized_bayes.traces import trace_pair
from amortized_bayes.types import Guide, Model, Row

__all__ = ["DiagnosisSettings", "diagnose"]

logger = logging.getLogger(__name__)


@limited
@dataclass(frozen=True)
class DiagnosisSettings:
    """How :func:`diagnose` estimates.

    Args:
        num_shared: T, draws of the latents outside the plate, where there are any.
        num_particles: S, draws from the guide for ELBO, IWAE and k̂.
        ais: of the chains, to begin with.
        certificate: how many points are simulated, and how closely both bounds must meet there: the number of
            temperatures is raised until they do.
        local: of the search for q*; with ``num_restarts`` of two or more, the gap of the best to the first is reported.
        flow: family of q*, by default that of the guide: ``guide.settings`` where it has such (our flows), else what
            its sites are (``family="own"`` of :func:`~amortized_bayes.inference.optimize.optimize_local`), or, where
            that has no name, the factorized Gaussian, ``FlowSettings("gaussian")``, and no cause is named. The best
            flow is searched from the best Gaussian; it has neither residual nor restarts.
        flow_search: of that search.

    Raises:
        ValueError: a number out of its range.

    Example:
        >>> from amortized_bayes import DiagnosisSettings
        >>> DiagnosisSettings(num_particles=500).num_shared
        3
    """

    num_shared: Count = 3
    num_particles: Annotated[int, AtLeast(MIN_DRAWS)] = 1000
    ais: AISSettings = field(default_factory=AISSettings)
    certificate: CertificateSettings = field(default_factory=lambda: CertificateSettings(100, 0.1, 1000))
    local: LocalSettings = field(default_factory=LocalSettings)
    flow: FlowSettings | None = None
    flow_search: FlowSearchSettings = field(default_factory=FlowSearchSettings)

    def __post_init__(self) -> None:
        if self.certificate.target_gap is None:
            raise ValueError("expected a certificate with a target_gap, got none")


@dataclass(frozen=True)
class _Job:
    """Everything that stays the same from one draw of the shared latents to the next."""

    model: Model
    guide: Guide
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    described: str
    plate: str
    seed: int
    settings: DiagnosisSettings
    flow: FlowSettings
    telling: Telling

    @property
    def common(self) -> dict[str, Any]:
        return {"plate": self.plate, "seed": self.seed, **self.kwargs}


class _Family(NamedTuple):
    """Of what family q* is, what that is to the guide, and which search finds the best Gaussian or q* itself."""

    name: str
    relation: str = OWN
    search: Literal["gaussian", "own"] = "gaussian"


@own_options
@limited
def diagnose(
    model: Model,
    guide: Guide,
    *args: Any,
    plate: str | None = None,
    per_point: PerPointNames = None,
    settings: DiagnosisSettings | None = None,
    seed: Seed = 0,
    progress: bool | Watch = True,
    on_row: Callable[[Row], object] | None = None,
    **kwargs: Any,
) -> Diagnosis:
    """Say what the family, the amortization and the estimates cost at each point of the data.

    Args:
        model: Pyro program ``model(*args, **kwargs)`` with a plate over data points, trained; its parameters stay
            as they are. Put modules with dropout or batch norm in evaluation mode.
        guide: Pyro program for all its latents.
        args: arguments of both programs: tensors, numpy arrays, and dicts and lists of them, with a row for each of B
            points, and whatever else the programs take. Where the model needs an ``index`` that is not passed, it gets
            the places of the points.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        settings: how to estimate.
        seed: of all draws; torch's global generator is left as it was.
        progress: show a bar on a terminal or in a notebook, elsewhere a line every 30 s; or a function that is called
            with the stage's name, what is done of it and all of it.
        on_row: called with each mean over points as it is known, as a :class:`~amortized_bayes.types.Row`.
        kwargs: keyword arguments of both programs.

    Raises:
        TypeError: arguments that model or guide do not take, such as an option that is misspelt, or an
            option whose name the model has for an argument too.
        ValueError: a model without the plate, a latent that is discrete and not marked for enumeration, a guide that
            misses a site, data or parameters that are not finite, or data that the model or guide cannot take.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> report = ab.diagnose(model, guide, x, settings=ab.DiagnosisSettings(num_particles=100))
        >>> len(report.to_frame()[lambda frame: frame["kind"] == "real"])
        4
    """
    chosen = settings or DiagnosisSettings()
    _check_parameters(model, guide)
    entered = enter(diagnose, model, guide, args, kwargs, plate=plate, per_point=per_point)
    given = entered.data
    assert given is not None
    check_several(given)
    guide = entered.guide.program
    flow = (chosen.flow or _own_flow(guide)).plain
    with watched(progress) as told:
        telling = Telling(told, on_row, seed)
        job = _Job(
            model=entered.model,
            guide=entered.guide,
            args=entered.args,
            kwargs=entered.kwargs,
            described=given.describe(),
            plate=entered.plate,
            seed=seed,
            settings=chosen,
            flow=flow,
            telling=telling,
        )
        return _diagnose(job, guide, len(given.rows))


def _diagnose(job: _Job, guide: Guide, num_points: int) -> Diagnosis:
    chosen = job.settings
    found, certificates, why, walk = [], [], "", chosen.ais
    fixed = _shared_draws(job)
    family = _family(job, guide, fixed[0])
    job.telling.expect(chosen, num_points, len(fixed), is_flow=job.flow.kind is not None)
    for number, values in enumerate(fixed):
        start = _chain_start(job, values)
        result, problem = _certify(job, start, values, walk, first=number == 0)
        if result is not None:
            certificates.append(result)
            walk = result.settings
        why = why or problem
        found.append(_estimate(job, family, start, values, walk, number))
    values, errors = ({name: torch.stack([f[name][i] for f in found]) for name in found[0]} for i in (0, 1))
    certificate = _gather(certificates, start) if len(certificates) == len(fixed) else None
    how = {"ais": asdict(walk), "local": asdict(chosen.local), "plate": job.plate, "seed": job.seed}
    how |= {"family": family.name, "relation": family.relation, "source": _source(guide)}
    if job.flow.kind is not None:
        how["flow"] = {**asdict(job.flow), "hidden": list(job.flow.hidden)}
    num_particles, target_gap = chosen.num_particles, chosen.certificate.target_gap or math.nan
    report = Diagnosis(values, errors, certificate, why, num_particles, target_gap, how)
    if report.doubtful > 0:
        words = "k̂ is above %.2f at %.0f%% of the points: IWAE rests on a few draws there"
        logger.warning(words, khat_threshold(num_particles), 100 * report.doubtful)
    job.telling.gaps(report.summary())
    return report


def _shared_draws(job: _Job) -> list[dict[str, Tensor]]:
    """Draws of the latents outside the plate, one empty dict where there are none; model and guide are checked."""
    with _said_of(job.described), torch.no_grad(), global_seed(job.seed, "shared"):
        trace_pair(job.model, job.guide, job.args, job.kwargs, job.plate)
        draws = draw_shared(job.guide, *job.args, num_draws=job.settings.num_shared, plate=job.plate, **job.kwargs)
        joint_density(job.model, *job.args, plate=job.plate, fixed=draws[0], **job.kwargs)
    return draws if draws[0] else draws[:1]


def _chain_start(job: _Job, fixed: Mapping[str, Tensor]) -> Guide | FreshStart:
    joint = joint_density(job.model, *job.args, plate=job.plate, fixed=fixed, **job.kwargs)
    return chain_start(joint, job.guide, job.settings.ais.num_fit, job.settings.local, job.seed)


def _estimate(
    job: _Job,
    family: _Family,
    start: Guide | FreshStart,
    fixed: Mapping[str, Tensor],
    settings: AISSettings,
    number: int,
) -> Estimates:
    """All estimates of all points, given one draw of the shared latents: the ``number``th."""
    joint = joint_density(job.model, *job.args, plate=job.plate, fixed=fixed, **job.kwargs)
    found = known("guide", lambda: guide_estimates(joint, job.guide, job.settings.num_particles, job.seed))
    job.telling.estimates(found, number)
    options = {"fixed": fixed, **job.common}
    local = {"settings": job.settings.local, "progress": job.telling.stage("q*")}
    best = optimize_local(job.model, job.guide, *job.args, family=family.search, **local, **options)
    star = (best.elbo_star, best.standard_error)
    if job.flow.kind is not None:
        search = {"settings": job.flow, "search": job.settings.flow_search, "progress": job.telling.stage("q* flow")}
        flow = optimize_flow(job.model, best, *job.args, **search, **options)
        star = (flow.elbo_star, flow.standard_error)
    job.telling.estimates({"elbo_star": star}, number)
    chains = best.q if isinstance(start, FreshStart) else start
    bound = ais(job.model, chains, *job.args, settings=settings, progress=job.telling.stage("ais"), **options)
    nothing = torch.full_like(bound.log_p, torch.nan)
    job.telling.estimates({"log_p_lower": (bound.log_p, bound.standard_error)}, number)
    found |= {
        "elbo_star": star,
        "residual": (best.residual, best.residual_error) if job.flow.kind is None else (nothing, nothing),
        "log_p_lower": (bound.log_p, bound.standard_error),
        "acceptance": (bound.acceptance, nothing),
    }
    if job.flow.kind is None and best.elbo_best is not None and best.best_error is not None:
        found["elbo_best"] = (best.elbo_best, best.best_error)
    return {name: (value.double().cpu(), error.double().cpu()) for name, (value, error) in found.items()}


def _own_flow(guide: Guide) -> FlowSettings:
    settings = getattr(guide, "settings", None)
    return settings if isinstance(settings, FlowSettings) else FlowSettings("gaussian")


def _family(job: _Job, guide: Guide, fixed: Mapping[str, Tensor]) -> _Family:
    """The family of q*: that asked for, that of our flows, that of the guide's sites, or, of unknown ones, Gaussian."""
    if job.settings.flow is not None or job.flow.kind is not None:
        return _Family(job.flow.family)
    joint = joint_density(job.model, *job.args, plate=job.plate, fixed=fixed, **job.kwargs)
    with global_seed(job.seed, "family"):
        factors = read_family(joint, job.guide)
    if factors is None:
        return _Family("gaussian", UNKNOWN)
    own = OwnFamily(factors)
    return _Family(own.name, CONTAINS if own.contains else OWN, "gaussian" if own.name == "gaussian" else "own")


def _source(guide: Guide) -> str:
    """What a guide gets its q from, a key of ``FIT``."""
    kinds = {"encoder": (Amortized, FlowGuide), "rows": (Factorized, AutoNormal, PerPointGuide), "constant": Constant}
    return next((name for name, kind in kinds.items() if isinstance(guide, kind)), "other")


def _certify(
    job: _Job, start: Guide | FreshStart, fixed: Mapping[str, Tensor], settings: AISSettings, *, first: bool
) -> tuple[BDMCResult | None, str]:
    """Bounds on simulated points, and why there are none. The first draw also chooses the number of temperatures."""
    wanted = job.settings.certificate if first else CertificateSettings(job.settings.certificate.num_points)
    options = {"settings": settings, "certificate": wanted, "fixed": fixed, "progress": job.telling.stage("bdmc")}
    try:
        return bdmc(job.model, start, *job.args, **options, **job.common), ""
    except ValueError as error:
        return None, str(error)


def _gather(results: list[BDMCResult], start: Guide | FreshStart) -> Certificate:
    def bound(name: str) -> Tensor:
        return torch.stack([getattr(r, name).double().cpu() for r in results])

    worst = max(results, key=lambda r: abs(r.mean_gap) if r.mean_gap == r.mean_gap else torch.inf)
    easier = any(d is not None and not d.alike and d.z_score < 0 for d in (r.difficulty for r in results))
    return Certificate(
        lower=bound("lower"),
        upper=bound("upper"),
        lower_error=bound("lower_error"),
        upper_error=bound("upper_error"),
        mean_gap=worst.mean_gap,
        gap_error=worst.gap_error,
        easier=easier,
        words=f"{SEARCHED}; {worst.evidence()}" if isinstance(start, FreshStart) else worst.evidence(),
    )


@contextmanager
def _said_of(data: str) -> Iterator[None]:
    """Turn what torch says of shapes into one error about the data."""
    try:
        yield
    except (RuntimeError, IndexError, ProgramError) as error:
        words = f"model or guide cannot take {data}; expected data as in training ({first_line(error)})"
        raise ValueError(words) from error


def _check_parameters(model: Model, guide: Guide) -> None:
    named = [(n, p) for m in (model, guide) if isinstance(m, nn.Module) for n, p in m.named_parameters()]
    for name, parameter in [*named, *pyro.get_param_store()._params.items()]:
        if not parameter.isfinite().all():
            raise ValueError(f"expected finite parameters, got nan or inf in {name!r}")
