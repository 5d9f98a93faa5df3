"""The points of one chunk of :func:`~amortized_bayes.inference.flow_search.optimize_flow`, climbing at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from amortized_bayes.inference.flow_families import FlowFamily
from amortized_bayes.inference.flow_networks import Parameters
from amortized_bayes.inference.settings import FlowSearchSettings
from amortized_bayes.joint import Gaussian, LogJoint, captured_or_plain
from amortized_bayes.seeding import torch_generator

__all__ = ["FlowChunk"]

Program = Callable[..., Sequence[Tensor]]

BLOCK = 20
"""Steps for which draws are made at once: one call per point and block, not one per step."""
MEMORY = 0.05
"""Weight of the newest gradient in what is usual at a point."""


class FlowChunk:
    """Flows of b points, of which each has its own parameters, moments and random streams.

    The parameters are those of the family, and ``base.loc`` and ``base.log_scale``, by which the Gaussian moves, in
    its own scales.

    Args:
        joint: density of the b points.
        start: where they start, ``(b, D)``.
        family: of flows.
        settings: how the best flow is looked for.
        points: place of each point among all, by which its random streams are named.
        seed: of all draws.
    """

    def __init__(
        self,
        joint: LogJoint,
        start: Gaussian,
        family: FlowFamily,
        settings: FlowSearchSettings,
        points: Sequence[int],
        seed: int,
    ) -> None:
        self.joint, self.start, self.family, self.settings = joint, start, family, settings
        self.points, self.seed = points, seed
        each = [family.init(1, joint.dim, g, joint.dtype) for g in self._streams("init")]
        still = torch.zeros_like(start.loc)
        self.initial = {name: torch.cat([one[name] for one in each]) for name in each[0]}
        self.initial |= {"base.loc": still, "base.log_scale": still}
        self.parameters = {name: value.clone() for name, value in self.initial.items()}
        self.num_skipped = torch.zeros(len(points), dtype=torch.long, device=joint.device)

    def climb(self, program: Program | None, progress: Callable[[int], None]) -> Program:
        """Take all steps, by a captured program or, with ``None``, by one captured here; return it."""
        settings, streams = self.settings, self._streams("climb")
        inputs, values = (*self.start, *self.joint.inputs(settings.num_samples)), list(self.parameters.values())
        adam = torch.optim.Adam(values, fused=True)  # works entry by entry: no point sees the moments of another
        usual, noise = torch.zeros_like(self.start.loc[:, 0]), torch.empty(0)
        for step in range(settings.num_steps):
            if step % BLOCK == 0:
                noise = self._paired_noise(streams)
            tensors = (noise[step % BLOCK], *inputs)
            if program is None:
                program = captured_or_plain(self._program, (*tensors, *values), self._others(tensors, values))
            norm, *gradients = program(*tensors, *values)
            factor, usual = self._cut(norm, usual)
            if bool((factor < 1).any()):  # seldom: a pass over all gradients costs as much as that of Adam
                gradients = [_scaled(gradient, factor) for gradient in gradients]
            for value, gradient in zip(values, gradients, strict=True):
                value.grad = gradient
            fall = 0.5 * (1 + math.cos(math.pi * step / settings.num_steps))
            adam.param_groups[0]["lr"] = settings.learning_rate * fall
            adam.step()
            progress(step + 1)
        assert program is not None
        return program

    @torch.no_grad()
    def report(self) -> tuple[Tensor, ...]:
        """Put back the start where nothing better was found, and score.

        Returns:
            L of the flow, its error, L of the start, gain, its error, whether the flow was kept, steps left out, all
            ``(b,)``; location and scale of the flow, ``(b, D)``.
        """
        settings = self.settings
        start, end = self._log_weights("kept", settings.num_kept)
        gain, error = _mean(end - start)
        improved = gain > error  # a NaN is no gain
        for name, value in self.parameters.items():
            value[~improved] = self.initial[name][~improved]
        start, end = self._log_weights("score", settings.num_score)
        scores = (*_mean(end), start.mean(0), *_mean(end - start), improved, self.num_skipped)
        return (*scores, *self._base(self.parameters, *self.start))

    @property
    def flow_parameters(self) -> dict[str, Tensor]:
        """The parameters of the family, without those by which the Gaussian moved."""
        return {name: value for name, value in self.parameters.items() if not name.startswith("base.")}

    def _program(self, noise: Tensor, loc: Tensor, scale: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
        """Length of each point's gradient of −L, ``(b,)``, and that gradient by parameter."""
        inputs, values = tensors[: -len(self.parameters)], tensors[-len(self.parameters) :]
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in values]
            parameters = dict(zip(self.parameters, leaves, strict=True))
            log_w = self._weigh(parameters, Gaussian(loc, scale), noise, *inputs, path=True)
            gradients = torch.autograd.grad(-log_w.mean(0).sum(), leaves)
        squares = torch.stack([g.flatten(1).square().sum(-1) for g in gradients])
        return squares.sum(0).sqrt(), *gradients

    def _weigh(
        self, parameters: Parameters, start: Gaussian, noise: Tensor, *inputs: Tensor, path: bool = False
    ) -> Tensor:
        """Log p − log q of draws, ``(S, b)``."""
        z, log_q = self.family.sample(parameters, *self._base(parameters, *start), noise, path=path)
        log_prior, log_likelihood = self.joint.terms(z.flatten(0, 1), *inputs)
        return (log_prior + log_likelihood).reshape(log_q.shape) - log_q

    def _base(self, parameters: Parameters, loc: Tensor, scale: Tensor) -> Gaussian:
        return Gaussian(loc + scale * parameters["base.loc"], scale * parameters["base.log_scale"].exp())

    def _cut(self, norm: Tensor, usual: Tensor) -> tuple[Tensor, Tensor]:
        """Factor on each point's gradient, 0 where it is not finite, and what length is usual now, ``(b,)`` twice."""
        finite, known = norm.isfinite(), usual > 0
        self.num_skipped += ~finite
        longest = torch.where(known, self.settings.max_growth * usual, norm)
        factor = torch.where(finite, (longest / norm.clamp(min=1e-30)).clamp(max=1.0), 0.0)
        newest = torch.where(known, usual.lerp(torch.minimum(norm, longest), MEMORY), norm)
        return factor, torch.where(finite, newest, usual)

    def _log_weights(self, name: str, num: int) -> tuple[Tensor, Tensor]:
        """Log p − log q of the start and of the flow on common draws, ``(num, b)`` each, in double precision."""
        streams, found = self._streams(name), []
        # Without gradients, four times as many draws fit.
        for block in torch.arange(num).split(4 * self.settings.num_samples):
            noise, inputs = self._noise(streams, len(block)), self.joint.inputs(len(block))
            pair = [self._weigh(p, self.start, noise, *inputs).double() for p in (self.initial, self.parameters)]
            found.append(torch.stack(pair))
        start, end = torch.cat(found, 1)
        return start, end

    def _streams(self, name: str) -> list[Generator]:
        return [torch_generator(self.seed, "flow", name, point, device=self.joint.device) for point in self.points]

    def _noise(self, streams: Sequence[Generator], num: int) -> Tensor:
        """Standard normals, each point's from its own stream, ``(num, b, W)``."""
        noise = self.start.loc.new_empty(len(streams), num, self.family.noise_dim(self.joint.dim))
        for own, stream in zip(noise, streams, strict=True):
            own.normal_(generator=stream)
        return noise.transpose(0, 1)

    def _paired_noise(self, streams: Sequence[Generator]) -> Tensor:
        """Draws for a block of steps, ``(BLOCK, S, b, W)``; those of z_0 in the second half are minus the first."""
        num, dim = self.settings.num_samples, self.joint.dim
        noise = self._noise(streams, BLOCK * num).unflatten(0, (BLOCK, num))
        noise[:, num // 2 :, :, :dim] = -noise[:, : num // 2, :, :dim]
        return noise

    def _others(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
        """Inputs to check the captured program on, at parameters of which none is zero."""
        generator = torch_generator(self.seed, "flow", "check", device=self.joint.device)
        moved = [v + 0.1 * torch.empty_like(v).normal_(generator=generator) for v in values]
        return [*(t.flip(0) for t in tensors), *moved]


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """The gradient of each point times its factor; 0 times a NaN is 0 here."""
    factor = factor.reshape(-1, *[1] * (gradient.dim() - 1))
    return torch.where(factor > 0, gradient * factor, 0.0)


def _mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over draws and its standard error, ``(b,)`` twice."""
    return values.mean(0), values.std(0) / math.sqrt(len(values))
