r"""``diagnose``: from a model, a guide and data to the gaps of each point, with certificates.

Every part is estimated given the latents outside the plate: T draws of them from the guide are held fixed in turn.
For each, draws from the guide give ELBO, IWAE and k̂; q* is optimized from the guide's own answer; simulated data
settle how many temperatures AIS needs and certify them; AIS then bounds log p(x) of the real points.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from amortized_bayes.diagnosis.estimates import Estimates, guide_estimates
from amortized_bayes.diagnosis.report import Certificate, Diagnosis
from amortized_bayes.evaluation.ais import ais
from amortized_bayes.evaluation.bdmc import BDMCResult, bdmc
from amortized_bayes.evaluation.psis import MIN_DRAWS, khat_threshold
from amortized_bayes.evaluation.settings import AISSettings
from amortized_bayes.flows import FlowSettings
from amortized_bayes.inference.flow_search import FlowSearchSettings, optimize_flow
from amortized_bayes.inference.optimize import LocalSettings, optimize_local
from amortized_bayes.joint import draw_shared, global_seed, log_joint
from amortized_bayes.types import Guide, Model
from amortized_bayes.weights import trace_pair

__all__ = ["diagnose"]

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Job:
    """Everything that stays the same from one draw of the shared latents to the next."""

    model: Model
    guide: Guide
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    plate: str
    seed: int
    num_particles: int
    num_simulated: int
    target_gap: float
    max_temperatures: int
    local: LocalSettings
    num_restarts: int
    flow: FlowSettings
    memory_budget: float | None
    progress: Progress | None

    @property
    def common(self) -> dict[str, Any]:
        return {"plate": self.plate, "seed": self.seed, "memory_budget": self.memory_budget, **self.kwargs}

    def watch(self, stage: str) -> Callable[[int, int], None] | None:
        """Progress of one stage."""
        if self.progress is None:
            return None
        return partial(self.progress, stage)


def diagnose(
    model: Model,
    guide: Guide,
    x: Tensor,
    *args: Any,
    plate: str = "data",
    num_shared: int = 3,
    num_particles: int = 1000,
    num_simulated: int = 100,
    target_gap: float = 0.1,
    max_temperatures: int = 1000,
    ais_settings: AISSettings | None = None,
    local_settings: LocalSettings | None = None,
    num_restarts: int = 1,
    flow: FlowSettings | None = None,
    memory_budget: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **kwargs: Any,
) -> Diagnosis:
    """Say what the family, the amortization and the estimates cost at each point of ``x``.

    Args:
        model: Pyro program ``model(x, *args, **kwargs)`` with a plate over data points, trained; its parameters stay
            as they are. Put modules with dropout or batch norm in evaluation mode.
        guide: Pyro program for all its latents.
        x: data of B points, ``(B, ...)``.
        args: further arguments of both programs.
        plate: name of the plate over data points.
        num_shared: T, draws of the latents outside the plate, where there are any.
        num_particles: S, draws from the guide for ELBO, IWAE and k̂.
        num_simulated: points drawn from the model for the certificate, at most B.
        target_gap: mean gap of the certificate to reach, in nats.
        max_temperatures: where to stop raising the number of temperatures for it.
        ais_settings: of the chains, to begin with.
        local_settings: of the search for q*.
        num_restarts: runs of it a point; from two on, the gap of the best to the first is reported too.
        flow: family of q*, by default that of the guide: ``guide.settings`` where it has such (our flows), else the
            Gaussian, ``FlowSettings("gaussian")``. The best flow is searched from the best Gaussian; it has neither
            residual nor restarts.
        memory_budget: as in :func:`amortized_bayes.evaluation.ais.ais`.
        seed: of all draws; torch's global generator is left as it was.
        progress: called with the stage's name, what is done of it and all of it.
        kwargs: further keyword arguments of both programs.

    Raises:
        ValueError: a model without the plate, a latent that is discrete, a guide that misses a site, data or
            parameters that are not finite, or data that the model or guide cannot take.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> report = ab.diagnose(model, guide, x, num_particles=100, num_simulated=4)
        >>> len(report.to_frame()[lambda frame: frame["kind"] == "real"])
        4
    """
    _check(model, guide, (x, *args), kwargs, num_shared, num_particles)
    local = local_settings or LocalSettings()
    job = _Job(
        model=model,
        guide=guide,
        args=(x, *args),
        kwargs=kwargs,
        plate=plate,
        seed=seed,
        num_particles=num_particles,
        num_simulated=min(num_simulated, len(x)),
        target_gap=target_gap,
        max_temperatures=max_temperatures,
        local=local,
        num_restarts=num_restarts,
        flow=(flow or _own_flow(guide)).plain,
        memory_budget=memory_budget,
        progress=progress,
    )
    fixed = _shared_draws(job, num_shared)
    found, certificates, why, settings = [], [], "", ais_settings or AISSettings()
    for number, values in enumerate(fixed):
        result, problem = _certify(job, values, settings, first=number == 0)
        if result is not None:
            certificates.append(result)
            settings = result.settings
        why = why or problem
        found.append(_estimate(job, values, settings))
    values, errors = ({name: torch.stack([f[name][i] for f in found]) for name in found[0]} for i in (0, 1))
    certificate = _gather(certificates) if len(certificates) == len(fixed) else None
    how = {"ais": asdict(settings), "local": asdict(local), "family": job.flow.family, "plate": plate, "seed": seed}
    if job.flow.kind is not None:
        how["flow"] = {**asdict(job.flow), "hidden": list(job.flow.hidden)}
    report = Diagnosis(values, errors, certificate, why, num_particles, target_gap, how)
    if report.doubtful > 0:
        words = "k̂ is above %.2f at %.0f%% of the points: IWAE rests on a few draws there"
        logger.warning(words, khat_threshold(num_particles), 100 * report.doubtful)
    return report


def _shared_draws(job: _Job, num_shared: int) -> list[dict[str, Tensor]]:
    """Draws of the latents outside the plate, one empty dict where there are none; model and guide are checked."""
    with _said_of(job.args[0]), torch.no_grad(), global_seed(job.seed, "shared"):
        trace_pair(job.model, job.guide, job.args, job.kwargs, job.plate)
        draws = draw_shared(job.guide, *job.args, num_draws=num_shared, plate=job.plate, **job.kwargs)
        log_joint(job.model, *job.args, plate=job.plate, fixed=draws[0], **job.kwargs)
    return draws if draws[0] else draws[:1]


def _estimate(job: _Job, fixed: Mapping[str, Tensor], settings: AISSettings) -> Estimates:
    """All estimates of all points, given one draw of the shared latents."""
    joint = log_joint(job.model, *job.args, plate=job.plate, fixed=fixed, **job.kwargs)
    found = guide_estimates(joint, job.guide, job.num_particles, job.seed)
    options, local = {"fixed": fixed, **job.common}, replace(job.local, num_restarts=job.num_restarts)
    best = optimize_local(job.model, job.guide, *job.args, settings=local, progress=job.watch("q*"), **options)
    star = (best.elbo_star, best.standard_error)
    if job.flow.kind is not None:
        flow_options = {"settings": job.flow, "search": FlowSearchSettings(memory_budget=job.memory_budget)}
        flow_options |= {name: value for name, value in options.items() if name != "memory_budget"}
        flow = optimize_flow(job.model, best, *job.args, progress=job.watch("q* flow"), **flow_options)
        star = (flow.elbo_star, flow.standard_error)
    bound = ais(job.model, job.guide, *job.args, settings=settings, progress=job.watch("ais"), **options)
    nothing = torch.full_like(bound.log_p, torch.nan)
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


def _certify(
    job: _Job, fixed: Mapping[str, Tensor], settings: AISSettings, *, first: bool
) -> tuple[BDMCResult | None, str]:
    """Bounds on simulated points, and why there are none. The first draw also settles the temperatures."""
    target = {"target_gap": job.target_gap, "max_temperatures": job.max_temperatures} if first else {}
    options = {**target, "settings": settings, "num_points": job.num_simulated, "fixed": fixed}
    options["progress"] = job.watch("bdmc")
    try:
        return bdmc(job.model, job.guide, *job.args, **options, **job.common), ""
    except ValueError as error:
        return None, str(error)


def _gather(results: list[BDMCResult]) -> Certificate:
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
        words=worst.evidence(),
    )


@contextmanager
def _said_of(x: Tensor) -> Iterator[None]:
    """Turn what torch says of shapes into one error about the data."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"model or guide cannot take x of shape {tuple(x.shape)}; expected data as in training ({first})"
        ) from error


def _check(
    model: Model, guide: Guide, args: tuple[Any, ...], kwargs: dict[str, Any], num_shared: int, num_particles: int
) -> None:
    x = args[0]
    if not isinstance(x, Tensor) or x.dim() < 1 or len(x) < 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"expected x as a tensor of two points or more, got {got}")
    if num_shared < 1 or num_particles < MIN_DRAWS:
        raise ValueError(
            f"expected num_shared of 1 or more and num_particles of {MIN_DRAWS} or more, got {num_shared} and "
            f"{num_particles}"
        )
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and not leaf.isfinite().all():
            raise ValueError(f"expected finite data, got {int((~leaf.isfinite()).sum())} values that are nan or inf")
    named = [(n, p) for m in (model, guide) if isinstance(m, nn.Module) for n, p in m.named_parameters()]
    for name, parameter in [*named, *pyro.get_param_store()._params.items()]:
        if not parameter.isfinite().all():
            raise ValueError(f"expected finite parameters, got nan or inf in {name!r}")
