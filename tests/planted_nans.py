"""One number of a search or a walk made nan at some call, as a fault of the machine or of a kernel would."""

import math
from collections.abc import Callable
from typing import Any

import torch

from amortized_bayes.evaluation import annealing, hmc
from amortized_bayes.inference import coupling_chunk
from amortized_bayes.inference.families import Diagonal
from amortized_bayes.inference.flow_climb import FlowChunk


def at_call(number: int, spoil: Callable[..., None], real: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose arguments and result are spoilt at its n-th call, and at no other."""
    count = [0]

    def call(*given: Any, **named: Any) -> Any:
        result = real(*given, **named)
        count[0] += 1
        if count[0] == number:
            spoil(result, *given)
        return result

    return call


def nan_in_qstar(patch, step):
    """A row of q* at its n-th step."""
    spoil = lambda rows, *_: rows[:1].fill_(math.nan)  # noqa: E731
    patch.setattr(Diagonal, "move", at_call(step, spoil, Diagonal.move))


def nan_in_flow(patch, step):
    """A parameter of one point's flow at its n-th step."""

    def spoil(_, chunk, *__):
        chunk.values[0][0].flatten()[0] = math.nan

    patch.setattr(FlowChunk, "_cut", at_call(step, spoil, FlowChunk._cut))


def nan_in_kernel(patch, step):
    """The same in a search by the kernel for couplings."""
    kernel = coupling_chunk.coupling_kernel()

    def spoil(_, sizes, numbers, loc, scale, ended, begun, slope, z, rows, *__):
        rows[0, 0] = math.nan

    spoilt = at_call(step + 1, spoil, kernel)  # which ends the step before
    patch.setattr(coupling_chunk, "coupling_kernel", lambda: spoilt)
    patch.setattr(coupling_chunk, "PAYS_FROM", 0.0)


def nan_in_walk(patch, step):
    """A chain of AIS at its n-th transition."""
    spoil = lambda found, *_: found[0].z[0, 0].fill_(math.nan)  # noqa: E731
    spoilt, tune = at_call(step, spoil, hmc.hmc_transition), annealing.tune
    patch.setattr(annealing, "tune", lambda *given: tune(*given)._replace(transition=spoilt))


def nan_in_pilot(patch, step):
    """A pilot chain at its n-th transition."""
    spoil = lambda found, *_: found[0].z[0, 0].fill_(math.nan)  # noqa: E731
    patch.setattr(annealing, "hmc_transition", at_call(step, spoil, hmc.hmc_transition))


def nan_of_density(patch, step):
    """All gradients of log p, and log p itself, from the n-th call on, whoever asks."""
    from amortized_bayes.joint import LogJoint

    count, real = [0], LogJoint.terms

    def terms(joint, *given):
        count[0] += 1
        found = real(joint, *given)
        return found if count[0] < step else tuple(part * math.nan for part in found)

    patch.setattr(LogJoint, "terms", terms)


def numbers_in(kept) -> list[torch.Tensor]:
    """What a keeper has kept of numbers."""
    return [torch.from_numpy(value) for value in kept.tensors.values() if value.dtype.kind == "f"]
