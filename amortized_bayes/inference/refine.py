r"""Refinement at test time: the encoder's answer, and T per-point steps from there (Krishnan et al., 2018).

A few steps win back most of the amortization gap if they are natural gradients (Amari, 1998; Khan & Rue, 2023): where q
is Gaussian the Fisher information is known, and a step of rate 1 leads to the best q of a Gaussian posterior of its
scale, whatever the units,

.. math:: \mu \leftarrow \mu + \rho_t\, \sigma^2 \nabla_\mu L, \qquad
    \log\sigma \leftarrow \log\sigma + \tfrac{1}{2} \rho_t \nabla_{\log\sigma} L, \qquad
    \rho_t = \rho / (1 + t / t_{1/2}).

Gradients follow the path of z alone, over draws in pairs, as those of
:func:`~amortized_bayes.inference.optimize.optimize_local`, which is to be taken where the best q is asked for, not the
best q for a time. Adam is there to compare with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor

from amortized_bayes.calls import PerPointNames
from amortized_bayes.divergence import Divergence
from amortized_bayes.entrance import enter
from amortized_bayes.inference.families import Diagonal
from amortized_bayes.inference.members import score, start_of
from amortized_bayes.inference.settings import PAIRS
from amortized_bayes.joint import Gaussian, LogJoint, captured_or_plain, global_seed, joint_density, points_per_chunk
from amortized_bayes.limits import AtLeast, Different, Positive, Seed, limited
from amortized_bayes.seeding import torch_generator
from amortized_bayes.signatures import own_options
from amortized_bayes.types import Guide, Model

__all__ = ["RefineSettings", "Refined", "refine"]

Program = Callable[..., Sequence[Tensor]]

LONGEST = 1.0
"""Longest step of a coordinate where the Fisher information is the identity: of a mean, one scale."""
BETAS = (0.9, 0.99)
"""Of Adam."""
EPS = 1e-8


@limited
@dataclass(frozen=True)
class RefineSettings:
    """How to refine the q of each point.

    Args:
        steps: after how many steps each q is scored; 0 is the start. All points take as many as the largest.
        num_samples: S, draws of each q per step, in pairs: an even number.
        optimizer: natural gradients, or Adam in the same coordinates.
        learning_rate: rate of the first step.
        half_time: steps after which the rate has fallen to a half.
        num_score: fresh draws for the ELBO, the same at each number of steps.
        num_fit: draws of the guide that a Gaussian is fitted to, where its q is none.
        memory_budget: approximate bytes that one chunk of points may take; by default 64 MB, on a GPU 8 GB.

    Raises:
        TypeError: an option that does not exist, or of another type.
        ValueError: a number out of range.

    Example:
        >>> from amortized_bayes import RefineSettings
        >>> RefineSettings(steps=(0, 10)).steps
        (0, 10)
    """

    steps: Annotated[tuple[int, ...], Different(), AtLeast(0)] = (0, 1, 2, 5, 10, 20, 50)
    num_samples: Annotated[int, AtLeast(4), PAIRS] = 10
    optimizer: Literal["natural", "adam"] = "natural"
    learning_rate: Positive = 0.7
    half_time: Positive = 5.0
    num_score: Annotated[int, AtLeast(2)] = 500
    num_fit: Annotated[int, AtLeast(10)] = 100
    memory_budget: Positive | None = None


class Refined(NamedTuple):
    """B points after each of M numbers of steps, ``(M, B)`` in nats unless said otherwise.

    Args:
        steps: the numbers of steps, rising, ``(M,)``.
        elbo: ELBO of each q, on fresh draws.
        standard_error: its Monte Carlo error.
        gain: over the start, on the same draws.
        gain_error: its Monte Carlo error, 0 at the start.
        seconds: what the start of all points and their steps took until then, ``(M,)``; without the compilation of the
            model, and without scoring.
        q: mean and scale of each q in the end, ``(B, D)`` each, on the unconstrained space.
    """

    steps: tuple[int, ...]
    elbo: Tensor
    standard_error: Tensor
    gain: Tensor
    gain_error: Tensor
    seconds: Tensor
    q: Gaussian


@own_options
@limited
def refine(
    model: Model,
    guide: Guide | Gaussian | None,
    *args: Any,
    settings: RefineSettings | None = None,
    plate: str | None = None,
    per_point: PerPointNames = None,
    fixed: Mapping[str, Tensor] | None = None,
    seed: Seed = 0,
    progress: Callable[[int, int], None] | None = None,
    **kwargs: Any,
) -> Refined:
    """Take a few steps for each point from the guide's answer, and measure what each number of steps gains and costs.

    Args:
        model: Pyro program with a plate over data points; its parameters stay as they are.
        guide: where to start: a Pyro program (its q, or a Gaussian fitted to its draws), your own Gaussians on the
            unconstrained space, or ``None`` for the prior's moments.
        args: arguments of both programs: tensors, numpy arrays, and dicts and lists of them, with a row for each of B
            points, and whatever else the programs take.
        settings: how many steps, and how.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        fixed: values of the latents outside the plate, as from :func:`amortized_bayes.joint.draw_shared`.
        seed: random seed for all draws; torch's global generator is left as it was.
        progress: called with points done and points in all.
        kwargs: keyword arguments of model and guide.

    Raises:
        ValueError: as :func:`amortized_bayes.joint.log_joint`, or a guide that does not fit.
        Divergence: a q stopped being numbers.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.ones(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> found = ab.refine(model, guide, x, settings=ab.RefineSettings(steps=(0, 1, 10)))
        >>> found.gain.shape, bool((found.gain[-1] > found.gain[0]).all())
        (torch.Size([3, 4]), True)
    """
    settings = settings or RefineSettings()
    entered = enter(refine, model, guide, args, kwargs, plate=plate, per_point=per_point)
    joint = joint_density(entered.model, *entered.args, plate=entered.plate, fixed=fixed, **entered.kwargs)
    size = points_per_chunk(joint, settings.num_samples, settings.memory_budget)
    programs: dict[int, Program] = {}
    chunks, places = [], torch.arange(joint.num_points, device=joint.device).split(size)
    with global_seed(seed, "draws"):
        begin = _now(joint.device)
        start = start_of(joint, entered.guide, settings.num_fit, size)
        start_seconds = _now(joint.device) - begin
        for number, part in enumerate(places):
            generator = torch_generator(seed, "refine", number, device=joint.device)
            chunk = _Chunk(joint.select(part), settings, generator, programs)
            some = Gaussian(start.loc[part], start.scale[part])
            chunks.append(chunk.climb(some, torch_generator(seed, "score", number, device=joint.device)))
            if progress is not None:
                progress(int(part[-1]) + 1, joint.num_points)
    elbo, error, gain, gain_error = (torch.cat(part, -1) for part in zip(*(c.values for c in chunks), strict=True))
    seconds = start_seconds + torch.stack([chunk.seconds for chunk in chunks]).sum(0)
    q = Gaussian(*(torch.cat(part) for part in zip(*(chunk.q for chunk in chunks), strict=True)))
    return Refined(tuple(sorted({0, *settings.steps})), elbo, error, gain, gain_error, seconds, q)


def _now(device: torch.device) -> float:
    """The time, when a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class _Climbed(NamedTuple):
    """The first four fields of :class:`Refined`, ``(M, b)`` each, seconds ``(M,)``, and the q's at the end."""

    values: tuple[Tensor, Tensor, Tensor, Tensor]
    seconds: Tensor
    q: Gaussian


class _Chunk:
    """Points that take their steps at once, by one program for all chunks of as many."""

    def __init__(
        self, joint: LogJoint, settings: RefineSettings, generator: Generator, programs: dict[int, Program]
    ) -> None:
        self.joint, self.settings, self.generator, self.programs = joint, settings, generator, programs
        self.inputs = joint.inputs(settings.num_samples)

    @torch.no_grad()
    def climb(self, q: Gaussian, scoring: Generator) -> _Climbed:
        """From q to the largest number of steps."""
        settings, joint, spent = self.settings, self.joint, 0.0
        family = Diagonal(torch.ones_like(q.loc[0]))
        rows, points = family.rows(q), torch.arange(joint.num_points, device=joint.device)
        moments, log_w, seconds = [torch.zeros_like(rows) for _ in range(2)], [], []
        largest, state = max(settings.steps), scoring.get_state()
        if largest:
            self._slope(q.loc.expand(settings.num_samples, -1, -1))  # compiled before the clock starts
        for step in range(largest + 1):
            if step in settings.steps or step == 0:
                if not rows.isfinite().all():
                    raise Divergence(step, math.nan, f"a refined q is not finite after step {step}")
                scoring.set_state(state)  # the same draws each time
                max_rows = settings.num_samples * joint.num_points
                log_w.append(score(joint, family, points, rows, settings.num_score, max_rows, scoring))
                seconds.append(spent)
            if step < largest:
                begin = _now(joint.device)
                rows = self._step(family, rows, moments, step)
                spent += _now(joint.device) - begin
        scores = torch.stack(log_w)
        gain, root = scores - scores[0], math.sqrt(settings.num_score)
        values = (scores.mean(1), scores.std(1) / root, gain.mean(1), gain.std(1) / root)
        return _Climbed(values, torch.tensor(seconds, dtype=torch.float64), family.moments(rows))

    def _step(self, family: Diagonal, rows: Tensor, moments: list[Tensor], step: int) -> Tensor:
        noise = rows.new_empty(self.settings.num_samples // 2, len(rows), family.dim).normal_(generator=self.generator)
        drawn = family.draw(rows, torch.cat([noise, -noise]))
        gradient = drawn.pull(self._slope(drawn.z)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        white = family.whiten(rows, gradient)
        if self.settings.optimizer == "adam":
            for moment, power, beta in zip(moments, (1, 2), BETAS, strict=True):
                moment.lerp_(white**power, 1 - beta)
            first, second = (m / (1 - beta ** (step + 1)) for m, beta in zip(moments, BETAS, strict=True))
            white = first / (second.sqrt() + EPS)
        rate = self.settings.learning_rate / (1 + step / self.settings.half_time)
        return family.move(rows, family.unwhiten(rows, (rate * white).clamp(-LONGEST, LONGEST)), None)

    def _slope(self, z: Tensor) -> Tensor:
        """The gradient of log p(x, z), ``(S, b, D)``."""
        tensors, points = (z.contiguous(), *self.inputs), self.joint.num_points
        if points not in self.programs:
            others = [t.flip(0) for t in tensors]
            self.programs[points] = captured_or_plain(self._gradient, tensors, others, max(self.settings.steps))
        return self.programs[points](*tensors)[0]

    def _gradient(self, z: Tensor, index: Tensor, *data: Tensor) -> Sequence[Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            prior, likelihood = self.joint.terms(z.flatten(0, 1), index, *data)
            return torch.autograd.grad((prior + likelihood).sum(), [z])
