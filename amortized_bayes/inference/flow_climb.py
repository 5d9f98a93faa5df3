"""The points of one chunk of :func:`~amortized_bayes.inference.flow_search.optimize_flow`, climbing at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import torch
from torch import Generator, Tensor

from amortized_bayes.divergence import CHECK_EVERY, Divergence
from amortized_bayes.inference.flow_points import Parameters, PointFlows, gaussian_draws
from amortized_bayes.inference.settings import FlowSearchSettings
from amortized_bayes.joint import Gaussian, LogJoint, captured_or_plain
from amortized_bayes.keeping import kept
from amortized_bayes.seeding import torch_generator, torch_seed

__all__ = ["BLOCK", "MEMORY", "FlowChunk", "Program", "rate_at"]

Program = Callable[..., Sequence[Tensor]]

BLOCK = 20
"""Steps for which draws are made at once: one call per point and block, not one per step."""
MEMORY = 0.05
"""Weight of the newest gradient in what is usual at a point."""


class FlowChunk:
    """Flows of b points, each with parameters, moments and random streams of its own.

    The parameters are those of the flows, and ``base.loc`` and ``base.log_scale``, by which the Gaussian moves, in its
    own scales.

    Args:
        joint: density of the b points.
        start: where they start, ``(b, D)``.
        flows: the family.
        search: how the best flow is searched.
        points: place of each point among all, by which its random streams are named.
        seed: random seed for all draws.
    """

    def __init__(
        self,
        joint: LogJoint,
        start: Gaussian,
        flows: PointFlows,
        search: FlowSearchSettings,
        points: Sequence[int],
        seed: int,
    ) -> None:
        self.joint, self.start, self.flows, self.search = joint, start, flows, search
        self.points, self.seed = points, seed
        self.parameters = flows.init(start, [torch_seed(seed, "flow", "init", point) for point in points])
        self.values = [*self.parameters.values(), torch.zeros_like(start.loc), torch.zeros_like(start.loc)]
        self.num_skipped = torch.zeros(len(points), dtype=torch.long, device=joint.device)
        self.checked = 0, self.num_skipped

    num_chunks = 1
    """Chunks that the program serves, this one among them."""

    @classmethod
    def most_points(cls, flows: PointFlows) -> int | None:
        """Points that a chunk has at most, whatever the memory."""
        return None

    def climb(self, program: Program | None, progress: Callable[[int], None]) -> Program | None:
        """Take all steps, by a captured program or, with ``None``, by one captured here; return it.

        Steps that were taken before a kill are not taken again.
        """
        search, streams, values = self.search, self._streams("climb"), self.values
        inputs = (*self.start, *self.joint.inputs(search.num_samples))
        rates = [search.learning_rate * _share(value) for value in values]
        groups = [{"params": [value], "lr": rate} for value, rate in zip(values, rates, strict=True)]
        adam = torch.optim.Adam(groups, fused=True)  # works entry by entry: no point sees the moments of another
        moments = [[torch.zeros_like(value), torch.zeros_like(value)] for value in values]
        usual, noise, step = torch.zeros_like(self.start.loc[:, 0]), torch.empty(0), 0

        def now() -> list[object]:
            return [step, values, None if step == search.num_steps else moments, usual, self.num_skipped]

        with kept("flow", now, *streams) as loop:
            if loop.found is not None:
                step, known, moments, usual, self.num_skipped = loop.found
                for value, before in zip(values, known, strict=True):
                    value.copy_(before)
            for value, (first, second) in zip(values, moments or [], strict=bool(moments)):
                count = torch.tensor(float(step), device=value.device)
                adam.state[value] = {"step": count, "exp_avg": first, "exp_avg_sq": second}
            self.checked = step, self.num_skipped.clone()
            while step < search.num_steps:
                if step % BLOCK == 0:  # here no draws are left that were made at once
                    if loop.due or step % CHECK_EVERY == 0:
                        self.check(step, self.num_skipped, [*values, *chain(*moments)])
                    loop.offer()
                    noise = self._paired_noise(streams)
                tensors = (noise[step % BLOCK], *inputs)
                if program is None:
                    program = captured_or_plain(
                        self._program, (*tensors, *values), self._others(tensors), self.num_chunks * search.num_steps
                    )
                norm, *gradients = program(*tensors, *values)
                factor, usual = self._cut(norm, usual)
                if bool((factor < 1).any()):  # seldom: a pass over all gradients costs as much as that of Adam
                    gradients = [_scaled(gradient, factor) for gradient in gradients]
                for value, gradient in zip(values, gradients, strict=True):
                    value.grad = gradient
                for group, rate in zip(adam.param_groups, rates, strict=True):
                    group["lr"] = rate * rate_at(step / search.num_steps)
                adam.step()
                step += 1
                progress(step)
            self.check(step, self.num_skipped, values)
        return program

    def check(self, step: int, skipped: Tensor, tensors: Iterable[Tensor]) -> None:
        """Refuse parameters that are no numbers, and a search in which no gradient is one: the start would be reported.

        Args:
            step: how many were taken.
            skipped: of them, those that each point left out, ``(b,)``.
            tensors: what moves, ``(b, ...)`` each.

        Raises:
            Divergence: something is not finite, or no point has had a gradient since it was looked at last.
        """
        for tensor in tensors:
            if not bool(tensor.sum().isfinite()):  # which costs less than a look at each entry
                bad = ~tensor.isfinite().flatten(1).all(1)
                if bad.any():
                    point = self.points[int(bad.nonzero()[0])]
                    raise Divergence(step, math.nan, f"the flow of point {point} is not finite after step {step}")
        before, known = self.checked
        if step - before >= CHECK_EVERY:  # and not whenever a state is kept, on which no result may depend
            if bool((skipped - known >= step - before).all()):
                words = f"no gradient of log p(x, z) was finite at any point from step {before + 1} to {step}"
                raise Divergence(step, math.nan, words)
            self.checked = step, skipped.clone()

    @torch.no_grad()
    def report(self) -> dict[str, Tensor]:
        """Choose between flow and start for each point, and score what was chosen.

        Returns:
            Columns of :class:`~amortized_bayes.inference.flow_search.FlowOptimum` by name, and ``loc`` and ``scale`` of
            the Gaussian of what was chosen.
        """
        start, end = self._log_weights("kept", self.search.num_kept)
        gain, error = _mean(end - start)
        improved = gain > error  # a NaN is no gain
        start, end = self._log_weights("score", self.search.num_score)
        end = torch.where(improved, end, start)
        base = self._base(self.values, self.start)
        found = {"elbo_start": start.mean(0), "improved": improved, "num_skipped": self.num_skipped}
        found["elbo_star"], found["standard_error"] = _mean(end)
        found["gain"], found["gain_error"] = _mean(end - start)
        for name in Gaussian._fields:
            found[name] = torch.where(improved[:, None], getattr(base, name), getattr(self.start, name))
        return found

    def _program(self, noise: Tensor, loc: Tensor, scale: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
        """Length of each point's gradient of −L, ``(b,)``, and that gradient by parameter."""
        inputs, values = tensors[: -len(self.values)], tensors[-len(self.values) :]
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in values]
            draws = self._draw(leaves, Gaussian(loc, scale), noise, path=True)
            gradients = torch.autograd.grad(-self._weigh(*draws, *inputs).mean(0).sum(), leaves)
        gradients = [g.contiguous() for g in gradients]  # fused Adam reads memory in order
        squares = torch.stack([g.flatten(1).square().sum(-1) for g in gradients])
        return squares.sum(0).sqrt(), *gradients

    def _draw(
        self, values: Sequence[Tensor], start: Gaussian, noise: Tensor, *, path: bool = False
    ) -> tuple[Tensor, Tensor]:
        parameters: Parameters = dict(zip(self.parameters, values[:-2], strict=True))
        return self.flows.sample(parameters, self._base(values, start), noise, path=path)

    def _weigh(self, z: Tensor, log_q: Tensor, *inputs: Tensor) -> Tensor:
        """Log p − log q of draws, ``(S, b)``."""
        log_prior, log_likelihood = self.joint.terms(z.flatten(0, 1), *inputs)
        return (log_prior + log_likelihood).reshape(log_q.shape) - log_q

    def _base(self, values: Sequence[Tensor], start: Gaussian) -> Gaussian:
        *_, shift, log_scale = values
        return Gaussian(start.loc + start.scale * shift, start.scale * log_scale.exp())

    def _cut(self, norm: Tensor, usual: Tensor) -> tuple[Tensor, Tensor]:
        """Factor on each point's gradient, 0 where it is not finite, and what length is usual now, ``(b,)`` twice."""
        finite, known = norm.isfinite(), usual > 0
        self.num_skipped += ~finite
        longest = torch.where(known, self.search.max_growth * usual, norm)
        factor = torch.where(finite, (longest / norm.clamp(min=1e-30)).clamp(max=1.0), 0.0)
        newest = torch.where(known, usual.lerp(torch.minimum(norm, longest), MEMORY), norm)
        return factor, torch.where(finite, newest, usual)

    def _log_weights(self, name: str, num: int) -> tuple[Tensor, Tensor]:
        """Log p − log q of the start and of the flow on common draws, ``(num, b)`` each, in double precision."""
        streams, found = self._streams(name), []
        # Without gradients, four times as many draws fit.
        for block in torch.arange(num).split(4 * self.search.num_samples):
            noise, inputs = self._noise(streams, len(block)), self.joint.inputs(len(block))
            start = gaussian_draws(self.start, noise[..., : self.joint.dim])
            pair = [self._weigh(*draws, *inputs) for draws in (start, self._draw(self.values, self.start, noise))]
            found.append(torch.stack(pair).double())
        start, end = torch.cat(found, 1)
        return start, end

    def _streams(self, name: str) -> list[Generator]:
        return [torch_generator(self.seed, "flow", name, point, device=self.joint.device) for point in self.points]

    def _noise(self, streams: Sequence[Generator], num: int) -> Tensor:
        """Standard normals, each point's from its own stream, ``(num, b, W)``."""
        noise = self.start.loc.new_empty(len(streams), num, self.flows.noise_dim)
        for own, stream in zip(noise, streams, strict=True):
            own.normal_(generator=stream)
        return noise.transpose(0, 1)

    def _paired_noise(self, streams: Sequence[Generator]) -> Tensor:
        """Draws for a block of steps, ``(BLOCK, S, b, W)``; those of z_0 in the second half are minus the first."""
        num, dim = self.search.num_samples, self.joint.dim
        noise = self._noise(streams, BLOCK * num).unflatten(0, (BLOCK, num))
        noise[:, num // 2 :, :, :dim] = -noise[:, : num // 2, :, :dim]
        return noise

    def _others(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Inputs to check the captured program on, at parameters of which none is zero."""
        generator = torch_generator(self.seed, "flow", "check", device=self.joint.device)
        moved = [v + 0.1 * torch.empty_like(v).normal_(generator=generator) for v in self.values]
        return [*(t.flip(0) for t in tensors), *moved]


def _share(value: Tensor) -> float:
    """Share of the step size for a parameter: all weights of a unit move at once, so that wide layers take less."""
    return min(1.0, 32 / value.shape[-1]) if value.dim() == 3 else 1.0


def rate_at(done: float) -> float:
    """Share of the highest step size: a cosine down to 0 after a short rise."""
    return min(1.0, done / 0.1 + 0.01) * 0.5 * (1 + math.cos(math.pi * done))


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """The gradient of each point times its factor; 0 times a NaN is 0 here."""
    factor = factor.reshape(-1, *[1] * (gradient.dim() - 1))
    return torch.where(factor > 0, gradient * factor, 0.0)


def _mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over draws and its standard error, ``(b,)`` twice."""
    return values.mean(0), values.std(0) / math.sqrt(len(values))
