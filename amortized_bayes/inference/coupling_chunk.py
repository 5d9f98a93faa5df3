"""The points of one chunk climbing with affine couplings, by the kernel that is made for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from amortized_bayes.divergence import CHECK_EVERY
from amortized_bayes.guides.flow_layers import COUPLING_LOG_SCALE
from amortized_bayes.inference.coupling_kernel import coupling_kernel
from amortized_bayes.inference.flow_climb import BLOCK, MEMORY, FlowChunk, Program, rate_at
from amortized_bayes.inference.flow_points import PointFlows
from amortized_bayes.inference.settings import FlowSearchSettings
from amortized_bayes.joint import LogJoint, captured_or_plain
from amortized_bayes.keeping import kept

__all__ = ["CouplingChunk", "Packing", "kernel_serves"]

BETAS = (0.9, 0.999)
FEWEST, CACHE = 10, 17.5e6
"""Points of a chunk at least, and bytes of a cache that are there for parameters and moments."""
PAYS_FROM = 2e9
"""Moves of a parameter from which building the kernel, ten seconds or so where it is not kept from before, pays."""


def kernel_serves(joint: LogJoint, flows: PointFlows, search: FlowSearchSettings) -> bool:
    """Whether the kernel knows this flow and type, and can be built here, in a search that is long enough for that."""
    if flows.settings.family != "realnvp" or joint.dim < 2:
        return False
    moves = search.num_steps * joint.num_points * sum(p.numel() for p in flows.point.parameters())
    plain = joint.dtype == torch.float32 and joint.device.type == "cpu"
    return plain and moves >= PAYS_FROM and coupling_kernel() is not None


class Packing(NamedTuple):
    """How the parameters of a point's couplings lie in one row of numbers: rows of weights filled up to 16s.

    Args:
        sizes: sizes of the network of a layer, from its inputs to its outputs.
        layers: how many layers.
        dim: D.

    Example:
        >>> packing = Packing((1, 8, 2), 3, 2)
        >>> rows = packing.pack([torch.ones(5, *shape) for shape in packing.shapes])
        >>> rows.shape, [part.shape for part in packing.unpack(rows)][:2]
        (torch.Size([5, 608]), [torch.Size([5, 8, 1]), torch.Size([5, 8])])
    """

    sizes: tuple[int, ...]
    layers: int
    dim: int

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of a point's parameters: weights and biases in turn, then shift and log scale of its Gaussian."""
        network = [shape for i, o in pairwise(self.sizes) for shape in ((o, i), (o,))]
        return [*network * self.layers, (self.dim,), (self.dim,)]

    def pack(self, values: Sequence[Tensor]) -> Tensor:
        """The numbers of parameters ``(b, ...)``, ``(b, M)``."""
        return torch.cat([F.pad(value, (0, -value.shape[-1] % 16)).flatten(1) for value in values], 1)

    def unpack(self, rows: Tensor) -> list[Tensor]:
        """The inverse of :meth:`pack`."""
        padded = [(*shape[:-1], shape[-1] + -shape[-1] % 16) for shape in self.shapes]
        parts = rows.split([math.prod(shape) for shape in padded], 1)
        return [
            part.unflatten(1, wide)[..., : shape[-1]].contiguous()
            for part, wide, shape in zip(parts, padded, self.shapes, strict=True)
        ]


class CouplingChunk(FlowChunk):
    """As :class:`~amortized_bayes.inference.flow_climb.FlowChunk`, with couplings and Adam in one kernel.

    The same steps on the same draws: results differ by the rounding of float32.
    """

    @classmethod
    def most_points(cls, flows: PointFlows) -> int:
        """So many that their parameters and moments stay in the cache, and that a product of log p has enough rows."""
        return max(FEWEST, int(CACHE / sum(12 * p.numel() for p in flows.point.parameters())))

    def climb(self, program: Program | None, progress: Callable[[int], None]) -> Program | None:
        """Take all steps, by a captured gradient of log p or, with ``None``, by one captured here; return it."""
        kernel, search, packing = coupling_kernel(), self.search, self._packing()
        assert kernel is not None
        streams, points, draws, dim = self._streams("climb"), len(self.points), search.num_samples, self.joint.dim
        loc, scale = (part.contiguous() for part in self.start)
        sizes = torch.tensor([dim, packing.layers, draws, len(packing.sizes) - 1, *packing.sizes])
        rows = packing.pack(self.values)
        threads, scratch = torch.get_num_threads(), self._scratch_size(packing)
        moments, usual = rows.new_zeros(2, *rows.shape), rows.new_zeros(2, points)
        back, own = rows.new_empty(points, self._kept_size(packing)), rows.new_empty(threads, scratch)
        z, inputs = rows.new_empty(draws * points, dim), self.joint.inputs(draws)
        numbers, slope = self._numbers(0), torch.empty(0)
        noise = upcoming = self._block(streams)
        step, over = 0, False

        def now() -> list[object]:
            return [step, over, rows, usual, None if over else [moments, back, z, slope, numbers, noise]]

        with kept("flow", now, *streams) as loop:
            if loop.found is not None:
                step, over, rows, usual, more = loop.found
                moments, back, z, slope, numbers, noise = more or (moments, back, z, slope, numbers, noise)
            self.checked = max(0, step - 1), usual[1].clone()  # of the last step only the gradient is there
            while not over:
                # A call ends the step before and begins this one, while a point's numbers are at hand.
                if step and step % BLOCK == 0 and step < search.num_steps:
                    if loop.due or step % CHECK_EVERY == 0:
                        self.check(step - 1, usual[1], [rows, *moments])
                    loop.offer()
                    upcoming = self._block(streams)
                around = (noise[:, (step - 1) % BLOCK], upcoming[:, step % BLOCK])
                tensors = (numbers, loc, scale, *around, slope, z, rows, *moments, back, *usual, own)
                kernel(sizes, *tensors, points, noise[0].numel(), scratch, step > 0, step < search.num_steps, threads)
                noise = upcoming
                if step:
                    progress(step)
                over = step == search.num_steps
                if not over:
                    if program is None:
                        others, calls = [t.flip(0) for t in (z, *inputs)], self.num_chunks * search.num_steps
                        program = captured_or_plain(self._slope, (z, *inputs), others, calls)
                    (slope,) = (part.contiguous() for part in program(z, *inputs))
                    numbers, step = self._numbers(step), step + 1
            self.check(step, usual[1], [rows])
        self.values = packing.unpack(rows)
        self.parameters = dict(zip(self.parameters, self.values[:-2], strict=True))
        self.num_skipped += usual[1].long()
        return program

    def _block(self, streams: Sequence[Generator]) -> Tensor:
        """Draws for a block of steps, ``(b, BLOCK, S, D)``."""
        return self._paired_noise(streams).permute(2, 0, 1, 3).contiguous()

    def _numbers(self, step: int) -> Tensor:
        """``Numbers`` of the kernel's source."""
        search, bias = self.search, [1 - beta ** (step + 1) for beta in BETAS]
        rate = search.learning_rate * rate_at(step / search.num_steps) / bias[0]
        return torch.tensor([rate, *BETAS, math.sqrt(bias[1]), search.max_growth, MEMORY, COUPLING_LOG_SCALE])

    def _slope(self, z: Tensor, *inputs: Tensor) -> Sequence[Tensor]:
        """The gradient of log p(x, z) with respect to rows of z."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            log_prior, log_likelihood = self.joint.terms(leaf, *inputs)
            return torch.autograd.grad((log_prior + log_likelihood).sum(), [leaf])

    def _packing(self) -> Packing:
        split = self.joint.dim // 2
        sizes = (split, *self.flows.settings.hidden, 2 * (self.joint.dim - split))
        packing = Packing(sizes, self.flows.settings.num_flows, self.joint.dim)
        found = [tuple(value.shape[1:]) for value in self.values]
        assert found == packing.shapes, f"expected parameters of shapes {packing.shapes}, got {found}"
        return packing

    def _kept_size(self, packing: Packing) -> int:
        """Numbers of a point that the way back needs: ``Layout.kept`` of the kernel's source."""
        draws, dim = self.search.num_samples, self.joint.dim
        layer = draws * (sum(map(_padded, packing.sizes[:-1])) + 3 * (dim - dim // 2))
        return packing.layers * _padded(layer) + 2 * draws * dim

    def _scratch_size(self, packing: Packing) -> int:
        """Numbers that a thread works with: ``Layout.scratch`` of the kernel's source."""
        whole = sum(math.prod(shape[:-1]) * _padded(shape[-1]) for shape in packing.shapes)
        largest = max(_padded(i) * _padded(o) for i, o in pairwise(packing.sizes))
        return _padded(whole + largest + 2 * self.search.num_samples * max(map(_padded, packing.sizes)))


def _padded(size: int) -> int:
    return size + -size % 16
