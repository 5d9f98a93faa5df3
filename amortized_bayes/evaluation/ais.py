r"""Annealed importance sampling: a lower bound on log p(x) of each point, by Hamiltonian chains.

C chains a point walk from a start density f_0 to the joint f_1 = p(x, z) along the geometric path
:math:`f_\beta = f_0^{1-\beta} f_1^\beta` and gather

.. math::
    \log w = \sum_{t=1}^{T} (\beta_t - \beta_{t-1}) \log \frac{f_1(z_{t-1})}{f_0(z_{t-1})}, \qquad
    \mathbb{E}[w] = p(x), \qquad \log \tfrac1C \sum_c w_c \;\text{is on average at most}\; \log p(x)

(Neal, *Annealed importance sampling*, 2001). f_0 is the prior, or a Gaussian made from the guide's q and widened.
Temperatures, and a step size for each temperature and point, are tuned on pilot chains, frozen, and then used by other
chains: a step that follows the chain's own history would break the identity above. Walked backwards from exact
posterior draws under the same settings, the same weights bound log p(x) from above: see
:mod:`amortized_bayes.evaluation.bdmc`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import pyro.poutine as poutine
import torch
from torch import Generator, Tensor
from torch.distributions import constraints

from amortized_bayes.evaluation.hmc import (
    ChainState,
    Ladder,
    PathDensity,
    PathEnds,
    Walk,
    anneal,
    captured_or_plain,
    hmc_transition,
    start_chains,
)
from amortized_bayes.evaluation.joint import LogJoint, log_joint, plate_to_front
from amortized_bayes.evaluation.psis import ess
from amortized_bayes.seeding import torch_generator, torch_seed
from amortized_bayes.types import Guide, Model
from amortized_bayes.weights import PairedTraces, trace_pair

__all__ = [
    "AISResult",
    "AISSettings",
    "Chunk",
    "Gaussian",
    "Ticker",
    "ais",
    "chunks",
    "gaussian_start",
    "global_seed",
    "mean_and_error",
    "tune",
]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AISSettings:
    """How the chains walk.

    Args:
        num_chains: C.
        num_temperatures: T, steps from start to joint.
        num_leapfrog: gradients a temperature.
        start: ``"guide"`` (its q as a Gaussian, widened) or ``"prior"``.
        mass: ``"guide"`` (1/scale² of the guide's q) or ``"unit"``.
        schedule: spacing of the temperatures: ``"adaptive"`` (equal steps of √Var log(f_1/f_0) dβ, seen by pilot
            chains), ``"linear"`` or ``"sigmoid"``.
        widen: factor on the scales of q in the start.
        target_acceptance: of the pilot chains.
        num_pilot: temperatures that the pilot chains walk.
        num_fit: draws to fit a Gaussian to, where q is no factorized Gaussian.

    Raises:
        ValueError: a number out of its range or an unknown word.
    """

    num_chains: int = 16
    num_temperatures: int = 120
    num_leapfrog: int = 2
    start: Literal["guide", "prior"] = "guide"
    mass: Literal["guide", "unit"] = "guide"
    schedule: Literal["adaptive", "linear", "sigmoid"] = "adaptive"
    widen: float = 1.2
    target_acceptance: float = 0.75
    num_pilot: int = 20
    num_fit: int = 100

    num_warm_up: ClassVar[int] = 4

    @property
    def num_gradients(self) -> int:
        """Gradients of a chain and its pilot."""
        transitions = self.num_temperatures - 1 + self.num_warm_up + self.num_pilot
        return 2 + self.num_leapfrog * transitions

    def __post_init__(self) -> None:
        least = {"num_chains": 2, "num_temperatures": 1, "num_leapfrog": 1, "num_pilot": 2, "num_fit": 10}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"expected {name} of {bound} or more, got {getattr(self, name)}")
        words = {"start": ("guide", "prior"), "mass": ("guide", "unit"), "schedule": ("adaptive", "linear", "sigmoid")}
        for name, choices in words.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"expected {name} among {choices}, got {getattr(self, name)!r}")
        if not (self.widen > 0 and 0 < self.target_acceptance < 1):
            raise ValueError(
                f"expected widen above 0 and target_acceptance in (0, 1), got {self.widen} and {self.target_acceptance}"
            )


class AISResult(NamedTuple):
    """AIS of B points, in nats.

    Args:
        log_p: lower bound on log p(x) (on average), ``(B,)``.
        standard_error: of ``log_p``, by the jackknife over chains, ``(B,)``.
        acceptance: mean acceptance of the transitions, ``(B,)``.
        ess: effective number of chains, ``(B,)``.
        log_weights: ``(C, B)``, float64.
        num_gradients: gradients a chain, those of the pilot chains among them.
        divergences: transitions in which a chain's energy diverged; it then stayed where it was. ``(B,)``.
    """

    log_p: Tensor
    standard_error: Tensor
    acceptance: Tensor
    ess: Tensor
    log_weights: Tensor
    num_gradients: int
    divergences: Tensor


class Gaussian(NamedTuple):
    """A factorized Gaussian for each point, on the unconstrained space: ``loc`` and ``scale``, ``(B, D)``."""

    loc: Tensor
    scale: Tensor


class Chunk(NamedTuple):
    """Some points, ready to walk.

    ``points`` are their places among all; the first ``num_kept`` count, the rest fill the chunk up.
    """

    density: PathDensity
    start: Gaussian | None
    ladder: Ladder
    points: Tensor
    num_kept: int
    joint: LogJoint
    generator: Generator

    def draw_start(self, num_chains: int) -> ChainState:
        """Chains drawn from the start density."""
        if self.start is not None:
            return start_chains(self.density, draw(self.start, num_chains, self.generator))
        seed = int(torch.randint(2**62, (), generator=self.generator, device=self.generator.device))
        with global_seed(seed):
            return start_chains(self.density, self.joint.sample_prior(num_chains))

    def keep(self, walk: Walk) -> Walk:
        """The walk of the points that count."""
        return Walk(*(part[..., : self.num_kept] for part in walk))


def ais(
    model: Model,
    guide: Guide | None,
    *args: Any,
    settings: AISSettings | None = None,
    plate: str = "data",
    fixed: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    memory_budget: float | None = None,
    progress: Progress | None = None,
    **kwargs: Any,
) -> AISResult:
    """Bound log p(x) of each point from below, given the latents outside the plate.

    Args:
        model: Pyro program with a plate over data points.
        guide: Pyro program for its latents; may be ``None`` where both start and mass do without it.
        args: arguments of both programs, data of B points.
        settings: how the chains walk.
        plate: name of the plate over data points.
        fixed: values of the latents outside the plate (a Bayesian decoder's weights), held as they are.
        seed: of all draws; torch's global generator is left as it was.
        memory_budget: bytes that the chains of one chunk may take, by a rough count; 64 MB on a CPU (what a cache
            holds goes fastest), 8 GB on a GPU.
        progress: called with transitions done and transitions in all.
        kwargs: keyword arguments of both programs.

    Raises:
        ValueError: as :func:`amortized_bayes.evaluation.joint.log_joint`, or a guide that does not fit.
    """
    settings = settings or AISSettings()
    joint = log_joint(model, *args, plate=plate, fixed=fixed, **kwargs)
    tick = Ticker(progress, settings, walks=1)
    walks = []
    for chunk in chunks(joint, guide, settings, seed, memory_budget, tick):
        state = chunk.draw_start(settings.num_chains)
        walks.append(chunk.keep(anneal(chunk.density, state, chunk.ladder, chunk.generator, tick=tick)))
    log_weights, acceptance, divergences = (torch.cat(part, -1) for part in zip(*walks, strict=True))
    log_p, error = mean_and_error(log_weights)
    return AISResult(log_p, error, acceptance, ess(log_weights.T), log_weights, settings.num_gradients, divergences)


def mean_and_error(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the mean weight, and its standard error by the jackknife: ``(C, B)`` in nats to ``(B,)`` twice."""
    num = len(log_weights)
    total = log_weights.logsumexp(0)
    # log of the sum without chain c; where c holds all of the weight the error is infinite.
    share = (log_weights - total).nan_to_num(nan=-math.log(num)).clamp(max=0)
    left_out = torch.log1p(-share.exp()) + math.log(num / (num - 1))
    error = ((num - 1) * (left_out - left_out.mean(0)).square().mean(0)).sqrt()
    return total - math.log(num), error.nan_to_num(nan=math.inf)


class Ticker:
    """Counts transitions over all chunks and reports them to a callback."""

    def __init__(self, progress: Progress | None, settings: AISSettings, walks: int) -> None:
        self.progress, self.done, self.num_chunks = progress, 0, 1
        self.each = settings.num_warm_up + settings.num_pilot + walks * (settings.num_temperatures - 1)

    def __call__(self) -> None:
        """One more transition."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.each * self.num_chunks)


def chunks(
    joint: LogJoint, guide: Guide | None, settings: AISSettings, seed: int, memory_budget: float | None, tick: Ticker
) -> Iterator[Chunk]:
    """Cut the points into chunks of one size, and tune the ladder of each on pilot chains.

    Raises:
        ValueError: no guide where the settings need one, or one that does not fit.
    """
    if guide is None and "guide" in (settings.start, settings.mass):
        raise ValueError("expected a guide, got None; start='prior' and mass='unit' do without")
    size = _chunk_size(joint, settings.num_chains, memory_budget)
    tick.num_chunks = math.ceil(joint.num_points / size)
    program: Callable[..., Sequence[Tensor]] | None = None
    for number in range(tick.num_chunks):
        points = torch.arange(number * size, (number + 1) * size)
        part = joint.select(points % joint.num_points)
        generator = torch_generator(seed, "ais", number, device=joint.device)
        with global_seed(seed, "guide", number):
            q = _unit(part) if guide is None else gaussian_start(part, guide, settings.num_fit)
            start = Gaussian(q.loc, q.scale * settings.widen)
            prior = part.sample_prior(settings.num_chains) if settings.start == "prior" else None
        z = draw(start, settings.num_chains, generator) if prior is None else prior
        inputs = (z, *start, *part.inputs(settings.num_chains))
        if program is None:
            program = captured_or_plain(_program(part, settings), inputs, [t.flip(0) for t in inputs])
        density = _bind(program, inputs[1:])
        inverse_mass = q.scale.square() if settings.mass == "guide" else torch.ones_like(q.scale)
        ladder = tune(density, start_chains(density, z), settings, inverse_mass, generator, tick)
        num_kept = int((points < joint.num_points).sum())
        yield Chunk(
            density, None if prior is not None else start, ladder, points % joint.num_points, num_kept, part, generator
        )


@torch.no_grad()
def tune(
    density: PathDensity,
    state: ChainState,
    settings: AISSettings,
    inverse_mass: Tensor,
    generator: Generator,
    tick: Callable[[], None] = lambda: None,
) -> Ladder:
    """Walk pilot chains up a coarse ladder, learn step sizes and spacing there, and freeze them.

    The step size of a point rises and falls with the mean acceptance of its chains. The spacing is equal in
    √Var log(f_1/f_0) dβ, averaged over points: the length of the path in the metric of Fisher's information.
    """
    grid = _spaced("linear" if settings.schedule == "linear" else "sigmoid", settings.num_pilot).to(state.z)
    log_step = torch.full_like(inverse_mass[:, 0], math.log(inverse_mass.shape[-1] ** -0.25))
    steps, spread = [], [_spread(state)]
    for place in [1] * settings.num_warm_up + list(range(1, settings.num_pilot + 1)):
        state, info = hmc_transition(
            density, state, grid[place], log_step.exp(), inverse_mass, settings.num_leapfrog, generator
        )
        log_step = log_step + 0.7 * (info.acceptance.mean(0) - settings.target_acceptance)
        steps.append(log_step)
        spread.append(_spread(state))
        tick()
    steps, spread = steps[settings.num_warm_up :], torch.stack([spread[0], *spread[1 + settings.num_warm_up :]])
    smooth = torch.nn.functional.avg_pool1d(torch.stack(steps, -1)[:, None], 5, 1, 2, count_include_pad=False)[:, 0].T
    if settings.schedule == "adaptive":
        rate = (0.5 * (spread[1:] + spread[:-1])).clamp(min=0.02 * spread.max().item() + 1e-6)
        length = torch.cat([grid[:1], (rate * grid.diff()).cumsum(0)])
        betas = _interpolate(torch.linspace(0, 1, settings.num_temperatures + 1).to(grid) * length[-1], length, grid)
        betas[0], betas[-1] = 0.0, 1.0
    else:
        betas = _spaced(settings.schedule, settings.num_temperatures).to(grid)
    return Ladder(betas, _interpolate(betas[1:], grid[1:], smooth).exp(), inverse_mass, settings.num_leapfrog)


def gaussian_start(joint: LogJoint, guide: Guide, num_fit: int) -> Gaussian:
    """The guide's q as a factorized Gaussian on the unconstrained space.

    Read off where q is one, and else fitted to ``num_fit`` draws by their moments: planar flows and auxiliary
    variables have no density off their own samples, and a start needs one everywhere.

    Raises:
        ValueError: the guide misses a site, or its draws are not finite.
    """
    args, kwargs = joint.arguments
    model, guide = (poutine.condition(p, data=joint.fixed) if joint.fixed else p for p in (joint.model, guide))

    def run() -> PairedTraces:
        with torch.no_grad(), joint.indexed():
            return trace_pair(model, guide, args, kwargs, joint.plate)

    first, second = run(), run()
    read = [_read(joint, traces) for traces in (first, second)]
    if read[0] is not None and read[1] is not None and all(map(torch.equal, read[0], read[1])):
        q = read[0]
    else:
        draws = torch.stack([joint.pack(t.model) for t in (first, second, *(run() for _ in range(num_fit - 2)))])
        q = Gaussian(draws.mean(0), draws.std(0))
    bad = (~(q.loc.isfinite() & q.scale.isfinite() & (q.scale > 0)).all(-1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"the guide's draws have no finite mean and positive scale at point {bad[0]} of this chunk")
    return q


def draw(start: Gaussian, num_chains: int, generator: Generator) -> Tensor:
    """Draws of a Gaussian, ``(C, B, D)``."""
    noise = torch.empty(num_chains, *start.loc.shape, dtype=start.loc.dtype, device=start.loc.device)
    return start.loc + start.scale * noise.normal_(generator=generator)


@contextmanager
def global_seed(seed: int, *names: str | int) -> Iterator[None]:
    """Seed torch's global generators, from which Pyro draws, and put them back after."""
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed(seed, *names))
        yield


def _read(joint: LogJoint, traces: PairedTraces) -> Gaussian | None:
    """Location and scale of q where every site of it is a plain Gaussian, ``None`` elsewhere."""
    columns: list[list[Tensor]] = [[], []]
    for site in joint.sites:
        node: Any = traces.guide.nodes[site.name]
        fn, support = node["fn"], site.support
        while isinstance(fn, torch.distributions.Independent):
            fn = fn.base_dist
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if not (isinstance(fn, torch.distributions.Normal) and support is constraints.real):
            return None
        for column, part in zip(columns, (fn.loc, fn.scale), strict=True):
            front = plate_to_front(node, joint.plate, part.expand(node["value"].shape))
            column.append(front.reshape(len(front), -1))
    return Gaussian(torch.cat(columns[0], -1), torch.cat(columns[1], -1))


def _program(joint: LogJoint, settings: AISSettings) -> Callable[..., Sequence[Tensor]]:
    """Both ends of the path and their gradients as a function of tensors alone."""

    def program(z: Tensor, loc: Tensor, scale: Tensor, index: Tensor, *data: Tensor) -> Sequence[Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_prior, log_likelihood = (t.reshape(z.shape[:-1]) for t in joint.terms(z.flatten(0, 1), index, *data))
            log_end = log_prior + log_likelihood
            from_prior = settings.start == "prior"
            (grad_end,) = torch.autograd.grad(log_end.sum(), z, retain_graph=from_prior)
            if from_prior:
                (grad_start,) = torch.autograd.grad(log_prior.sum(), z)
                return log_prior.detach(), log_end.detach(), grad_start, grad_end
        white = (z.detach() - loc) / scale
        log_start = -(0.5 * white.square() + scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
        return log_start, log_end.detach(), -white / scale, grad_end

    return program


def _bind(program: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> PathDensity:
    return lambda z: PathEnds(*program(z, *inputs))


def _unit(joint: LogJoint) -> Gaussian:
    zeros = torch.zeros(joint.num_points, joint.dim, dtype=joint.dtype, device=joint.device)
    return Gaussian(zeros, torch.ones_like(zeros))


def _chunk_size(joint: LogJoint, num_chains: int, memory_budget: float | None) -> int:
    """Points a chunk, such that all chunks have about the same size."""
    budget = memory_budget if memory_budget is not None else (8e9 if joint.device.type == "cuda" else 64e6)
    data = sum(t[0].numel() * t.element_size() for t in joint.inputs(1))
    # A row holds its data, four or so arrays of their size (means, log densities, gradients), and z some ten times.
    row = 6 * data + 10 * joint.dim * 8
    largest = max(1, int(budget / (num_chains * row)))
    return math.ceil(joint.num_points / math.ceil(joint.num_points / largest))


def _spaced(schedule: str, num_temperatures: int) -> Tensor:
    """Inverse temperatures 0 to 1, ``(T + 1,)``; "sigmoid" is dense at both ends."""
    t = torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64)
    if schedule == "linear":
        return t
    s = torch.sigmoid(4.0 * (2 * t - 1))
    return (s - s[0]) / (s[-1] - s[0])


def _spread(state: ChainState) -> Tensor:
    """Standard deviation over chains of log f_1/f_0, averaged over points, ``()``."""
    rise = state.ends.log_end - state.ends.log_start
    spread = rise.std(0)
    return spread[spread.isfinite()].mean().nan_to_num(nan=0.0)


def _interpolate(at: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear interpolation of ``values``, (P, ...), known at rising ``places``, (P,)."""
    right = torch.searchsorted(places, at).clamp(1, len(places) - 1)
    width = places[right] - places[right - 1]
    weight = ((at - places[right - 1]) / width).clamp(0, 1)
    weight = weight.reshape(-1, *(1 for _ in values.shape[1:]))
    return torch.lerp(values[right - 1], values[right], weight)
