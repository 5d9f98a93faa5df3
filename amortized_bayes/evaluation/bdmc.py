r"""Bidirectional Monte Carlo: log p(x) between two bounds, on data simulated from the model.

A simulated point comes with an exact draw from its posterior, from which chains can walk the ladder of AIS backwards
under the same frozen settings. With forward weights w and backward weights w',

.. math::
    \log \tfrac1C \sum_c w_c \;\le\; \log p(x) \;\le\; -\log \tfrac1C \sum_c \frac{1}{w'_c}

on average (Grosse, Ghahramani & Adams, *Sandwiching the marginal likelihood using bidirectional Monte Carlo*, 2015;
Wu, Burda, Salakhutdinov & Grosse, *On the quantitative analysis of decoder-based generative models*, ICLR 2017). The
gap between them bounds the error of either, and certifies the settings on such data. Real points have no upper bound.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from torch import Tensor

from amortized_bayes.calls import PerPointNames
from amortized_bayes.entrance import enter
from amortized_bayes.evaluation.ais import mean_and_error
from amortized_bayes.evaluation.annealing import Programs, Ticker, chunks
from amortized_bayes.evaluation.hmc import anneal
from amortized_bayes.evaluation.ladder import growth
from amortized_bayes.evaluation.settings import AISSettings, CertificateSettings, Progress
from amortized_bayes.evaluation.simulation import simulate
from amortized_bayes.joint import (
    FreshStart,
    LogJoint,
    Product,
    Start,
    follows_data,
    found_start,
    global_seed,
    joint_density,
)
from amortized_bayes.limits import Seed, limited
from amortized_bayes.per_point import mean_over_points
from amortized_bayes.signatures import own_options
from amortized_bayes.types import Guide, Model
from amortized_bayes.weights import draw_weights

__all__ = ["UPPER_END", "BDMCResult", "Difficulty", "bdmc"]

logger = logging.getLogger(__name__)

UPPER_END = 1.645
"""Standard errors above a mean at which a one-sided interval of 95% ends."""
ROWS = (
    "the guide's q does not change with the data, and is not seen to be one for all points: "
    "per-point parameters, which say nothing of simulated points, or draws that it has no density of; expected chains "
    "that start elsewhere, guide=None with AISSettings(start='prior', mass='unit')"
)
PILOTS = 4
"""One pilot point, on which the temperatures are chosen, for so many that certify them."""


class Difficulty(NamedTuple):
    """How hard points are for the guide: IWAE minus ELBO in nats, ``simulated`` (B',) against ``real`` (B,).

    ``z_score`` is the difference of the means over its standard error: positive where simulated points are harder.
    """

    simulated: Tensor
    real: Tensor
    z_score: float

    @property
    def alike(self) -> bool:
        """Whether the means differ by less than three standard errors, or by less than a tenth of the real one."""
        difference = (self.simulated.mean() - self.real.mean()).item()
        return abs(self.z_score) < 3 or abs(difference) < 0.1 * abs(self.real.mean().item())


class BDMCResult(NamedTuple):
    """Both bounds of B' simulated points, ``(B',)`` in nats.

    Args:
        lower: lower bound on log p(x), by forward chains.
        upper: upper bound, by backward chains.
        lower_error: standard error of ``lower``, by the jackknife over chains.
        upper_error: error of ``upper``; its chains share one exact draw, so this counts only what they do after it.
        gap: ``upper - lower`` of each point.
        mean_gap: mean over points.
        gap_error: standard error of the mean, over points.
        acceptance: mean acceptance, forwards and backwards.
        divergences: diverged transitions, both ways.
        settings: what the gap certifies.
        reached: whether ``highest_gap`` is at most ``target_gap``; ``None`` where no target was set.
        difficulty: simulated against real points; ``None`` without a guide, or of a single point.
    """

    lower: Tensor
    upper: Tensor
    lower_error: Tensor
    upper_error: Tensor
    gap: Tensor
    mean_gap: float
    gap_error: float
    acceptance: Tensor
    divergences: Tensor
    settings: AISSettings
    reached: bool | None
    difficulty: Difficulty | None

    @property
    def highest_gap(self) -> float:
        """Upper end of the mean gap, at 95%."""
        return self.mean_gap + UPPER_END * self.gap_error

    def evidence(self) -> str:
        """What may be said of real points, in words."""
        words = (
            f"real points have no upper bound; under the same settings the bounds on {len(self.gap)} simulated points "
            f"lie {self.mean_gap:.3f}±{self.gap_error:.3f} nats apart"
        )
        if self.difficulty is None:
            return words
        if self.difficulty.alike:
            return f"{words}, and those points are about as hard for the encoder as the real ones"
        how = "harder" if self.difficulty.z_score > 0 else "easier"
        return f"{words}, but those points are {how} for the encoder (z = {self.difficulty.z_score:.1f})"


@own_options
@limited
def bdmc(
    model: Model,
    guide: Guide | FreshStart | None,
    *args: Any,
    settings: AISSettings | None = None,
    certificate: CertificateSettings | None = None,
    plate: str | None = None,
    per_point: PerPointNames = None,
    fixed: Mapping[str, Tensor] | None = None,
    seed: Seed = 0,
    progress: Progress | None = None,
    **kwargs: Any,
) -> BDMCResult:
    """Simulate points and bound their log p(x) from both sides.

    Args:
        model: Pyro program with a plate over data points.
        guide: Pyro program for its latents, whose q must follow the data; ``None`` as in
            :func:`amortized_bayes.evaluation.ais.ais`; or a search for the start of any points.
        args: arguments of both programs, as of ``ais``: real data, whose place the simulated data take, and covariates,
            which stay.
        settings: settings of the chains; without a target used as they are.
        certificate: how many points, and the target.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        fixed: values of the latents outside the plate.
        seed: random seed for all draws.
        progress: called with transitions done and transitions in all, anew for each number of temperatures.
        kwargs: keyword arguments of both programs.

    Raises:
        ValueError: as ``ais`` and :func:`~amortized_bayes.evaluation.simulation.simulate`, numbers out of range, or a
            guide with per-point parameters (factorized VI), at which chains of other points cannot start.
        Divergence: as ``ais``.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> settings = ab.AISSettings(num_chains=4, num_temperatures=10, num_pilot=4)
        >>> ab.bdmc(model, guide, x, settings=settings, certificate=ab.CertificateSettings(num_points=4)).gap.shape
        torch.Size([4])
    """
    settings, wanted = settings or AISSettings(), certificate or CertificateSettings()
    target_gap, max_temperatures = wanted.target_gap, wanted.max_temperatures
    entered = enter(bdmc, model, guide, args, kwargs, plate=plate, per_point=per_point)
    guide = entered.guide
    real = joint_density(entered.model, *entered.args, plate=entered.plate, fixed=fixed, bits=True, **entered.kwargs)
    num_points = min(wanted.num_points, real.num_points)
    some = real.select(torch.arange(num_points))
    simulated, z = simulated_points(real, num_points, seed, "simulate")
    follows = (
        guide is None or isinstance(guide, FreshStart) or follows_data(some, simulated, guide, settings.num_fit, seed)
    )
    if not follows and "guide" in (settings.start, settings.mass):
        raise ValueError(ROWS)
    if target_gap is not None:  # on points of their own: of those that chose them settings look better than they are
        pilot = simulated_points(real, max(2, num_points // PILOTS), seed, "pilot")
        settings = _enough_temperatures(pilot, guide, settings, target_gap, max_temperatures, seed, progress)
    start = found_start(simulated, guide)
    result = _sandwich(simulated, z, start, settings, seed, progress)
    difficulty = None
    if start is not None and follows and num_points > 1:  # of one point no error is known
        starts = (start, found_start(some, guide))
        difficulty = _difficulty((simulated, some), starts, seed)
    return result._replace(
        difficulty=difficulty,
        reached=None if target_gap is None else result.highest_gap <= target_gap,
    )


def simulated_points(real: LogJoint, count: int, seed: int, stream: str) -> tuple[LogJoint, Tensor]:
    """Points drawn from the model in the place of the first ``count`` real ones, and their exact posterior draws."""
    with global_seed(seed, stream):
        return simulate(real.select(torch.arange(count)))


def _enough_temperatures(
    pilot: tuple[LogJoint, Tensor],
    guide: Start,
    settings: AISSettings,
    target_gap: float,
    max_temperatures: int,
    seed: int,
    progress: Progress | None,
) -> AISSettings:
    """Settings with as many temperatures as bring the gap of the pilot's points down to the target, if any do."""
    start, most = found_start(pilot[0], guide), max(max_temperatures, settings.num_temperatures)
    # rounds differ by the temperatures alone
    programs = Programs(settings, replace(settings, num_temperatures=most).num_gradients)
    rounds: list[tuple[int, float]] = []
    while True:
        found = _sandwich(*pilot, start, settings, seed, progress, programs)
        gap = found.highest_gap if math.isfinite(found.highest_gap) else found.mean_gap
        if gap <= target_gap or settings.num_temperatures >= max_temperatures:
            return settings
        rounds.append((settings.num_temperatures, gap))
        temperatures = min(math.ceil(growth(rounds, target_gap) * settings.num_temperatures), max_temperatures)
        logger.info("gap %.3f at %d temperatures; next %d", gap, settings.num_temperatures, temperatures)
        settings = replace(settings, num_temperatures=temperatures)


def _sandwich(
    joint: LogJoint,
    z: Tensor,
    guide: Guide | Product | None,
    settings: AISSettings,
    seed: int,
    progress: Progress | None,
    programs: Programs | None = None,
) -> BDMCResult:
    tick = Ticker(progress, settings, walks=2)
    forward, backward = [], []
    for chunk in chunks(joint, guide, settings, seed, tick, programs):
        up = chunk.draw_start(settings.num_chains)
        forward.append(chunk.keep(anneal(chunk.density, up, chunk.ladder, chunk.generator, tick=tick)))
        exact = z[chunk.points.to(z.device)].expand(settings.num_chains, -1, -1).contiguous()
        down = chunk.start_at(exact)
        walk = anneal(chunk.density, down, chunk.ladder, chunk.generator, backwards=True, tick=tick)
        backward.append(chunk.keep(walk))
    ups, downs = ([torch.cat(part, -1) for part in zip(*walks, strict=True)] for walks in (forward, backward))
    lower, lower_error = mean_and_error(ups[0])
    negative, upper_error = mean_and_error(-downs[0])
    gap = -negative - lower
    mean_gap, gap_error = mean_over_points(gap)
    return BDMCResult(
        lower=lower,
        upper=-negative,
        lower_error=lower_error,
        upper_error=upper_error,
        gap=gap,
        mean_gap=mean_gap,
        gap_error=gap_error,
        acceptance=0.5 * (ups[1] + downs[1]),
        divergences=ups[2] + downs[2],
        settings=settings,
        reached=None,
        difficulty=None,
    )


def _difficulty(
    points: tuple[LogJoint, LogJoint],
    starts: tuple[Guide | Product | None, Guide | Product | None],
    seed: int,
    num_particles: int = 64,
) -> Difficulty:
    """IWAE minus ELBO of simulated and real points, the same number of each."""
    values = []
    for kind, joint, q in zip(("simulated", "real"), points, starts, strict=True):
        with torch.no_grad(), global_seed(seed, "difficulty", kind), joint.indexed():
            local = torch.cat([_weights(joint, q) for _ in range(num_particles)]).double()
        values.append(local.logsumexp(0) - math.log(num_particles) - local.mean(0))
    difference = values[0].mean() - values[1].mean()
    error = (values[0].var() / len(values[0]) + values[1].var() / len(values[1])).sqrt()
    return Difficulty(values[0], values[1], (difference / error).item())


def _weights(joint: LogJoint, q: Guide | Product | None) -> Tensor:
    """Log weights of one draw, ``(1, B)``."""
    if isinstance(q, Product):
        z, log_q = q.sample(1)
        return joint(z) - log_q
    assert q is not None
    args, kwargs = joint.arguments
    model, guide = (poutine.condition(p, data=joint.fixed) if joint.fixed else p for p in (joint.model, q))
    return draw_weights(model, guide, *args, plate=joint.plate, **kwargs).local[0]
