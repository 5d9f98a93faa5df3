"""Slots in which runs of :func:`~amortized_bayes.inference.optimize.optimize_local` take turns.

A captured graph serves one batch shape. So b slots are worked on at once; a run whose time is up leaves its slot to
the next of the queue. When the queue is empty and half of the slots are idle, the rest moves to half as many.
Runs whose residual says that they are not there yet go on for another round, and move faster the further it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from amortized_bayes.divergence import CHECK_EVERY, Divergence
from amortized_bayes.inference.families import Family
from amortized_bayes.inference.settings import LocalSettings
from amortized_bayes.joint import LogJoint, captured_or_plain
from amortized_bayes.keeping import Loop, kept

__all__ = ["Slots"]

BETAS = (0.9, 0.999)
GROWTH = 4.0
"""How many times faster than in the round before a run may move in the next."""
EPS = 1e-8
MIN_SLOTS = 8
CLOSER = 3
"""Times as many draws for a residual that is in doubt."""
MIN_BATCHES = 5
"""Batches of draws behind the error of a residual."""
STATE = (
    *("rows", "best", "best_score", "moments", "steps", "clock", "windows_left", "stopped_early", "evaluations"),
    *("residual", "residual_error", "pace", "start_log_w", "last", "number", "left", "active", "queue", "turn"),
    "moving",
)
"""What a search changes: of each run; its round, and who is in it; its turn within a window, and what moves there."""


class Slots:
    """Runs R, each for a point, of which b at a time are optimized.

    Args:
        joint: density of the B points.
        points: the point of each run, ``(R,)``.
        family: family in which q* is to be the best.
        start: member at which each run starts, ``(R, W)``.
        settings: how q* is looked for.
        generator: random generator for the draws.
        size: b.
    """

    def __init__(
        self,
        joint: LogJoint,
        points: Tensor,
        family: Family,
        start: Tensor,
        settings: LocalSettings,
        generator: Generator,
        size: int,
    ) -> None:
        self.joint, self.points, self.family = joint, points, family
        self.settings, self.generator = settings, generator
        self.rows, self.best = start.clone(), start.clone()
        self.best_score = torch.full_like(start[:, 0], -math.inf)
        runs = len(points)
        self.moments = start.new_zeros(2, *start.shape)
        self.steps, self.clock = start.new_zeros(runs, 1), start.new_zeros(runs, 1)
        self.windows_left = torch.full((runs,), settings.num_windows, device=points.device)
        self.stopped_early = torch.zeros(runs, dtype=torch.bool, device=points.device)
        self.evaluations = torch.zeros(runs, dtype=torch.long, device=points.device)
        self.residual, self.residual_error = start.new_zeros(2, runs, dtype=torch.double)
        self.pace = torch.ones_like(start)
        self.window = settings.max_steps // settings.num_windows
        kept = [self._pairs((joint.dim,)) for _ in range(math.ceil(settings.num_kept / settings.num_samples))]
        spread = torch.stack(kept).square().mean((0, 1)).sqrt()
        self.kept = [noise / spread for noise in kept]  # of variance 1: what is quadratic in a latent alone has no luck
        self.start_log_w = start.new_zeros(len(self.kept) * settings.num_samples // 2, runs)
        self.last = torch.zeros_like(self.best_score)
        self.number, self.left = 0, torch.arange(runs, device=points.device)
        self.active, self.queue = self.left[:0], self.left[:0]
        self.turn, self.moving = 0, list[Any]()
        self.size = self.num_slots = min(size, runs)
        self.programs: dict[int, Callable[..., Sequence[Tensor]]] = {}

    @torch.no_grad()
    def run(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Optimize all runs; ``best`` has the last rows, or the start where they were no better."""
        with kept("q*", self._state, self.generator) as loop:
            if loop.found is not None:
                self._load_state(loop.found)
            while self.number < self.settings.max_rounds and len(self.left):
                if not len(self.active):
                    self._begin_round()
                self._round(progress, loop)
                self.measure(self.left)
                self.left = self.left[self._is_far()]
                self.number += 1

    def _begin_round(self) -> None:
        """Let all that are left begin, from where they are, as many as there are slots."""
        if self.number:
            self._restart(self.left, GROWTH**self.number)
        self._resize(len(self.left))
        self.active, self.queue = self.left[: self.num_slots], self.left[self.num_slots :]
        self._evaluate(self.active, first=True)

    def _round(self, progress: Callable[[int, int], None] | None, loop: Loop) -> None:
        """Take each run to the end of its time."""
        total = len(self.points)
        while len(self.active):
            self._resize(len(self.active) + len(self.queue))
            self._climb(self.active, loop)
            self._evaluate(self.active)
            going = self.active[self.windows_left[self.active] > 0]
            free = self.num_slots - len(going)
            entering, self.queue = self.queue[:free], self.queue[free:]
            if len(entering):
                self._evaluate(entering, first=True)
            self.active = torch.cat([going, entering])
            if progress is not None:
                progress(total - len(self.queue) - len(self.active), total)

    def _state(self) -> dict[str, object]:
        """Everything that the search changes."""
        return {name: getattr(self, name) for name in STATE}

    def _load_state(self, state: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state[name])

    @torch.no_grad()
    def measure(self, runs: Tensor) -> None:
        """Note what a Newton step from the best rows of these runs would gain, and its standard error."""
        self.residual[runs], self.residual_error[runs] = self._measured(runs)

    def _is_far(self) -> Tensor:
        """Who among those left goes on for another round."""
        residual, error = self.residual[self.left], self.residual_error[self.left]
        if self.number:  # who was far once is held to the tolerance itself
            return residual > self.settings.tolerance
        # Of all others chance alone would send many on. Where it may hide much, more draws decide, which are not what
        # is reported: of high values measured again and low ones kept the mean would be too low.
        residual, error = residual.clone(), error.clone()
        doubtful = (residual > self.settings.tolerance) & (error > self.settings.tolerance)
        residual[doubtful], error[doubtful] = self._measured(self.left[doubtful], CLOSER)
        return residual > self.settings.tolerance + 2 * error

    def _measured(self, runs: Tensor, times: int = 1) -> tuple[Tensor, Tensor]:
        """Residuals of the best rows and their standard errors, by ``times`` as many draws as usual."""
        found = self.residual.new_zeros(2, len(runs))
        if not len(runs):
            return found[0], found[1]
        self._resize(len(runs))
        calls = times * max(MIN_BATCHES, math.ceil(self.settings.num_residual / self.settings.num_samples))
        self.evaluations[runs] += calls * self.settings.num_samples
        for places in torch.arange(len(runs), device=runs.device).split(self.num_slots):
            some = runs[places]
            rows, evaluate, gradients = self.best[some], self._bind(some), []
            frame = self.family.frame(rows)
            for _ in range(calls):
                noise = self._pairs((len(some), self.joint.dim), paired=False)
                drawn = self.family.draw(rows, noise, frame)
                gradient = drawn.pull(evaluate(drawn.z)[1])
                gradients.append(self.family.whiten(rows, gradient).double())
            found[:, places] = torch.stack(_half_square(torch.stack(gradients)))
        return found[0], found[1]

    def _restart(self, runs: Tensor, fastest: float) -> None:
        """Give runs their time again, from where they are, at a pace for the distance that a Newton step has."""
        self.rows[runs] = self.best[runs]
        self.moments[:, runs], self.steps[runs], self.clock[runs] = 0.0, 0.0, 0.0
        self.windows_left[runs], self.stopped_early[runs] = self.settings.num_windows, False
        distance = (2 * self.residual[runs, None]).sqrt().to(self.rows)
        self.pace[runs] = self.family.pace(self.best[runs], distance).clamp(1.0, fastest)

    def _climb(self, active: Tensor, loop: Loop) -> None:
        """A window of Adam on the active runs, each with its own clock and step count."""
        evaluate = self._bind(active)
        settings, rates = self.settings, self.family.rates * self.pace[active]
        if not self.turn:
            rows, clock = self.rows[active], self.clock[active]
            velocity = (1 - clock) / (self.windows_left[active, None] * self.window)
            moved = [rows, self.moments[:, active], self.steps[active], clock, velocity]
            self.moving = [self.family.frame(rows), *moved]
        frame, rows, moments, steps, clock, velocity = self.moving
        while self.turn < self.window:
            drawn = self.family.draw(rows, self._pairs((len(active), self.joint.dim)), frame)
            gradient = -drawn.pull(evaluate(drawn.z)[1]).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            steps += 1
            clock += velocity
            moments[0].lerp_(gradient, 1 - BETAS[0])
            moments[1].lerp_(gradient.square(), 1 - BETAS[1])
            rate = settings.learning_rate * 0.5 * (1 + torch.cos(math.pi * clock.clamp(max=1)))
            spread = (moments[1] / (1 - BETAS[1] ** steps)).sqrt() + EPS
            rows = self.family.move(rows, -rates * rate * moments[0] / (1 - BETAS[0] ** steps) / spread, frame)
            self.turn, self.moving[1] = self.turn + 1, rows
            if loop.due or self.turn == self.window or self.turn % CHECK_EVERY == 0:
                self._check_finite(active, steps, rows, *moments)
            loop.offer()
        self.turn, self.moving = 0, []
        self.rows[active], self.moments[:, active], self.steps[active] = rows, moments, steps
        self.clock[active] = clock
        self.evaluations[active] += self.window * settings.num_samples

    def _check_finite(self, active: Tensor, steps: Tensor, *moving: Tensor) -> None:
        """Refuse rows that are no numbers: what is reported would be where they started.

        Raises:
            Divergence: they are not.
        """
        bad = ~torch.stack([part.isfinite().all(-1) for part in moving]).all(0)
        if bad.any():
            run = int(active[bad][0])
            self._refuse(f"q* of point {int(self.points[run])} is not finite", int(steps[bad][0]))

    def _refuse(self, words: str, step: int) -> None:
        where = f" of round {self.number + 1}" if self.number else ""
        raise Divergence(step, math.nan, f"{words} after step {step}{where}")

    def _evaluate(self, runs: Tensor, *, first: bool = False) -> None:
        """Score runs on the kept draws, keep rows better than the start, let what gains nothing stop early."""
        for some in runs.split(self.num_slots):
            rows, evaluate = self.rows[some], self._bind(some)
            log_w = []
            for noise in self.kept:
                drawn = self.family.draw(rows, noise[:, None].expand(-1, len(some), -1))
                both = evaluate(drawn.z)[0] - drawn.log_q
                log_w.append(both.reshape(2, -1, len(some)).mean(0))  # of a draw and its opposite
            pairs = torch.cat(log_w).to(self.start_log_w)  # data of another precision than the guide's raise that of p
            if not first:
                self._check_density(some, pairs)
            score = pairs.mean(0).nan_to_num(nan=-math.inf)
            better = torch.ones_like(some, dtype=torch.bool)
            if first:
                self.start_log_w[:, some] = pairs
            else:
                self._tick(some, score - self.last[some])
                # The last iterate, where the step is least, counts; the start, where it is surely better: few draws are
                # kept, and all points share them, so that their luck would bring many a start back.
                gain = pairs - self.start_log_w[:, some]
                worse = gain.mean(0) < -2 * gain.std(0) / math.sqrt(len(gain))
                better = (self.windows_left[some] == 0) & ~worse & score.isfinite()
            self.last[some] = score
            where = some[better]
            self.best[where], self.best_score[where] = rows[better], score[better]
            self.evaluations[some] += 2 * len(pairs)

    def _check_density(self, runs: Tensor, log_w: Tensor) -> None:
        """Refuse a search in which no draw has a density any more: one run may be lost, which then has its start.

        Raises:
            Divergence: no log weight of these runs is finite, ``(draws, r)``, and some were at the start.
        """
        alone = len(runs) == 1 and len(self.points) > 1
        if not alone and not log_w.isfinite().any() and self.start_log_w[:, runs].isfinite().any():
            self._refuse("log p(x, z) is not finite at any draw of q*", int(self.steps[runs].max()))

    def _tick(self, runs: Tensor, gain: Tensor) -> None:
        still = ~(gain > self.settings.tolerance) & ~self.stopped_early[runs]
        left = self.windows_left[runs] - 1
        self.windows_left[runs] = torch.where(still, (left + 1) // 2, left)
        self.stopped_early[runs] |= still & (left > 0)

    def _resize(self, needed: int) -> None:
        """Take all slots, halved while half of them would be idle."""
        self.num_slots = self.size
        while self.num_slots >= 2 * max(needed, MIN_SLOTS):
            self.num_slots = math.ceil(self.num_slots / 2)

    def _bind(self, runs: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Log p(x, z) and its gradient for up to b runs: ``(S, r, D)`` to ``(S, r)`` and ``(S, r, D)``."""
        filled = runs[torch.arange(self.num_slots, device=runs.device) % len(runs)]
        inputs = self.joint.select(self.points[filled]).inputs(self.settings.num_samples)

        def evaluate(z: Tensor) -> tuple[Tensor, Tensor]:
            missing = self.num_slots - len(runs)
            if missing:
                z = torch.cat([z, *[z] * (missing // len(runs)), z[:, : missing % len(runs)]], 1)
            tensors = (z.contiguous(), *inputs)
            if self.num_slots not in self.programs:
                others = [t.flip(0) for t in tensors]
                turns = math.ceil(len(self.points) / self.num_slots)
                calls = turns * (self.settings.max_steps + (self.settings.num_windows + 1) * len(self.kept))
                self.programs[self.num_slots] = captured_or_plain(self._program, tensors, others, calls)
            log_p, grad = self.programs[self.num_slots](*tensors)
            return log_p[:, : len(runs)], grad[:, : len(runs)]

        return evaluate

    def _program(self, z: Tensor, index: Tensor, *data: Tensor) -> Sequence[Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            prior, likelihood = self.joint.terms(z.flatten(0, 1), index, *data)
            log_p = (prior + likelihood).reshape(z.shape[:-1])
            (grad,) = torch.autograd.grad(log_p.sum(), z)
        return log_p.detach(), grad

    def _pairs(self, shape: tuple[int, ...], *, paired: bool = True) -> Tensor:
        """S draws of noise, the second half minus the first, ``(S, *shape)``."""
        num = self.settings.num_samples
        noise = torch.empty(num // 2 if paired else num, *shape, dtype=self.rows.dtype, device=self.rows.device)
        noise.normal_(generator=self.generator)
        return torch.cat([noise, -noise]) if paired else noise


def _half_square(samples: Tensor) -> tuple[Tensor, Tensor]:
    """½|E g|² without bias, and its standard error by the jackknife, ``(r,)`` twice, from batch means ``(M, r, W)``."""
    num, total = len(samples), samples.sum(0)
    own = samples.square().sum(-1)  # (S, r)
    pairs = total.square().sum(-1) - own.sum(0)
    value = 0.5 * pairs / (num * (num - 1))
    with_one = (samples * total).sum(-1) - own
    left_out = 0.5 * (pairs - 2 * with_one) / ((num - 1) * (num - 2))
    error = ((num - 1) * (left_out - left_out.mean(0)).square().mean(0)).sqrt()
    return value, error
