"""Batches and random numbers of a fit, each a function of seed and step, so that a fit can be taken up again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from amortized_bayes.points import PointRows
from amortized_bayes.seeding import torch_generator, torch_seed
from amortized_bayes.sparse_rows import SparseRows

__all__ = ["Batches", "Stream", "batch_length", "cuda_devices"]


def batch_length(num_data: int, at_most: int) -> int:
    """Size of batches such that next to no point is left out of an epoch.

    Example:
        >>> batch_length(499, 250), batch_length(10_000, 250), batch_length(60, 250)
        (249, 250, 60)
    """
    return num_data // math.ceil(num_data / at_most)


class Batches:
    """Batches of distinct points, each epoch in an order of its own; what is left over at an epoch's end is left out.

    Args:
        num_data: N.
        batch_size: B, at most N.
        seed: random seed for the orders.
        device: where the indices live.
    """

    def __init__(self, num_data: int, batch_size: int, seed: int, device: torch.device) -> None:
        self.num_data, self.batch_size, self.seed, self.device = num_data, batch_size, seed, device
        self.per_epoch = num_data // batch_size
        self._epoch = -1
        self._order: Sequence[Tensor] = ()

    def __getitem__(self, step: int) -> Tensor:
        """Indices of the batch at ``step``, ``(B,)``."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(self.num_data, generator=torch_generator(self.seed, "batches", epoch))
            self._order = order[: self.per_epoch * self.batch_size].to(self.device).split(self.batch_size)
            self._epoch = epoch
        return self._order[place]


class Stream:
    """A stream of random numbers of its own for a run, which what happens between its records does not touch.

    Entered, it is torch's global stream; left, it keeps its place and the outside has its own stream back.

    Args:
        seed: random seed of the run.
        data: a tensor on the run's device.
    """

    def __init__(self, seed: int, data: Tensor | PointRows | SparseRows) -> None:
        self.devices = cuda_devices(data)
        with torch.random.fork_rng(devices=self.devices):
            torch.manual_seed(torch_seed(seed, "draws"))
            self.place = self._get()
        self.outside = self.place

    def __enter__(self) -> None:
        self.outside = self._get()
        self._set(self.place)

    def __exit__(self, *_: object) -> None:
        self.place = self._get()
        self._set(self.outside)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Give the outside its own stream back for a while."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def state(self) -> dict[str, Tensor]:
        """Where the stream is, on each device."""
        return {f"draws.{i}": place for i, place in enumerate(self.place)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a state of :meth:`state`; one of other devices leaves the stream at its start."""
        places = [state[f"draws.{i}"].cpu() for i in range(len(self.place)) if f"draws.{i}" in state]
        if [p.shape for p in places] == [p.shape for p in self.place]:
            self.place = places

    def _get(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self.devices)]

    def _set(self, state: Sequence[Tensor]) -> None:
        torch.set_rng_state(state[0])
        for device, value in zip(self.devices, state[1:], strict=True):
            torch.cuda.set_rng_state(value, device)


def cuda_devices(data: Tensor | PointRows | SparseRows) -> list[int]:
    """The GPU that holds ``data``, if one does."""
    return [data.device.index or 0] if data.is_cuda else []
