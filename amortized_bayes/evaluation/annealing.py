"""Points cut into chunks of one size, each with its density, its start and its tuned ladder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from amortized_bayes.evaluation.bit_flips import flip_transition
from amortized_bayes.evaluation.hmc import (
    ChainState,
    Ladder,
    PathDensity,
    PathEnds,
    PathGradients,
    Walk,
    hmc_transition,
    start_chains,
)
from amortized_bayes.evaluation.ladder import tune
from amortized_bayes.evaluation.settings import AISSettings, Progress
from amortized_bayes.joint import (
    Bernoullis,
    Gaussian,
    LogJoint,
    Product,
    Whitening,
    captured_or_plain,
    global_seed,
    guide_start,
    only,
    points_per_chunk,
    whitened_start,
)
from amortized_bayes.seeding import torch_generator
from amortized_bayes.types import Guide

__all__ = ["Chunk", "Programs", "Ticker", "chunks"]

FEW = 4
"""Pilot chains of a point where there are several chunks: a program of their own is captured in less than they save."""

Program = Callable[..., Sequence[Tensor]]


class Chunk(NamedTuple):
    """Some points, ready to walk.

    ``points`` are their places among all; the first ``num_kept`` count, the rest fill the chunk up. Where ``white`` is
    given, chains walk in its coordinates u, of which density and start are too.
    """

    density: PathDensity
    start: Product | None
    ladder: Ladder
    points: Tensor
    num_kept: int
    joint: LogJoint
    generator: Generator
    white: Whitening | None = None

    def draw_start(self, num_chains: int) -> ChainState:
        """Chains drawn from the start density."""
        if self.start is not None:
            return start_chains(self.density, self.start.sample(num_chains, self.generator)[0])
        seed = int(torch.randint(2**62, (), generator=self.generator, device=self.generator.device))
        with global_seed(seed):
            return self.start_at(self.joint.sample_prior(num_chains))

    def start_at(self, z: Tensor) -> ChainState:
        """Chains at z, ``(C, B, D)``."""
        return start_chains(self.density, z if self.white is None else self.white.enter(z).contiguous())

    def keep(self, walk: Walk) -> Walk:
        """The walk of the points that count."""
        return Walk(*(part[..., : self.num_kept] for part in walk))


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
    joint: LogJoint,
    guide: Guide | Product | None,
    settings: AISSettings,
    seed: int,
    tick: Ticker,
    programs: Programs | None = None,
) -> Iterator[Chunk]:
    """Cut the points into chunks of one size, and tune the ladder of each on pilot chains.

    ``programs`` of an earlier walk of as many points of this model are used again.

    Raises:
        ValueError: no guide where the settings need one, or one that does not fit.
    """
    if guide is None and "guide" in (settings.start, settings.mass):
        raise ValueError("expected a guide, got None; start='prior' and mass='unit' do without")
    size = points_per_chunk(joint, settings.num_chains, settings.memory_budget)
    tick.num_chunks = math.ceil(joint.num_points / size)
    num_pilots = settings.num_chains if tick.num_chunks == 1 else min(FEW, settings.num_chains)
    programs = programs or Programs(settings, tick.num_chunks * settings.num_gradients)
    for number in range(tick.num_chunks):
        points = torch.arange(number * size, (number + 1) * size)
        part = joint.select(points % joint.num_points)
        generator = torch_generator(seed, "ais", number, device=joint.device)
        with global_seed(seed, "guide", number):
            q, white = _start(part, points % joint.num_points, guide, settings)
            start = q.widened(settings.widen)
            prior = part.sample_prior(num_pilots) if settings.start == "prior" else None
        if prior is not None and white is not None:
            prior = white.enter(prior).contiguous()
        z = start.sample(num_pilots, generator)[0] if prior is None else prior
        pilot = programs.density(part, start, z, white)
        inverse_mass = q.inverse_mass if settings.mass == "guide" else torch.ones_like(q.inverse_mass)
        move = flip_transition if joint.is_bits else hmc_transition
        ladder = tune(pilot, start_chains(pilot, z), settings, inverse_mass, generator, tick, move)
        density = programs.density(part, start, z.new_empty(settings.num_chains, *z.shape[1:]).copy_(z[:1]), white)
        yield Chunk(
            density=density,
            start=None if prior is not None else start,
            ladder=ladder,
            points=points % joint.num_points,
            num_kept=int((points < joint.num_points).sum()),
            joint=part,
            generator=generator,
            white=white,
        )


class Programs:
    """The density of any chunk of one size, captured once for each number of chains where calls are many."""

    def __init__(self, settings: AISSettings, calls: int) -> None:
        self.settings, self.calls = settings, calls
        self.captured: dict[tuple[int, bool], tuple[Program, Program]] = {}

    def density(self, joint: LogJoint, start: Product, z: Tensor, white: Whitening | None = None) -> PathDensity:
        """The density for chains of which some stand at z ``(C, B, D)``, in coordinates ``white`` if there are any."""
        key, whitened = (len(z), white is not None), () if white is None else white.tensors
        inputs = (*start, *whitened, *joint.inputs(len(z)))
        if key not in self.captured:
            at = (z, *inputs)
            program = captured_or_plain(
                _program(joint, self.settings, len(whitened), type(start)), at, [t.flip(0) for t in at], self.calls
            )
            self.captured[key] = program, only(program, (2, 3))
        return _Bound(*self.captured[key], inputs)


def _program(joint: LogJoint, settings: AISSettings, num_white: int = 0, kind: type[Product] = Gaussian) -> Program:
    """Both ends of the path and their gradients as a function of tensors alone.

    They are those of the start, which is of this kind, of the coordinates, of which there are so many, and the data.
    """
    num_start = len(kind._fields)

    def program(z: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
        start, tensors = tensors[:num_start], tensors[num_start:]
        white, (index, *data) = tensors[:num_white], tensors[num_white:]
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            moved, volume = Whitening.leave(z, *white) if white else (z, None)
            rows = moved.flatten(0, 1)
            log_prior, log_likelihood = (t.reshape(z.shape[:-1]) for t in joint.terms(rows, index, *data))
            log_prior = log_prior if volume is None else log_prior + volume
            log_end = log_prior + log_likelihood
            from_prior = settings.start == "prior"
            grad_end = _slope(log_end, z, joint.is_bits, keep=from_prior)
            if from_prior:
                return log_prior.detach(), log_end.detach(), _slope(log_prior, z, joint.is_bits), grad_end
        log_start, grad_start = kind.score(z.detach(), *start)
        return log_start, log_end.detach(), grad_start, grad_end

    return program


def _slope(log_density: Tensor, z: Tensor, is_bits: bool, *, keep: bool = False) -> Tensor:
    """The gradient in z, ``(C, B, D)``: 0 where a model takes its bits without one."""
    if is_bits and not log_density.requires_grad:
        return torch.zeros_like(z)
    (slope,) = torch.autograd.grad(log_density.sum(), z, retain_graph=keep, allow_unused=is_bits)
    return torch.zeros_like(z) if slope is None else slope


class _Bound(NamedTuple):
    """The density of a chunk: programs of z and the chunk's ``inputs``, one for everything, one for the gradients."""

    everything: Program
    only_gradients: Program
    inputs: Sequence[Tensor]

    def __call__(self, z: Tensor) -> PathEnds:
        return PathEnds(*self.everything(z, *self.inputs))

    def gradients(self, z: Tensor) -> PathGradients:
        """Without the densities."""
        return PathGradients(*self.only_gradients(z, *self.inputs))


def _start(
    joint: LogJoint, points: Tensor, guide: Guide | Product | None, settings: AISSettings
) -> tuple[Product, Whitening | None]:
    """Where chains start, and the coordinates that they walk in, of which the start is then."""
    if guide is None:
        return _standard(joint), None
    if isinstance(guide, Product):
        return type(guide)(*(part[points.to(part.device)] for part in guide)), None
    if joint.is_bits:
        return guide_start(joint, guide, settings.num_fit), None
    q, white = whitened_start(joint, guide, settings.num_fit)
    return (q, None) if white is None or settings.mass == "unit" else (_standard(joint), white)


def _standard(joint: LogJoint) -> Product:
    zeros = torch.zeros(joint.num_points, joint.dim, dtype=joint.dtype, device=joint.device)
    return Bernoullis(zeros) if joint.is_bits else Gaussian(zeros, torch.ones_like(zeros))
