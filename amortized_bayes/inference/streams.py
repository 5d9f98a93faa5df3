"""Batches and random numbers of a fit, each a function of seed and step, so that a fit can be taken up again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from amortized_bayes.seeding import torch_generator, torch_seed

__all__ = ["Batches", "Stream", "cuda_devices"]


class Batches:
    """Batches of distinct points, each epoch in an order of its own; what is left over at an epoch's end is left out.

    Args:
        num_data: N.
        batch_size: B, at most N.
        seed: of the orders.
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

    Args:
        seed: of the run.
        step: where the run starts.
        data: a tensor on the run's device.
    """

    def __init__(self, seed: int, step: int, data: Tensor) -> None:
        self.devices = cuda_devices(data)
        self.seed = torch_seed(seed, "draws", step)

    def __enter__(self) -> None:
        self.outside = self._get()
        torch.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        self._set(self.outside)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Give the outside its own stream back for a while."""
        inside = self._get()
        self._set(self.outside)
        try:
            yield
        finally:
            self.outside = self._get()
            self._set(inside)

    def _get(self) -> tuple[Tensor, list[Tensor]]:
        return torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in self.devices]

    def _set(self, state: tuple[Tensor, Sequence[Tensor]]) -> None:
        torch.set_rng_state(state[0])
        for device, value in zip(self.devices, state[1], strict=True):
            torch.cuda.set_rng_state(value, device)


def cuda_devices(data: Tensor) -> list[int]:
    """The GPU that holds ``data``, if one does."""
    return [data.device.index or 0] if data.is_cuda else []
