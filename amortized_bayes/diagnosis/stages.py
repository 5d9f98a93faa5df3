"""The stages of a diagnosis: what all points share, the estimates of some of them, and the report on all.

What points share are the draws of the latents outside the plate, the family of q*, the number of temperatures, and the
certificate. It is found on a few points; given it, each block of points stands alone.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from amortized_bayes.calls import check_several
from amortized_bayes.diagnosis.bits import drawing, summed_estimates
from amortized_bayes.diagnosis.estimates import Estimates, guide_estimates, plain
from amortized_bayes.diagnosis.report import Certificate, Diagnosis
from amortized_bayes.diagnosis.settings import DiagnosisSettings
from amortized_bayes.diagnosis.starting import SEARCHED, chain_start, fresh_start
from amortized_bayes.diagnosis.telling import Telling
from amortized_bayes.diagnosis.verdict import BITS, CONTAINS, OWN, UNKNOWN, join_certificate, split_certificate
from amortized_bayes.entrance import Entered
from amortized_bayes.evaluation.ais import ais
from amortized_bayes.evaluation.bdmc import BDMCResult, bdmc
from amortized_bayes.evaluation.chunking import check_reach_of, point_chunks
from amortized_bayes.evaluation.psis import khat_threshold
from amortized_bayes.evaluation.settings import AISSettings, CertificateSettings
from amortized_bayes.flows import FlowSettings
from amortized_bayes.guides import Amortized, AmortizedBits, Constant, Factorized, FlowGuide
from amortized_bayes.guides.autoguides import PerPointGuide
from amortized_bayes.inference.bit_search import bits_start, search_bits
from amortized_bayes.inference.flow_search import optimize_flow
from amortized_bayes.inference.optimize import LocalOptimum, optimize_local
from amortized_bayes.inference.own_family import OwnFamily
from amortized_bayes.joint import (
    FreshStart,
    LogJoint,
    bits_of,
    draw_shared,
    global_seed,
    joint_density,
    read_family,
)
from amortized_bayes.keeping import known
from amortized_bayes.program_errors import ProgramError, first_line
from amortized_bayes.traces import trace_pair
from amortized_bayes.types import Guide, Model

__all__ = [
    "Groundwork",
    "Subject",
    "check_parameters",
    "check_reached",
    "lay_groundwork",
    "measure",
    "report_on",
    "subject_of",
]

logger = logging.getLogger(__name__)

ROWS = (
    "expected a guide that is a function of the data, whose points can be measured block by block, got one with "
    "per-point parameters: diagnose takes it, with all points at once"
)
Search = Literal["gaussian", "own", "bits", "codes"]
CHECKED = 1_000
"""Points at once of which it is checked that the guide reaches their posteriors."""


@dataclass(frozen=True)
class Subject:
    """Everything that stays the same from one draw of the shared latents to the next."""

    model: Model
    guide: Guide
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    described: str
    num_points: int
    plate: str
    seed: int
    settings: DiagnosisSettings
    flow: FlowSettings
    source: str
    telling: Telling

    @property
    def common(self) -> dict[str, Any]:
        """Options of every estimate."""
        return {"plate": self.plate, "seed": self.seed, **self.kwargs}


class Groundwork(NamedTuple):
    """What the points of a diagnosis share, found on a few of them.

    Args:
        fixed: draws of the latents outside the plate, one empty dict where there are none.
        search: which search finds the best Gaussian, or q* itself; ``codes`` are summed, and nothing is walked.
        fresh: for each draw, whether chains start at a search, since the guide's parameters belong to points.
        chains: how AIS chains walk, with as many temperatures as the certificate asked for.
        certificate: certificate of these chains; ``None`` where no data can be drawn from the model.
        why_uncertified: the reason then.
        described: the plate, and of what family q* is, for the report.
    """

    fixed: Sequence[Mapping[str, Tensor]]
    search: Search
    fresh: Sequence[bool]
    chains: AISSettings
    certificate: Certificate | None
    why_uncertified: str
    described: Mapping[str, Any]

    def pack(self) -> tuple[dict[str, Tensor], str]:
        """Tensors, and a text, of which :meth:`unpack` makes the same again."""
        tensors = {f"fixed.{t}.{name}": value for t, draw in enumerate(self.fixed) for name, value in draw.items()}
        bounds, plain = split_certificate(self.certificate)
        tensors |= {f"certificate.{name}": value for name, value in bounds.items()}
        rest = {"search": self.search, "fresh": list(self.fresh), "chains": asdict(self.chains), "certificate": plain}
        rest |= {"why_uncertified": self.why_uncertified, "described": dict(self.described)}
        return tensors, json.dumps(rest)

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], text: str) -> Groundwork:
        """What :meth:`pack` was made of."""
        rest = json.loads(text)
        fixed = [dict[str, Tensor]() for _ in rest["fresh"]]
        bounds = dict[str, Tensor]()
        for name, value in tensors.items():
            kind, _, own = name.partition(".")
            if kind == "certificate":
                bounds[own] = value
            else:
                draw, _, site = own.partition(".")
                fixed[int(draw)][site] = value
        certificate = join_certificate(bounds, rest.pop("certificate"))
        return cls(**{**rest, "chains": AISSettings(**rest["chains"])}, fixed=fixed, certificate=certificate)


class _Family(NamedTuple):
    """Of what family q* is, what that is to the guide, and which search finds the best Gaussian or q* itself."""

    name: str
    relation: str = OWN
    search: Search = "gaussian"


def subject_of(entered: Entered, settings: DiagnosisSettings, seed: int, telling: Telling) -> Subject:
    """What is diagnosed.

    Raises:
        ValueError: a single point.
    """
    given = entered.data
    assert given is not None
    check_several(given)
    guide = entered.guide.program
    with _said_of(given.describe()):
        model = drawing(entered, seed)
    return Subject(
        model=model,
        guide=entered.guide,
        args=entered.args,
        kwargs=entered.kwargs,
        described=given.describe(),
        num_points=len(given.rows),
        plate=entered.plate,
        seed=seed,
        settings=settings,
        flow=(settings.flow or _own_flow(guide)).plain,
        source=_source(guide),
        telling=telling,
    )


def check_reached(job: Subject) -> None:
    """Refuse a guide that leaves out a part of the posterior of one of the subject's points.

    Raises:
        ValueError: there is such a point.
    """
    check_reach_of(point_chunks(job.args, job.kwargs, CHECKED, job.plate), job.model, job.guide)


def lay_groundwork(job: Subject, *, for_blocks: bool = False) -> Groundwork:
    """Find what points share, those of the subject or, ``for_blocks``, others too.

    Raises:
        ValueError: a guide with per-point parameters, which others do not have.
    """
    if for_blocks and job.source == "rows":
        raise ValueError(ROWS)
    found, why, walk, fresh = [], "", job.settings.ais, []
    fixed = _shared_draws(job)
    family = _family(job, fixed[0])
    described: dict[str, Any] = {"plate": job.plate, "family": family.name, "relation": family.relation}
    described["source"] = job.source
    if family.search == "codes":
        if for_blocks and any(isinstance(_chain_start(job, values), FreshStart) for values in fixed):
            raise ValueError(ROWS)
        described["codes"] = 2 ** _joint(job, fixed[0]).dim
        return Groundwork(fixed, family.search, [False] * len(fixed), walk, None, "codes were summed", described)
    job.telling.expect(job.settings, job.num_points, len(fixed), is_flow=job.flow.kind is not None)
    for number, values in enumerate(fixed):
        start = _chain_start(job, values)
        fresh.append(isinstance(start, FreshStart))
        if for_blocks and fresh[-1]:
            raise ValueError(ROWS)
        result, problem = _certify(job, start, values, walk, first=number == 0)
        if result is not None:
            found.append(result)
            walk = result.settings
        why = why or problem
    certificate = _gather(found, searched=fresh[-1]) if len(found) == len(fixed) else None
    if job.flow.kind is not None:
        described["flow"] = {**asdict(job.flow), "hidden": list(job.flow.hidden)}
    return Groundwork(fixed, family.search, fresh, walk, certificate, why, described)


def measure(job: Subject, ground: Groundwork) -> Estimates:
    """All estimates of the subject's points: by name, values and errors, ``(T, B)`` each."""
    found = [_estimate(job, ground, number) for number in range(len(ground.fixed))]

    def gathered(name: str, part: int) -> Tensor:
        return torch.stack([estimates[name][part] for estimates in found])

    return {name: (gathered(name, 0), gathered(name, 1)) for name in found[0]}


def report_on(
    estimates: Estimates, ground: Groundwork, settings: DiagnosisSettings, seed: int, **more: int
) -> Diagnosis:
    """The report on points of which these are the estimates; ``more`` is kept among its settings."""
    values, errors = ({name: pair[part] for name, pair in estimates.items()} for part in (0, 1))
    how = {"ais": asdict(ground.chains), "local": asdict(settings.local), "plate": ground.described["plate"]}
    how |= {"seed": seed, **ground.described, **more}
    num_particles, target_gap = settings.num_particles, settings.certificate.target_gap or math.nan
    why = ground.why_uncertified
    report = Diagnosis(values, errors, ground.certificate, why, num_particles, target_gap, how)
    if report.doubtful > 0:
        words = "k̂ is above %.2f at %.0f%% of the points: IWAE rests on a few draws there"
        logger.warning(words, khat_threshold(num_particles), 100 * report.doubtful)
    return report


def check_parameters(model: Model, guide: Guide) -> None:
    """Refuse parameters that are not finite.

    Raises:
        ValueError: there are such.
    """
    named = [(n, p) for m in (model, guide) if isinstance(m, nn.Module) for n, p in m.named_parameters()]
    for name, parameter in [*named, *pyro.get_param_store()._params.items()]:
        if not parameter.isfinite().all():
            raise ValueError(f"expected finite parameters, got nan or inf in {name!r}")


def _shared_draws(job: Subject) -> list[dict[str, Tensor]]:
    """Draws of the latents outside the plate, one empty dict where there are none; model and guide are checked."""
    with _said_of(job.described), torch.no_grad(), global_seed(job.seed, "shared"):
        trace_pair(job.model, job.guide, job.args, job.kwargs, job.plate)
        check_reached(job)
        draws = draw_shared(job.guide, *job.args, num_draws=job.settings.num_shared, plate=job.plate, **job.kwargs)
        _joint(job, draws[0])
    return draws if draws[0] else draws[:1]


def _chain_start(job: Subject, fixed: Mapping[str, Tensor]) -> Guide | FreshStart:
    joint = _joint(job, fixed)
    return chain_start(joint, job.guide, job.settings.ais.num_fit, job.settings.local, job.seed)


def _estimate(job: Subject, ground: Groundwork, number: int) -> Estimates:
    """All estimates of all points, given one draw of the shared latents: the ``number``th."""
    fixed = ground.fixed[number]
    joint = _joint(job, fixed)
    if ground.search == "codes":
        how = (job.settings.num_particles, job.seed, job.telling.stage("codes"))
        found = known("codes", lambda: summed_estimates(joint, job.guide, *how))
        job.telling.estimates(found, number)
        return plain(found)
    found = known("guide", lambda: guide_estimates(joint, job.guide, job.settings.num_particles, job.seed))
    job.telling.estimates(found, number)
    nothing = torch.full_like(found["elbo"][0], torch.nan)
    options = {"fixed": fixed, **job.common}
    local = {"settings": job.settings.local, "progress": job.telling.stage("q*")}
    if ground.search == "bits":
        start = bits_start(joint, job.guide, job.settings.local.num_fit, job.seed)
        best = search_bits(joint, start, seed=job.seed, **local)
    else:
        best = optimize_local(job.model, job.guide, *job.args, family=ground.search, **local, **options)
    star = (best.elbo_star, best.standard_error)
    if isinstance(best, LocalOptimum) and job.flow.kind is not None:
        search = {"settings": job.flow, "search": job.settings.flow_search, "progress": job.telling.stage("q* flow")}
        flow = optimize_flow(job.model, best, *job.args, **search, **options)
        star = (flow.elbo_star, flow.standard_error)
    job.telling.estimates({"elbo_star": star}, number)
    # As those of simulated points: from the q* found here, which began at the guide, chains would be other than theirs.
    fresh = fresh_start(job.settings.local, job.seed) if "guide" in (ground.chains.start, ground.chains.mass) else None
    chains = fresh if ground.fresh[number] else job.guide
    bound = ais(job.model, chains, *job.args, settings=ground.chains, progress=job.telling.stage("ais"), **options)
    job.telling.estimates({"log_p_lower": (bound.log_p, bound.standard_error)}, number)
    found |= {
        "elbo_star": star,
        "residual": (best.residual, best.residual_error) if job.flow.kind is None else (nothing, nothing),
        "log_p_lower": (bound.log_p, bound.standard_error),
        "acceptance": (bound.acceptance, nothing),
    }
    if isinstance(best, LocalOptimum) and job.flow.kind is None and best.elbo_best is not None:
        assert best.best_error is not None
        found["elbo_best"] = (best.elbo_best, best.best_error)
    return plain(found)


def _joint(job: Subject, fixed: Mapping[str, Tensor]) -> LogJoint:
    return joint_density(job.model, *job.args, plate=job.plate, fixed=fixed, bits=True, **job.kwargs)


def _own_flow(guide: Guide) -> FlowSettings:
    settings = getattr(guide, "settings", None)
    return settings if isinstance(settings, FlowSettings) else FlowSettings("gaussian")


def _family(job: Subject, fixed: Mapping[str, Tensor]) -> _Family:
    """The family of q*: that asked for, that of our flows, that of the guide's sites, or, of unknown ones, Gaussian."""
    joint = _joint(job, fixed)
    if joint.is_bits:
        return _family_of_bits(job, joint)
    if job.settings.flow is not None or job.flow.kind is not None:
        return _Family(job.flow.family)
    with global_seed(job.seed, "family"):
        factors = read_family(joint, job.guide)
    if factors is None:
        return _Family("gaussian", UNKNOWN)
    own = OwnFamily(factors)
    return _Family(own.name, CONTAINS if own.contains else OWN, "gaussian" if own.name == "gaussian" else "own")


def _family_of_bits(job: Subject, joint: LogJoint) -> _Family:
    if job.settings.flow is not None:
        raise ValueError("expected no `flow` where latents are bits, got one: q* is a product of Bernoullis")
    relation = UNKNOWN if bits_of(joint, job.guide) is None else OWN
    return _Family(BITS, relation, "codes" if joint.dim <= job.settings.sum_up_to else "bits")


def _source(guide: Guide) -> str:
    """What a guide gets its q from, a key of ``FIT``."""
    encoders, rows = (Amortized, AmortizedBits, FlowGuide), (Factorized, AutoNormal, PerPointGuide)
    kinds = {"encoder": encoders, "rows": rows, "constant": Constant}
    return next((name for name, kind in kinds.items() if isinstance(guide, kind)), "other")


def _certify(
    job: Subject, start: Guide | FreshStart, fixed: Mapping[str, Tensor], settings: AISSettings, *, first: bool
) -> tuple[BDMCResult | None, str]:
    """Bounds on simulated points, and why there are none. The first draw also chooses the number of temperatures."""
    wanted = job.settings.certificate if first else CertificateSettings(job.settings.certificate.num_points)
    options = {"settings": settings, "certificate": wanted, "fixed": fixed, "progress": job.telling.stage("bdmc")}
    try:
        return bdmc(job.model, start, *job.args, **options, **job.common), ""
    except ValueError as error:
        return None, str(error)


def _gather(results: list[BDMCResult], *, searched: bool) -> Certificate:
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
        words=f"{SEARCHED}; {worst.evidence()}" if searched else worst.evidence(),
    )


@contextmanager
def _said_of(data: str) -> Iterator[None]:
    """Turn what torch says of shapes into one error about the data."""
    try:
        yield
    except (RuntimeError, IndexError, ProgramError) as error:
        words = f"model or guide cannot take {data}; expected data as in training ({first_line(error)})"
        raise ValueError(words) from error
